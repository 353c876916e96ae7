"""Recovery of a stage within the process, by the same path as `resume=auto`.

After a loss, the groups that lost a worker are ended. Then, or after a NaN or an excess of KL, the
run goes back to its newest checkpoint, and the stage is called again: `session.saves.within` gives
its step, exactly as in a new process.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestrator.config.cluster import RoleName
from orchestrator.config.training import OnLimit, OnNonFinite
from orchestrator.session import driver_state
from orchestrator.session.corrections import keep_culprits
from orchestrator.session.session import Outlived, Session
from workers.errors import (
    ChecksumError,
    DeadlineError,
    KLLimitError,
    NonFiniteError,
    ParityError,
    RehearsalError,
    RoleDiedError,
    StaleEngineError,
    WeightSyncError,
)

# Errors that can follow from a lost worker; a transfer can fail before the death is detected.
_SIGNS = (RoleDiedError, DeadlineError, WeightSyncError)
_DEFECTS = (ChecksumError, ParityError, StaleEngineError)  # no process was lost: the run must fail


def run_supervised(session: Session, stage: Callable[[Session], None]) -> None:
    """Run a stage to its end; replace lost workers and correct bad numbers on the way.

    Raises:
        RehearsalError: the stage's error, if it is no loss and cannot be corrected, or a worker was
            lost too often.
    """
    beginning = driver_state.capture(session, session.position.stage, 0, {})
    while True:
        try:
            return stage(session)
        except NonFiniteError as error:
            _amend_numbers(session, error)
            _go_back(session, beginning)
        except KLLimitError as error:
            if session.config.algorithm.kl.on_limit is OnLimit.stop:
                raise
            _require_patience(session, error)
            session.corrections.for_kl()
            _go_back(session, beginning)
        except _SIGNS as error:
            if isinstance(error, _DEFECTS):
                raise
            _replace(session, error)
            _go_back(session, beginning)


def _amend_numbers(session: Session, error: NonFiniteError) -> None:
    """Record the sequences that caused the error, and exclude them if configured and useful."""
    keep_culprits(session, error.what, error.ids, session.parts)
    wanted = session.config.algorithm.on_non_finite is not OnNonFinite.stop
    _require_patience(session, error)
    place, kind = session.position, session.run.stage if session.run else ""
    if not wanted or not session.corrections.for_numbers(error, place.stage, place.step, kind):
        raise error
    session.live.note(f"going back because {error.what}")


def _require_patience(session: Session, error: RehearsalError) -> None:
    if session.corrections.made >= session.config.run.supervision.max_restarts:
        raise error


def _replace(session: Session, error: RehearsalError) -> None:
    try:
        lost = session.fleet.replace_lost()
    except RehearsalError as last:
        last.what += f"; the loss that could not be recovered: {error.what}"
        raise last from error
    if not lost:
        raise error
    session.losses.add(lost, error)
    session.outlived = Outlived(session.parts, session.losses.count)


def _go_back(session: Session, beginning: dict[str, Any]) -> None:
    """Go back to the newest checkpoint, or without one to the beginning of the stage."""
    saved = session.saves.go_back(beginning["finished"])
    driver_state.go_back(session, saved.progress if saved else beginning)
    session.fleet.abandon()
    session.position.step, session.parts = 0, ()
    if not session.fleet.holds(RoleName.rollout):
        session.forget_engines()
        session.outlived = None  # its sequences may have been on the same node
    where = f"after {saved}" if saved else "from the beginning of the stage"
    session.live.note(f"going on {where}")
