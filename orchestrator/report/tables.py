"""The final tables of a run, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.process.program import invocation
from orchestrator.report.overoptimization import (
    hidden_reward_models,
    overoptimization_facts,
    overoptimization_tables,
)
from orchestrator.report.round_table import ROUND_HEADS, label_facts, revision_facts, round_rows
from orchestrator.results.best_of import parts_of
from orchestrator.results.summary import (
    EvaluationRow,
    Preference,
    Summary,
    TaskScore,
    model_label,
)
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import Comparison
from orchestrator.telemetry.live import duration
from workers.errors import BrokenCheckpointError
from workers.model_folders.shape import read_config, writes_text

MISSING = "-"
WIDTH = 80  # columns of a terminal that every table fits
_REASONS = 5  # of drops that are named
_LEAST_TITLE = 16  # columns that the titles of rows take at least
_GAP = 3  # columns between two cells, and at both edges together
_MOST_CHARACTERS = 600  # of a text in a terminal


def evaluation_columns(
    summary: Summary, names: Sequence[str] | None = None
) -> list[tuple[str, list[str]]]:
    """Columns (heading, one cell a model) of the final table; unmeasured columns are left out.

    Args:
        summary: The run.
        names: The models; None = all.
    """
    names = summary.ordered_models() if names is None else names
    rows = [summary.models[name] for name in names]
    columns = [
        ("gold score", [_cell(row.gold_mean, "{:.2f}") for row in rows]),
        ("reward", [_cell(row.reward_mean, "{:.2f}") for row in rows]),
        ("KL to SFT, at most", [_cell(row.kl_bound, "{:.2f}") for row in rows]),
        *(
            (f"preferred to {model_label(over)}", _wins(summary, names, over))
            for over in _rivals(summary)
        ),
        ("truthful", [_percent(row.truthful_rate) for row in rows]),
        ("rude", [_percent(row.rude_rate) for row in rows]),
        ("correct", [_percent(row.correct_rate) for row in rows]),
        ("tokens", [_cell(row.length_mean, "{:.1f}") for row in rows]),
        ("web perplexity", [_cell(row.web_perplexity, "{:.2f}") for row in rows]),
        ("cloze", [_percent(row.cloze_accuracy) for row in rows]),
        ("quality of 7, by people", [_cell(row.likert_mean, "{:.2f}") for row in rows]),
        *_flag_columns(rows),
        *_task_columns(rows),
    ]
    return [(title, cells) for title, cells in columns if any(cell != MISSING for cell in cells)]


def reward_model_rows(summary: Summary) -> list[list[str]]:
    """Held-out accuracy by part of the data: part, accuracy, interval, pairs, prompts.

    Empty where there is but one part: then it stands among the facts.
    """
    found = summary.reward_model
    parts = {name or "unnamed source": accuracy for name, accuracy in found.by_source.items()}
    if len(found.by_completions) > 1:
        parts |= {f"K = {k}": accuracy for k, accuracy in found.by_completions.items()}
    return [
        [part, _percent(a.accuracy), _interval(a.low, a.high), f"{a.pairs:,}", f"{a.prompts:,}"]
        for part, a in parts.items()
    ]


REWARD_MODEL_HEADS = ("reward model on held-out pairs", "accuracy", "95 %", "pairs", "prompts")


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What else is worth knowing, as (what, figure)."""
    found = [*_judging_facts(summary), *_gain_facts(summary), *_reward_model_facts(summary)]
    return [*found, *overoptimization_facts(summary), *_run_facts(summary)]


def _judging_facts(summary: Summary) -> list[tuple[str, str]]:
    judging = summary.judging
    if judging is None:
        return []
    text = judging.judge.replace("_", " ")
    if judging.asked or judging.cached:
        text += f", {judging.asked:,} questions asked, {judging.cached:,} known"
        text += f"; {judging.order_dependent:,} pairs tied by their order"
        text += f", {judging.failed:,} failed"
    return [("preferred by", text)]


def _gain_facts(summary: Summary) -> list[tuple[str, str]]:
    """How many more right answers policies with an environment give."""
    return [
        (
            f"right answers, {model_label(each.model)} over {model_label(each.over)}",
            f"{each.difference * 100:+.1f} points [{each.low * 100:.1f} to {each.high * 100:.1f}]",
        )
        for each in summary.environment_gains
    ]


def _reward_model_facts(summary: Summary) -> list[tuple[str, str]]:
    figures = summary.reward_model
    found: list[tuple[str, str]] = []
    hidden = hidden_reward_models(summary)
    named = {"reward model": figures} | summary.reward_models
    for name, each in named.items():
        if name in hidden:
            continue
        if (a := each.heldout) is not None:
            text = f"{_percent(a.accuracy)} {_interval(a.low, a.high)} of {a.pairs:,} pairs"
            found.append((f"{name}, held-out pairs", f"{text}, {a.prompts:,} prompts"))
    if figures.calibration is not None:
        found.append(("reward model, calibration error", f"{figures.calibration.error:.3f}"))
    if (b := figures.agreement) is not None:
        text = f"{_percent(b.rate)} {_interval(b.low, b.high)}"
        alpha = f", alpha {_cell(b.alpha, '{:.2f}')}"
        found.append(("annotators agree", f"{text}{alpha}, {b.annotators:,} annotators"))
    return found


