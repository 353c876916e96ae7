"""A run's mirror from its configuration, and what it does at the run's start and end."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from orchestrator.config.schema import Config
from orchestrator.mirror.background import Mirror, tell_plainly
from orchestrator.mirror.claim import Claim, find_claim
from orchestrator.mirror.connect import connect
from orchestrator.mirror.restoring import newer_names, restore
from orchestrator.mirror.store import Store
from orchestrator.process.stop_signals import StopRequest
from orchestrator.run_files.folder import RunFolder
from workers.errors import ConfigError

Left = Callable[[], float]  # seconds that are left


def open_mirror(
    config: Config, folder: RunFolder, given: Collection[Path] = ()
) -> tuple[Mirror | None, list[str]]:
    """Try the mirror of a run; with `resume=auto` restore from it what the run folder lacks.

    Args:
        config: The run.
        folder: Its folder, locked.
        given: Models that the run starts from; they stay where they are.

    Returns:
        The mirror, not begun, and notes for the user; None without `run.mirror`.

    Raises:
        ConfigError: `run.mirror` is no usable URL, or belongs to another run.
        BrokenCheckpointError: no copy in the mirror is whole.
        MirrorError: the mirror cannot be reached, read or written.
    """
    if not config.run.mirror:
        return None, []
    store, claim, newer = _checked(config, folder)
    found = restore(store, folder, claim, given) if newer else None
    return Mirror(store, folder, claim), list(found.notes) if found else []


def mirror_outlook(config: Config, folder: RunFolder) -> list[str]:
    """What `open_mirror` would restore, as a sentence; empty if nothing. Raises as that does."""
    if not config.run.mirror:
        return []
    store, _, newer = _checked(config, folder)
    return [f"restores {newer[-1]} from {store.url} and continues after it"] if newer else []


@contextmanager
def mirrored(mirror: Mirror | None, seconds: float, stop: StopRequest) -> Iterator[Left]:
    """At the end of the block copy what is missing, also if it fails; never after Ctrl-C.

    Args:
        mirror: The mirror of the run, if it has one.
        seconds: How long that may take.
        stop: A signal limits it to the grace that is left.

    Yields:
        A function for `Mirror.finish`: its time starts with the first call.
    """
    left = _countdown(seconds, stop)
    try:
        yield left
    except KeyboardInterrupt:
        raise
    except BaseException:
        if mirror is not None:
            mirror.tell = tell_plainly
            mirror.finish(left)
            mirror.results(left)
        raise
    if mirror is not None:
        mirror.tell = tell_plainly
        mirror.results(left)


def _checked(config: Config, folder: RunFolder) -> tuple[Store, Claim, list[str]]:
    """The store, the run's claim on it, and the copies to restore from, oldest first."""
    store = connect(config.run)
    claim = find_claim(store, folder, config.resume)
    newer = [] if claim.is_new else newer_names(store, folder)
    if newer and config.resume != "auto":
        raise ConfigError(
            f"the mirror holds {newer[-1]}, which is newer than all in this run folder",
            where=f"run.mirror={store.url}",
            fix="resume=auto restores it; to go on from the older state, give another run.mirror",
        )
    return store, claim, newer


def _countdown(seconds: float, stop: StopRequest) -> Left:
    until: list[float] = []

    def left() -> float:
        now = time.monotonic()
        if not until:
            until.append(now + seconds)
        end = min(until[0], stop.until) if stop.requested else until[0]
        return end - now

    return left
