"""How well labelers agree with each other and with known answers, and what they say of models."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import fmean, median

import numpy as np

from orchestrator.label.records import FLAGS, Adjudication, Judgment, Labeler, Pass, Task
from orchestrator.label.store import Store
from orchestrator.results.agreement import (
    annotator_agreement,
    fleiss_kappa,
    krippendorff_alpha,
    ordinal_distances,
)
from orchestrator.results.intervals import clustered_rate
from orchestrator.results.reward_model_figures import Agreement
from workers.records.arrays import Ragged
from workers.records.training import Ranking

#: Agreement of InstructGPT's labelers (section 3.4): rate and half of its interval.
PAPER = {
    "training labelers": (0.726, 0.015),
    "labelers who gave no training data": (0.773, 0.013),
}


@dataclass(frozen=True, slots=True)
class Rate:
    """A share with a 95 % interval, clustered by task."""

    rate: float
    low: float
    high: float
    n: int  # trials
    tasks: int


@dataclass(frozen=True, slots=True)
class FlagFigures:
    """One yes/no field over all answers that several labelers judged."""

    raised: Rate | None  # of all answers
    agreement: float | None  # share of pairs of labelers with the same answer
    kappa: float | None  # Fleiss'; None if all say the same


@dataclass(frozen=True, slots=True)
class LabelerFigures:
    """One labeler."""

    name: str
    role: str
    active: bool
    judged: int
    passed: int  # skipped or flagged
    others: Rate | None  # pairs of answers judged as another labeler did
    gold: Rate | None  # pairs of answers judged as it is known
    seconds: float | None  # per task, median
    ties: float | None  # share of pairs
    first: Rate | None  # of pairs apart, the one shown first is preferred; no bias = 1/2


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """What labelers say of one model's answers."""

    answers: int  # ratings
    likert: float | None  # mean
    flags: dict[str, Rate]


@dataclass(frozen=True, slots=True)
class Win:
    """How often one model is preferred to another; a tie counts half."""

    model: str
    over: str
    rate: Rate
    strength: float | None  # mean of the strengths that were given, 1..7


@dataclass(frozen=True, slots=True)
class Progress:
    """Counts of a project."""

    tasks: int  # without those of known answer
    done: int
    needed: int  # judgments
    judgments: int
    gold: int  # tasks with a known answer
    gold_judgments: int
    skipped: int
    flagged: int
    adjudicated: int


@dataclass(frozen=True, slots=True)
class Figures:
    """All figures of a project."""

    progress: Progress
    agreement: Agreement | None  # of pairs of answers
    likert_alpha: float | None  # Krippendorff's, ordinal
    flags: dict[str, FlagFigures]
    labelers: tuple[LabelerFigures, ...]
    models: dict[str, ModelFigures]
    wins: tuple[Win, ...]
    paper: dict[str, tuple[float, float]]


def figures_of(store: Store) -> Figures:
    """The figures of a project."""
    return compute(
        store.tasks(), store.labelers(), store.judgments(), store.passes(), store.adjudications()
    )


def compute(
    tasks: Sequence[Task],
    labelers: Sequence[Labeler],
    judgments: Sequence[Judgment],
    passes: Sequence[Pass],
    adjudications: dict[int, Adjudication],
) -> Figures:
    """The figures of what labelers said; tasks of known answer count only against their answer."""
    by_id = {task.id: task for task in tasks}
    ordinary = [j for j in judgments if by_id[j.task].gold is None]
    likert = _likert_units(ordinary)
    return Figures(
        progress=_progress(tasks, ordinary, len(judgments), passes, adjudications),
        agreement=annotator_agreement(map(_ranking, ordinary)),
        likert_alpha=krippendorff_alpha(likert, ordinal_distances(likert)),
        flags={name: _flag(name, ordinary) for name in FLAGS},
        labelers=tuple(
            _labeler(each, by_id, ordinary, judgments, sum(p.labeler == each.id for p in passes))
            for each in labelers
        ),
        models=_models(by_id, ordinary),
        wins=_wins(by_id, ordinary),
        paper=PAPER,
    )


def disagreement(judgments: Sequence[Judgment]) -> float:
    """Share of pairs of answers and pairs of labelers with different verdicts on one task."""
    verdicts = [_verdicts(j) for j in judgments]
    different = [
        a != b for one, other in combinations(verdicts, 2) for a, b in zip(one, other, strict=True)
    ]
    return fmean(different) if different else 0.0


def _progress(
    tasks: Sequence[Task],
    ordinary: Sequence[Judgment],
    judgments: int,
    passes: Sequence[Pass],
    adjudications: dict[int, Adjudication],
) -> Progress:
    given: dict[int, int] = defaultdict(int)
    for judgment in ordinary:
        given[judgment.task] += 1
    open_to_all = [task for task in tasks if task.gold is None]
    return Progress(
        tasks=len(open_to_all),
        done=sum(given[task.id] >= task.needed for task in open_to_all),
        needed=sum(task.needed for task in open_to_all),
        judgments=len(ordinary),
        gold=len(tasks) - len(open_to_all),
        gold_judgments=judgments - len(ordinary),
        skipped=sum(not each.flagged for each in passes),
        flagged=sum(each.flagged for each in passes),
        adjudicated=len(adjudications),
    )


def _ranking(judgment: Judgment) -> Ranking:
    rows = [[judgment.task, answer] for answer in range(len(judgment.verdict.ranks))]
    return Ranking(
        judgment.task, Ragged.from_rows(rows, np.int32), np.array(judgment.verdict.ranks),
        annotator=str(judgment.labeler),
    )  # fmt: skip