def _run_facts(summary: Summary) -> list[tuple[str, str]]:
    ledger, sync, timing = summary.ledger, summary.weight_sync, summary.timing
    found = label_facts(summary) + revision_facts(summary)
    if ledger.generated:
        text = f"{ledger.generated:,} generated = {ledger.trained:,} trained"
        left = f" + {ledger.open:,} open" if ledger.open else ""
        found.append(("sequences", f"{text} + {ledger.dropped:,} dropped{left}"))
    by_count = sorted(summary.drops.items(), key=lambda drop: (-drop[1], drop[0]))
    found += [("dropped", f"{count:,}: {reason}") for reason, count in by_count[:_REASONS]]
    if rest := by_count[_REASONS:]:
        found.append(("dropped", f"{sum(n for _, n in rest):,}: {len(rest)} other reasons"))
    if (mirror := summary.mirror) is not None:
        text = f"{mirror.copied:,} checkpoints copied to {mirror.url}, {mirror.failures:,} failures"
        last = f"; the last: {mirror.trouble}" if mirror.trouble else ""
        found.append(("mirror", f"{text}; newest: {mirror.newest or 'none'}{last}"))
    if sync.count:
        parity = sync.parity_max_abs_logprob_diff
        text = f"{sync.count}, median {_cell(sync.seconds_median, '{:.3f}')} s"
        found.append(("weight syncs", f"{text}, worst difference {_cell(parity, '{:.1e}')} nats"))
    if timing.first_optimizer_step_seconds is not None:
        first = duration(timing.first_optimizer_step_seconds)
        found.append(("first optimizer step after", first))
    if "first_iteration" in timing.start:
        found.append(("first PPO update after", duration(sum(timing.start.values()))))
    if timing.total_seconds:
        found.append(("total time", duration(timing.total_seconds)))
    if summary.roles:
        found.append(("roles", ", ".join(_role_counts(summary))))
    return found


def render_table(summary: Summary) -> RenderableType:
    """The evaluation tables and the facts under them, at most WIDTH columns wide."""
    parts: list[RenderableType] = []
    # The best of n answers have a table of their own, so that each fits the width.
    for best in (False, True):
        names = [name for name in summary.ordered_models() if (parts_of(name)[1] > 0) == best]
        parts += [_evaluation_table(summary, some) for some in _fitting(summary, names)]
    if rows := round_rows(summary):
        parts.append(_table(ROUND_HEADS, rows))
    if rows := reward_model_rows(summary):
        parts.append(_table(REWARD_MODEL_HEADS, rows))
    for each in overoptimization_tables(summary):
        parts += [_table(each.heads, each.rows), Text(f" {each.note}", style="dim")]
    grid = Table.grid(padding=(0, 2, 0, 1))
    for what, figure in facts(summary):
        grid.add_row(Text(what, style="dim"), figure)
    return Group(*parts, grid)


def render_samples(comparisons: Sequence[Comparison], shown: int = 3) -> RenderableType:
    """Responses of the models to the same prompts, one block a prompt."""
    blocks: list[RenderableType] = []
    for comparison in comparisons[:shown]:
        grid = Table.grid(padding=(0, 2, 0, 1))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column()
        for model, response in comparison.responses.items():
            score = comparison.scores.get(model)
            said = [] if score is None else [f"{score:+.2f}"]
            grid.add_row(model_label(model), *said, Text(_cut(response) or "(empty)"))
        blocks += [Text(f" {_cut(comparison.prompt)}", style="bold"), grid, Text("")]
    return Group(*blocks)


def _cut(text: str) -> str:
    """The text, in a terminal; all of it is in the report."""
    more = len(text) - _MOST_CHARACTERS
    return text if more <= 0 else f"{text[:_MOST_CHARACTERS]} ... and {more:,} more characters"


def render_result(summary: Summary, comparisons: Sequence[Comparison] = ()) -> RenderableType:
    """The tables and samples that a run prints at its end."""
    return Group(render_table(summary), Text(""), render_samples(comparisons))


def places(folder: RunFolder) -> str:
    """Where everything is: a line each, never folded, so that a path can be copied."""
    found = {
        "report": folder.report,
        "summary": folder.summary,
        "metrics": folder.metrics,
        "plots": folder.plots,
        "checkpoints": folder.checkpoints,
    }
    return "".join(f"{what:13}{path}\n" for what, path in found.items() if path.exists())


