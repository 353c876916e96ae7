"""Rehearsal's error classes.

Most also derive from a standard class, so `except ValueError` keeps working. Each holds what
happened, where, and how to fix it. All can be pickled, because Ray sends them between processes.
"""

from __future__ import annotations

from typing import ClassVar


class RehearsalError(Exception):
    """An expected failure: what happened, where it happened, and how to fix it."""

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, *, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        parts = [self.what]
        if self.where:
            parts.append(f"where: {self.where}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "\n  ".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.what, self.where, self.fix))


def _rebuild(kind: type[RehearsalError], what: str, where: str, fix: str) -> RehearsalError:
    return kind(what, where=where, fix=fix)


class ConfigError(RehearsalError, ValueError):
    """The composed configuration cannot describe a run."""

    exit_code = 2


class UnknownKeyError(ConfigError):
    """A configuration key that the schema does not know."""


class BatchArithmeticError(ConfigError):
    """Batch sizes that do not divide into each other."""


class ResourceError(ConfigError):
    """Roles that do not fit on the cluster."""


class ClusterTokenError(ConfigError):
    """A Ray cluster cannot be joined with the token that is here, or without one."""


class UnsupportedPlatformError(RehearsalError, RuntimeError):
    """A machine or installation that cannot run the chosen engine."""

    exit_code = 2


class DataError(RehearsalError, ValueError):
    """Input data that cannot be used."""

    exit_code = 3


class DataLineError(DataError):
    """One line of a data file that does not parse; `where` is FILE:LINE."""


class EmptyDatasetError(DataError):
    """A data set without a single usable row."""


class TokenizerMismatchError(DataError):
    """Two models that must share token ids do not share a tokenizer."""


class CheckpointError(RehearsalError, OSError):
    """A checkpoint folder that cannot be used."""

    exit_code = 4


class MissingCheckpointError(CheckpointError, FileNotFoundError):
    """No checkpoint at the given place."""


class BrokenCheckpointError(CheckpointError):
    """A checkpoint that is incomplete or fails its checks."""


class MirrorError(CheckpointError):
    """A mirror of a run that cannot be reached, read or written."""


class StoppedError(RehearsalError):
    """The run stopped on request at a step boundary; its work is saved."""

    exit_code = 8


class WaitingError(StoppedError):
    """The run waits for what people do outside of it; its work is saved."""

    exit_code = 9


class WeightSyncError(RehearsalError, RuntimeError):
    """A weight sync after which some engine may not have exactly the intended weights."""

    exit_code = 5


class ChecksumError(WeightSyncError):
    """Received bytes differ from the bytes that were sent."""


class ParityError(WeightSyncError):
    """Engine and trainer disagree on the log-probabilities of the same tokens."""


class StaleEngineError(WeightSyncError):
    """An engine was requested to sample from weights that it is not admitted for."""


class NonFiniteError(RehearsalError, ArithmeticError):
    """A loss, reward, log-probability or gradient that is NaN or infinite."""

    exit_code = 6

    def __init__(
        self, what: str, *, where: str = "", fix: str = "", ids: tuple[int, ...] = ()
    ) -> None:
        super().__init__(what, where=where, fix=fix)
        self.ids = ids  # sequences, rows or prompts that caused it, if known

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_non_finite, (self.what, self.where, self.fix, self.ids))


def _rebuild_non_finite(what: str, where: str, fix: str, ids: tuple[int, ...]) -> NonFiniteError:
    return NonFiniteError(what, where=where, fix=fix, ids=ids)


class KLLimitError(RehearsalError, ArithmeticError):
    """The policy has moved further from the reference model than the run allows."""

    exit_code = 6


class LedgerError(RehearsalError, RuntimeError):
    """Sequences were lost, or counted twice."""

    exit_code = 6


class StalenessError(RehearsalError, RuntimeError):
    """A sequence was sampled from weights that are too old for training."""

    exit_code = 6


class RoleError(RehearsalError, RuntimeError):
    """A worker of a role could not do its work."""

    exit_code = 7


class RoleDiedError(RoleError):
    """A role's process has died."""


class DeadlineError(RoleError, TimeoutError):
    """A wait passed its deadline."""


class RoleHungError(DeadlineError):
    """A role's process does not answer, or its work makes no progress."""


class ClusterLostError(RoleError):
    """One of Ray's servers has ended or is stopped: the roles cannot be reached."""


class RewardError(RoleError):
    """The reward could not be computed for any sequence of a batch."""


class EnvironmentFailedError(RoleError):
    """The environment failed in every sequence of a batch."""


class JudgeError(RewardError):
    """A judge gave too few usable verdicts to compare models."""
