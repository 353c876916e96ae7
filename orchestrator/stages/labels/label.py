"""Labels: answers of the run's models are sampled, and a labeler ranks them.

Unlike `collect`, whose tasks leave the run, this stage ends with rankings that later stages train
on: those of its `prompts`, and held-out ones. What it has is saved after sampling and after
ranking, because both are costly to redo, and the second may take people days.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from orchestrator.config.run import StageName
from orchestrator.results.label_figures import AILabelFigures, LabelFigures
from orchestrator.results.pair_metrics import ordered_pairs, pair_accuracy
from orchestrator.results.reward_model_figures import PairAccuracy
from orchestrator.run_files.rankings import load_rankings, save_rankings
from orchestrator.session.session import Session
from orchestrator.stages.labels.labeler import Verdict, Verdicts, find_labeler
from orchestrator.stages.labels.tasks import (
    Task,
    different,
    read_tasks,
    sample_tasks,
    tell_left_out,
    write_tasks,
)
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError, LedgerError
from workers.records.arrays import Ragged
from workers.records.training import Ranking

_SAMPLED, _RANKED, _END = 1, 2, 3  # steps of the stage


def label(session: Session) -> None:
    """Sample answers, have them ranked, and keep the rankings under the name of the stage run."""
    stage, settings = session.name_of(StageName.label), session.config.label
    session.live.stage(stage, len(settings.models))
    saved = session.saves.within(stage)
    if saved is not None and saved.step == _RANKED:
        return
    prompts = _prompts(session, stage)
    path = session.folder.tasks_of(stage)
    if saved is None:
        found = sample_tasks(session, stage, settings, prompts, scored=settings.scored)
        tell_left_out(session, found.left_out)
        write_tasks(path, found.tasks)
        session.findings.labels[stage] = LabelFigures(
            settings.labeler, tuple(settings.models), found.answers, 0, dict(found.left_out)
        )
        session.boundary(stage, _SAMPLED, _END, {}, always=True)
        session.saves.settle()  # a labeler may take days
    tasks = read_tasks(path, prompts)
    labeler = find_labeler(settings.labeler, str(Path.cwd()))
    verdicts = labeler.rank(session, stage, tasks)
    _keep(session, stage, tasks, verdicts, prompts)
    session.boundary(stage, _RANKED, _END, {}, always=True)


def _prompts(session: Session, stage: str) -> list[Prompt]:
    """The prompts of this stage run: the next ones that no earlier one has asked."""
    settings, run = session.config.label, session.run
    first = run.first_prompt if run else 0
    count = settings.prompts + settings.heldout_prompts
    asked = different(session.source.prompts("reward_model", first, count))
    earlier = run.earlier_labels if run else ()
    known = {
        r.prompt_id for name in earlier for r in load_rankings(session.folder.rankings_of(name))
    }
    kept = [prompt for prompt in asked if prompt.id not in known]
    if len(kept) < count:
        session.live.note(f"{len(kept):,} of {count:,} prompts: a small data set has each once")
    if len(kept) <= settings.heldout_prompts:
        raise EmptyDatasetError(
            f"{len(kept):,} prompts are left that nobody has ranked, and "
            f"{settings.heldout_prompts:,} of them are held out",
            where=stage,
            fix="give more prompts, or lower label.prompts and label.heldout_prompts",
        )
    return kept


def _keep(
    session: Session,
    stage: str,
    tasks: Sequence[Task],
    verdicts: Verdicts,
    prompts: Sequence[Prompt],
) -> None:
    """Save the rankings and record the figures; every sampled answer is ranked or left out."""
    sampled = session.findings.labels[stage]
    answers, left_out = sampled.answers, Counter(sampled.left_out)
    for n, why in verdicts.failed.items():
        left_out[why] += len(tasks[n].texts)
    ranked = {verdict.task for verdict in verdicts.given}
    counted = sum(len(tasks[n].texts) for n in ranked)
    if answers != counted + left_out.total():
        raise LedgerError(
            f"{answers:,} answers were sampled, {counted:,} ranked and {left_out.total():,} left "
            "out",
            where=stage,
            fix="report this: an answer was lost or counted twice",
        )
    last = len(prompts) - session.config.label.heldout_prompts
    training = {prompt.id for prompt in prompts[:last]}
    parts: dict[bool, list[Verdict]] = {True: [], False: []}
    for verdict in verdicts.given:
        parts[tasks[verdict.task].prompt.id in training].append(verdict)
    train, heldout = ([_ranking(v, tasks, stage) for v in parts[part]] for part in (True, False))
    _require(stage, train, heldout)
    save_rankings(session.folder.rankings_of(stage), [*train, *heldout], training=len(train))
    before = _accuracy(parts[False], heldout, tasks) if session.config.label.scored else None
    figures = replace(
        sampled,
        ranked=counted,
        left_out={why: n for why, n in left_out.items() if n},
        rankings=len(train),
        heldout=len(heldout),
        pairs=sum(ranking.pairs for ranking in train),
        before=before,
        judging=verdicts.judging,
    )
    _record(session, stage, figures)


def _ranking(verdict: Verdict, tasks: Sequence[Task], stage: str) -> Ranking:
    task = tasks[verdict.task]
    prompt = task.prompt
    return Ranking(
        prompt.id,
        Ragged.from_rows([[*prompt.tokens, *tokens] for tokens in task.tokens], np.int32),
        np.asarray(verdict.ranks, np.int64),
        source=stage,
        annotator=verdict.annotator,
        prompt_length=len(prompt.tokens),
        likert=None if verdict.likert is None else np.asarray(verdict.likert, np.int64),
        probabilities=verdict.probabilities,
    )


def _require(stage: str, train: Sequence[Ranking], heldout: Sequence[Ranking]) -> None:
    for name, rankings in (("training", train), ("held-out", heldout)):
        if not any(ranking.ordered for ranking in rankings):
            raise EmptyDatasetError(
                f"no {name} prompt has two answers of different rank",
                where=stage,
                fix="raise label.prompts, label.heldout_prompts or label.temperature, or look at "
                "what the labeler says",
            )


def _accuracy(
    verdicts: Sequence[Verdict], heldout: Sequence[Ranking], tasks: Sequence[Task]
) -> PairAccuracy:
    """How many pairs the reward model orders right that has not yet learned from them."""
    scores = [np.asarray(tasks[verdict.task].scores, np.float32) for verdict in verdicts]
    return pair_accuracy(ordered_pairs(heldout, scores))


def _record(session: Session, stage: str, found: LabelFigures) -> None:
    session.findings.labels[stage] = found
    values: dict[str, float] = {
        "label/answers": found.answers,
        "label/ranked": found.ranked,
        "label/left_out": sum(found.left_out.values()),
        "label/rankings": found.rankings,
        "label/heldout_rankings": found.heldout,
        "label/pairs": found.pairs,
    }
    if (before := found.before) is not None:
        values["label/accuracy_before"] = before.accuracy
        values["label/accuracy_before_low"] = before.low
        values["label/accuracy_before_high"] = before.high
        session.live.note(
            f"the reward model so far orders {100 * before.accuracy:.1f} % "
            f"[{100 * before.low:.1f}-{100 * before.high:.1f}] of {before.pairs:,} new pairs right"
        )
    if found.judging is not None:
        values |= _judging(session, found.judging)
    session.telemetry.record(stage, 0, values)
    kind = "pairs" if found.judging is not None else "ordered pairs"
    session.live.note(
        f"{found.rankings:,} rankings with {found.pairs:,} {kind} to train on, "
        f"{found.heldout:,} held out"
    )


def _judging(session: Session, found: AILabelFigures) -> dict[str, float]:
    """The metrics of a model's answers; says how far the order of answers decided."""
    values: dict[str, float] = {
        "label/questions": found.questions,
        "label/unanswered": found.unanswered,
        "label/cycles": found.cycles,
    }
    low, high = found.bias_low, found.bias_high
    if found.bias is not None and low is not None and high is not None:
        values |= {"label/bias": found.bias, "label/bias_low": low, "label/bias_high": high}
        session.live.note(
            f"the order of the answers decided {100 * found.bias:.1f} % [{100 * low:.1f}, "
            f"{100 * high:.1f}] of {found.bias_pairs:,} pairs; the mean of both orders is free of "
            "it"
        )
    if found.cycles:
        session.live.note(f"the preferences of {found.cycles:,} prompts contradict each other")
    return values