def next_steps(folder: RunFolder, summary: Summary) -> str:
    """What can be done with the models of a finished run: a line per command, to be copied."""
    stages = [*summary.timing.stages]
    writes = _last(folder, summary.ordered_models() or stages, text=True)
    scores = _last(folder, stages, text=False)
    found: dict[str, str] = {}
    if writes:
        found["serve it"] = f"{invocation('serve', 'orchestrator.serve')} {writes}"
        found["talk to it"] = f"{invocation('chat', 'orchestrator.chat')}, while it is served"
    if scores:
        found["score texts"] = f"{invocation('serve-reward', 'orchestrator.serve_reward')} {scores}"
    if not found:
        return ""
    found["compare"] = f"{invocation('compare', 'orchestrator.runs.comparing')} {folder.path} OTHER"
    return "\n" + "".join(f"{what:13}{command}\n" for what, command in found.items())


def _last(folder: RunFolder, names: Sequence[str], *, text: bool) -> Path | None:
    """The last of these models that writes text, or of those that give scores."""
    for name in reversed(names):
        model = folder.checkpoints / name
        try:
            if writes_text(read_config(model)) is text:
                return model
        except BrokenCheckpointError:  # made by another run, or not whole
            continue
    return None


def _fitting(summary: Summary, names: Sequence[str]) -> list[list[str]]:
    """The models in groups, in their order, each of which fits the width of a table."""
    groups: list[list[str]] = []
    for name in names:
        wider = [*groups[-1], name] if groups else [name]
        heads, rows = _evaluation_cells(summary, wider)
        figures = [[head, *(row[at] for row in rows)] for at, head in enumerate(heads) if at]
        if groups and sum(max(map(_longest, f)) + _GAP for f in figures) > WIDTH - _LEAST_TITLE:
            groups.append([name])
        else:
            groups[-1:] = [wider]
    return groups


def _evaluation_table(summary: Summary, names: Sequence[str]) -> Table:
    return _table(*_evaluation_cells(summary, names))


def _evaluation_cells(summary: Summary, names: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    # Models side by side: with ten measures this fits 80 columns, the other way round it does not.
    heads = ["held-out prompts", *(_head(name) for name in names)]
    rows = [[title, *cells] for title, cells in evaluation_columns(summary, names)]
    if _width(heads, rows) > WIDTH:  # the intervals of win rates go under them
        rows = [[title, *(cell.replace(" [", "\n[") for cell in cells)] for title, *cells in rows]
    return heads, rows


def _head(name: str) -> str:
    """A model's name above a column; that of the best of n answers goes over two lines."""
    return model_label(name).replace(", ", ",\n")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Names to the left, figures to the right; a name that is too long goes on below."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    figures = [[row[column] for row in rows] for column in range(1, len(heads))]
    wide = [max(map(_longest, [h, *f])) + _GAP for h, f in zip(heads[1:], figures, strict=True)]
    room = max(_LEAST_TITLE - _GAP - 1, WIDTH - sum(wide) - _GAP - 1)
    table.add_column(heads[0], overflow="fold", max_width=room)
    for head in heads[1:]:
        table.add_column(head, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _width(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> int:
    """Columns of the terminal that a table takes when nothing is folded."""
    columns = zip(heads, *rows, strict=True)
    return 1 + sum(max(map(_longest, column)) + _GAP for column in columns)


def _longest(cell: str) -> int:
    return max(map(len, cell.split("\n")))


def _task_columns(rows: Sequence[EvaluationRow]) -> list[tuple[str, list[str]]]:
    """One column for each task and metric of the evaluation harness."""
    names = {(task, metric): None for r in rows for task, m in r.lm_eval.items() for metric in m}
    return [
        (f"{task} {metric}", [_score(row.lm_eval.get(task, {}).get(metric)) for row in rows])
        for task, metric in names
    ]


def _flag_columns(rows: Sequence[EvaluationRow]) -> list[tuple[str, list[str]]]:
    """One column for each yes/no field that people answered."""
    names = dict.fromkeys(name for row in rows for name in row.flags)
    return [
        (
            name.replace("_", " "),
            [_percent(row.flags[name].rate if name in row.flags else None) for row in rows],
        )
        for name in names
    ]


def _score(score: TaskScore | None) -> str:
    return MISSING if score is None else f"{score.value:.4g}"


def _rivals(summary: Summary) -> list[str]:
    """Models that others were compared with: SFT first, then in recipe order."""
    over = {preference.over for preference in summary.preferred}
    names = [name for name in ("sft", *summary.ordered_models()) if name in over]
    return list(dict.fromkeys(names))


def _wins(summary: Summary, names: Sequence[str], over: str) -> list[str]:
    return [_win(summary.preference(name, over)) for name in names]


def _win(preference: Preference | None) -> str:
    if preference is None:
        return MISSING
    interval = f"[{100 * preference.low:.0f}-{100 * preference.high:.0f}]"
    return f"{100 * preference.rate:.0f} % {interval}"


def _interval(low: float, high: float) -> str:
    return f"[{100 * low:.1f}-{100 * high:.1f}]"


def _cell(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"


def _role_counts(summary: Summary) -> list[str]:
    names = [role.role for role in summary.roles]
    return [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
