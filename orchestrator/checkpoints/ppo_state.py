"""Schema of a stage's own state in a checkpoint, in addition to the trainers' state."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from orchestrator.config.training import KLControl
from orchestrator.run_files.dataclass_json import from_plain

Ranges = list[tuple[int, int]]  # ids, both ends inclusive


@dataclass(frozen=True, slots=True)
class Counters:
    """The next sequence id and weight version, which are unique in a run."""

    next_id: int
    next_version: int


@dataclass(frozen=True, slots=True)
class _Coefficient:
    value: float


@dataclass(frozen=True, slots=True)
class _Account:
    """See `ledger.Ledger.state_dict`."""

    generated: int
    trained: int
    dropped: dict[str, int]
    ranges: Ranges
    open: Ranges = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class _Scoring:
    """See `scores.Scoring.state`."""

    deviation: float | None
    lost: int


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A batch that was sampled ahead of its iteration."""

    iteration: int
    ids: Ranges


@dataclass(frozen=True, slots=True)
class _Noted:
    version: int
    counters: Counters
    kl: _Coefficient | None
    ledger: _Account
    scoring: _Scoring
    documents_used: int
    ahead: list[_Waiting]
    engine_logprobs: bool | None = None
    prompts_added: int = 0


@dataclass(frozen=True, slots=True)
class _Rejection:
    """See `rejection_sampling`."""

    version: int
    counters: Counters
    ledger: _Account
    scoring: _Scoring


@dataclass(frozen=True, slots=True)
class _Compared:
    """See `sft_candidates.Candidates.state`."""

    found: dict[int, float]


def check_own(stage: str, own: object, control: object) -> None:
    """Refuse a saved state from which its stage cannot resume.

    Args:
        stage: Name of the stage.
        own: Its state in the checkpoint.
        control: `algorithm.kl.control` of the run.

    Raises:
        TypeError, ValueError: names the field.
    """
    if stage == "sft":
        from_plain(_Compared, own)
    elif stage == "rejection_sampling":
        _check_account(from_plain(_Rejection, own).ledger, [])
    else:
        check_noted(own, control)


def check_noted(own: object, control: object) -> None:
    """Refuse a saved state from which PPO cannot resume.

    Args:
        own: The PPO state of the checkpoint.
        control: `algorithm.kl.control` of the run.

    Raises:
        TypeError, ValueError: names the field.
    """
    noted = from_plain(_Noted, own)
    if (noted.kl is None) != (control == KLControl.fixed.value):
        held = "no" if noted.kl is None else "a"
        raise ValueError(
            f"it holds {held} KL coefficient in force, unlike one of algorithm.kl.control={control}"
        )
    _check_account(noted.ledger, [r for batch in noted.ahead for r in batch.ids])


def _check_account(account: _Account, ahead: Sequence[tuple[int, int]]) -> None:
    settled = account.trained + sum(account.dropped.values())
    # checked before ranges are expanded to sets: a wrong range could exceed the memory
    for name, ranges, count in (
        ("seen", account.ranges, account.generated),
        ("open", account.open, account.generated - settled),
        ("ahead", ahead, account.generated - settled),
    ):
        if _length(ranges) != count:
            raise ValueError(f"{_length(ranges)} sequences are {name}, the account says {count}")


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    if any(last < first for first, last in ranges):
        raise ValueError("a range of ids ends before it begins")
    return sum(last - first + 1 for first, last in ranges)
