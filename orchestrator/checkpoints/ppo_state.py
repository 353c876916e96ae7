"""Schema of the PPO state in a checkpoint, in addition to the trainers' state."""

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
    account = noted.ledger
    settled = account.trained + sum(account.dropped.values())
    # checked before ranges are expanded to sets: a wrong range could exceed the memory
    for name, ranges, count in (
        ("seen", account.ranges, account.generated),
        ("open", account.open, account.generated - settled),
        ("ahead", [r for batch in noted.ahead for r in batch.ids], account.generated - settled),
    ):
        if _length(ranges) != count:
            raise ValueError(f"{_length(ranges)} sequences are {name}, the account says {count}")


def _length(ranges: Sequence[tuple[int, int]]) -> int:
    if any(last < first for first, last in ranges):
        raise ValueError("a range of ids ends before it begins")
    return sum(last - first + 1 for first, last in ranges)