def _verdicts(judgment: Judgment) -> list[int]:
    """Per pair of answers: -1 = the first is better, 1 = the second, 0 = tie."""
    return [_sign(a - b) for a, b in combinations(judgment.verdict.ranks, 2)]


def _sign(number: int) -> int:
    return (number > 0) - (number < 0)


def _rate(outcomes: Iterable[tuple[float, int]]) -> Rate | None:
    """The share of outcomes (value, task); None without any."""
    found = list(outcomes)
    if not found:
        return None
    values, tasks = zip(*found, strict=True)
    rate = clustered_rate(values, tasks)
    return Rate(rate.rate, rate.low, rate.high, rate.trials, rate.clusters)


def _by_task(judgments: Iterable[Judgment]) -> dict[int, list[Judgment]]:
    found: dict[int, list[Judgment]] = defaultdict(list)
    for judgment in judgments:
        found[judgment.task].append(judgment)
    return found


def _likert_units(judgments: Sequence[Judgment]) -> list[tuple[int, ...]]:
    """Per answer the ratings of all labelers who rated it."""
    return [
        tuple(r.likert for r in ratings if r.likert is not None)
        for of_task in _by_task(judgments).values()
        for ratings in zip(*(j.verdict.ratings for j in of_task), strict=True)
    ]


def _flag(name: str, judgments: Sequence[Judgment]) -> FlagFigures:
    units, raised = [], []
    for task, of_task in _by_task(judgments).items():
        for ratings in zip(*(j.verdict.ratings for j in of_task), strict=True):
            said = [r.flags[name] for r in ratings if r.flags.get(name) is not None]
            units.append(said)
            raised += [(float(bool(value)), task) for value in said]
    same = [float(a == b) for said in units for a, b in combinations(said, 2)]
    return FlagFigures(_rate(raised), fmean(same) if same else None, fleiss_kappa(units))


def _labeler(
    labeler: Labeler,
    tasks: dict[int, Task],
    ordinary: Sequence[Judgment],
    judgments: Sequence[Judgment],
    passed: int,
) -> LabelerFigures:
    own = [j for j in judgments if j.labeler == labeler.id]
    pairs = [verdict for j in own for verdict in _verdicts(j)]
    times = [j.seconds for j in own if j.revision == 1]
    return LabelerFigures(
        name=labeler.name,
        role=labeler.role,
        active=labeler.active,
        judged=len(own),
        passed=passed,
        others=_rate(_with_others(labeler.id, ordinary)),
        gold=_rate(_with_gold(own, tasks)),
        seconds=median(times) if times else None,
        ties=fmean(verdict == 0 for verdict in pairs) if pairs else None,
        first=_rate(_first_preferred(own)),
    )


def _with_others(labeler: int, ordinary: Sequence[Judgment]) -> Iterator[tuple[float, int]]:
    for task, of_task in _by_task(ordinary).items():
        own = next((j for j in of_task if j.labeler == labeler), None)
        if own is None:
            continue
        for other in of_task:
            if other.labeler != labeler:
                for a, b in zip(_verdicts(own), _verdicts(other), strict=True):
                    yield float(a == b), task


def _with_gold(own: Sequence[Judgment], tasks: dict[int, Task]) -> Iterator[tuple[float, int]]:
    for judgment in own:
        gold = tasks[judgment.task].gold
        if gold is not None:
            known = [_sign(a - b) for a, b in combinations(gold, 2)]
            for a, b in zip(_verdicts(judgment), known, strict=True):
                yield float(a == b), judgment.task


def _first_preferred(own: Sequence[Judgment]) -> Iterator[tuple[float, int]]:
    for judgment in own:
        ranks = judgment.verdict.ranks
        for earlier, later in combinations(judgment.shown, 2):
            if ranks[earlier] != ranks[later]:
                yield float(ranks[earlier] < ranks[later]), judgment.task


def _models(tasks: dict[int, Task], judgments: Sequence[Judgment]) -> dict[str, ModelFigures]:
    likert: dict[str, list[int]] = defaultdict(list)
    flags: dict[str, dict[str, list[tuple[float, int]]]] = defaultdict(lambda: defaultdict(list))
    for judgment in judgments:
        answers = tasks[judgment.task].answers
        for answer, rating in zip(answers, judgment.verdict.ratings, strict=True):
            if rating.likert is not None:
                likert[answer.model].append(rating.likert)
            for name, value in rating.flags.items():
                if value is not None:
                    flags[answer.model][name].append((float(value), judgment.task))
    return {
        model: ModelFigures(
            len(likert[model]),
            fmean(likert[model]) if likert[model] else None,
            {name: rate for name, values in flags[model].items() if (rate := _rate(values))},
        )
        for model in sorted(likert.keys() | flags.keys())
        if model
    }


def _wins(tasks: dict[int, Task], judgments: Sequence[Judgment]) -> tuple[Win, ...]:
    """Win rates of every two models whose answers were compared."""
    outcomes: dict[tuple[str, str], list[tuple[float, int]]] = defaultdict(list)
    strengths: dict[tuple[str, str], list[int]] = defaultdict(list)
    for judgment in judgments:
        task, ranks = tasks[judgment.task], judgment.verdict.ranks
        if task.kind != "compare":
            continue
        for a, b in combinations(range(len(ranks)), 2):
            models = task.answers[a].model, task.answers[b].model
            outcomes[models].append(((1 + _sign(ranks[b] - ranks[a])) / 2, judgment.task))
            if judgment.verdict.strength is not None:
                strengths[models].append(judgment.verdict.strength)
    return tuple(
        Win(*models, rate, fmean(strengths[models]) if strengths[models] else None)
        for models, values in outcomes.items()
        if (rate := _rate(values)) is not None
    )
