"""The table of rounds: labels, reward model before and after it learned from them, policy."""

from __future__ import annotations

from orchestrator.results.label_figures import AILabelFigures
from orchestrator.results.reward_model_figures import PairAccuracy
from orchestrator.results.rounds import RoundFigures
from orchestrator.results.summary import Summary

ROUND_HEADS = ("round", "rankings", "accuracy before", "after", "gold", "reward", "KL")


def round_rows(summary: Summary) -> list[list[str]]:
    """A row per round, by ROUND_HEADS; [] of a run without the stage label."""
    return [_row(each) for each in summary.rounds]


def _row(found: RoundFigures) -> list[str]:
    name = found.policy or found.reward_model or found.label
    return [
        name,
        "-" if found.rankings is None else f"{found.rankings:,}",
        _accuracy(found.before),
        _accuracy(found.after),
        *(_number(value) for value in (found.gold, found.reward, found.kl)),
    ]


def _accuracy(found: PairAccuracy | None) -> str:
    if found is None:
        return "-"
    low, high = 100 * found.low, 100 * found.high
    return f"{100 * found.accuracy:.1f} % [{low:.0f}-{high:.0f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def revision_facts(summary: Summary) -> list[tuple[str, str]]:
    """What became of answers that were revised, as (what, figure)."""
    found: list[tuple[str, str]] = []
    for name, each in summary.constitutions.items():
        why = ", ".join(f"{count:,} {reason}" for reason, count in each.left_out.items())
        rest = f" + {sum(each.left_out.values()):,} left out ({why})" if why else ""
        said = f"{each.answers:,} answers = {each.revised:,} revised{rest}"
        found.append((f"answers of {name}", f"{said}; {each.changed:,} were changed"))
        shares = [
            (w, s) for w, s in (("before", each.rude_before), ("after", each.rude_after)) if s
        ]
        for when, share in shares:
            low, high = 100 * share.low, 100 * share.high
            found.append(
                (f"rude {when} revision", f"{100 * share.rate:.1f} % [{low:.1f}, {high:.1f}]")
            )
    return found


def _judging(found: AILabelFigures) -> str:
    """What a model was asked, and how far the order of the answers decided."""
    said = f"{found.questions:,} questions, {found.unanswered:,} unanswered"
    if found.bias is not None and found.bias_low is not None and found.bias_high is not None:
        low, high = 100 * found.bias_low, 100 * found.bias_high
        said += (
            f"; the order decided {100 * found.bias:.1f} % [{low:.1f}, {high:.1f}] of "
            f"{found.bias_pairs:,} pairs, the mean of both orders is free of it"
        )
    return f"{said}; {found.cycles:,} prompts with contradicting preferences"


def label_facts(summary: Summary) -> list[tuple[str, str]]:
    """What was sampled to be ranked, and why some of it was not, as (what, figure)."""
    found: list[tuple[str, str]] = []
    for name, each in summary.labels.items():
        why = ", ".join(f"{count:,} {reason}" for reason, count in each.left_out.items())
        rest = f" + {sum(each.left_out.values()):,} left out ({why})" if why else ""
        ranked = f"= {each.ranked:,} ranked" if each.ranked else "sampled, none ranked yet"
        found.append((f"answers of {name}", f"{each.answers:,} answers {ranked}{rest}"))
        if each.judging is not None:
            found.append((f"labels of {name}", _judging(each.judging)))
    return found
