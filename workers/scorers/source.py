"""What a reward source declares and does; `reward.kind` names one.

A source is the constant SOURCE of a module of this package, or an object of a user's module. The
driver reads what it needs, and each worker of the role `reward` makes a scorer from its settings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from workers.data.rows.asked import Asked
from workers.errors import RehearsalError, RewardError
from workers.extensions.kinds import Kind
from workers.extensions.settings import check_record, filled
from workers.process.user_code import describe
from workers.records.arrays import FloatArray
from workers.records.generation import RolloutBatch
from workers.records.specs import RewardSpec, TermSpec
from workers.user_functions.reward_function import Exchange

S = TypeVar("S")
T = TypeVar("T")

WHERE = "reward.kind"
MODEL = "model"  # the source that also scores for a judging reward model
ENVIRONMENT = "environment"  # the source whose rewards are those of the environment


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences to score."""

    rollouts: RolloutBatch  # (B,) token ids of the policy's tokenizer
    texts: Sequence[Exchange]  # (B,) prompt and response as text; () if the source needs no text


@dataclass(frozen=True, slots=True)
class Scored:
    """A score or a recorded failure per sequence of a batch, in its order."""

    values: FloatArray  # (B,) reward units; NaN where there is a reason
    reasons: Sequence[str]  # (B,) why there is no score, one of few texts; "" = scored
    words: Sequence[str] = ()  # (B,) message of each failure; () = none
    # (B,) parts of each value, one per step of the response; () = the value is for its end. Only
    # where the run has reward.step_separator.
    steps: Sequence[Sequence[float]] = ()


Scorer = Callable[[Batch], Scored]


@dataclass(frozen=True, slots=True)
class Code:
    """A function of the user that a source calls."""

    path: str  # "package.module:NAME"
    where: str  # configuration key that names it
    loader: str  # import path of a function of (path, folder) that imports it and checks it


@dataclass(frozen=True, slots=True)
class Needs:
    """What a source needs from the run; the plan, the checks and the prompts follow from it."""

    text: bool = True  # prompts and responses as text; False: it reads the policy's token ids
    model: bool = False  # the run's reward model, which each worker loads
    gpu: bool = False  # each worker has a GPU, besides that of the reward model
    secrets: tuple[str, ...] = ()  # environment variables; their values are sent to the workers
    seconds: float = 0.0  # longest time that it takes for a batch; 0 = not limited by the source
    seconds_where: str = WHERE  # configuration key that limits this time
    code: tuple[Code, ...] = ()
    columns: tuple[str, ...] = ()  # of the prompt's row, which data.keep_columns must keep
    waits: bool = False  # mostly waits for others: its calls may run at the same time


@dataclass(frozen=True, slots=True)
class RewardSource(Generic[S]):
    """Where rewards come from, or one term of them.

    The fields of `settings` are filled from keys of `reward` of the same name, and from
    `reward.settings`. If it has a method `check(key)`, that is called before anything starts.
    """

    settings: type[S]  # dataclass
    make: Callable[[S, RewardSpec], Scorer]  # in the worker
    needs: Callable[[S], Needs] = lambda _: Needs()
    # Per prompt why no response to it can be scored, "" = one can; the plan tries some prompts.
    refuses: Callable[[S, Sequence[Asked]], list[str]] | None = None

    def __post_init__(self) -> None:
        """Raises TypeError where a field is something else, at the user's line."""
        check_record(self.settings)
        for name in ("make", "needs"):
            if not callable(getattr(self, name)):
                raise TypeError(f"{name} is {getattr(self, name)!r}: it must be a function")


KIND = Kind("reward source", RewardSource, "workers.scorers", "SOURCE")


def find_source(name: str, folder: str = "", where: str = WHERE) -> RewardSource[Any]:
    """The source of a name or an import path; `where` is the key that names it, for errors.

    Raises:
        ConfigError: There is none of this name, it cannot be imported, or it is something else.
    """
    return KIND.find(name, where, folder)


def key_of(name: str) -> str:
    """The configuration key of a setting that only its source declares."""
    return f"reward.settings.{name}"


def make_scorer(spec: RewardSpec, term: TermSpec) -> tuple[Scorer, Needs]:
    """The scorer of a term of the reward, and what its source needs.

    Raises:
        RehearsalError: The source cannot be found, or cannot be set up.
        RewardError: Code of a user's source raised.
    """
    source = find_source(term.source, spec.folder)
    settings = filled(source.settings, term.settings, key_of)
    scorer = _called(term.source, lambda: source.make(settings, spec))
    return scorer, source.needs(settings)


def scores_of(scorer: Scorer, batch: Batch, name: str) -> Scored:
    """Score a batch; a number that is not finite is a failure, never a score.

    Raises:
        RewardError: The source raised, or returned something else than one score per sequence.
    """
    count = len(batch.rollouts)
    values, reasons, words, steps = _called(name, lambda: _answer(scorer(batch)))
    words = words or [""] * count
    if len(steps) not in (0, count):
        raise RewardError(
            f"the reward source {name} returned steps of {len(steps)} for {count} sequences",
            where=WHERE,
            fix="let its scorer return one list per sequence, or none at all",
        )
    found = (values.shape, len(reasons), len(words))
    if found != ((count,), count, count):
        raise RewardError(
            f"the reward source {name} returned values of shape {found[0]}, {found[1]} reasons and "
            f"{found[2]} messages for {count} sequences",
            where=WHERE,
            fix="let its scorer return one of each per sequence, in their order",
        )
    for row in np.flatnonzero(~np.isfinite(values)):
        reasons[row] = reasons[row] or f"reward source {name}: not finite"
    values[[bool(reason) for reason in reasons]] = np.nan
    return Scored(values, reasons, words, steps)


def _answer(
    scored: object,
) -> tuple[FloatArray, list[str], list[str], list[tuple[float, ...]]]:
    if not isinstance(scored, Scored):
        raise TypeError(f"its scorer returned {type(scored).__name__}, not Scored")
    values = np.array(scored.values, np.float64)
    reasons, words = [*scored.reasons], [*scored.words]
    if not all(isinstance(each, str) for each in (*reasons, *words)):
        raise TypeError('a reason or message is no text; the reason of a scored sequence is ""')
    with np.errstate(over="ignore"):  # infinity is a failure
        steps = [tuple(map(float, each)) for each in scored.steps]
        return values.astype(np.float32), reasons, words, steps


def _called(name: str, function: Callable[[], T]) -> T:
    try:
        return function()
    except RehearsalError:
        raise
    except (Exception, SystemExit) as error:  # a user's source may raise anything
        raise RewardError(
            f"the reward source {name} raised {describe(error)}",
            where=WHERE,
            fix="let it return a reason for each sequence that it cannot score",
        ) from error
