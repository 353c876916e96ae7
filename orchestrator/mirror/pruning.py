"""Delete the copies that a mirror need not keep: only objects that a record of this run lists."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from orchestrator.checkpoints.saved_runs import superfluous
from orchestrator.mirror.claim import complete_names, copy_names
from orchestrator.mirror.records import MODELS, Copy, begun, complete, objects_of
from orchestrator.mirror.restoring import read_copy
from orchestrator.mirror.store import Store
from workers.errors import BrokenCheckpointError


@dataclass(frozen=True, slots=True)
class Keep:
    """Which copies stay, as in the run folder."""

    last: int  # newest
    every: int  # steps that this divides; 0: none
    names: frozenset[str]  # for their metric


def prune(store: Store, run: str, newest: str, keep: Keep) -> list[str]:
    """Delete superfluous copies, unfinished ones, and all after the newest.

    A copy with a higher number than the newest is of steps that the run has gone back from.

    Args:
        store: The mirror.
        run: The run that it belongs to; objects that no record of it lists are never deleted.
        newest: The copy that was completed last.
        keep: Which copies stay.

    Returns:
        The complete copies that stay, oldest first.

    Raises:
        MirrorError: the mirror cannot be read, or an object cannot be deleted.
    """
    whole = complete_names(store)
    kept = whole[: whole.index(newest) + 1] if newest in whole else whole
    due = superfluous(kept, keep.last, keep.every, keep.names)
    stay = [name for name in kept if name not in due]
    records = [_readable(store, run, name, (complete(name), begun(name))) for name in stay]
    used = objects_of(each for each in records if each is not None)
    known = None not in records  # else it is not known which models they use
    for name in copy_names(store):
        if name not in stay:
            _delete(store, run, name, used, models_too=known)
    return stay


def _delete(store: Store, run: str, name: str, used: Collection[str], *, models_too: bool) -> None:
    copy = _readable(store, run, name, (complete(name), begun(name)))
    if copy is None:  # nothing says that these objects are the run's
        return
    store.delete([complete(name)])  # first: from here on it is no copy
    free = {each for each in objects_of([copy]) if each not in used}
    store.delete(sorted(each for each in free if models_too or not each.startswith(f"{MODELS}/")))
    store.delete([begun(name)])  # last: it lists what may be left if this is interrupted


def _readable(store: Store, run: str, name: str, markers: tuple[str, str]) -> Copy | None:
    for marker in markers:
        try:
            return read_copy(store, run, name, marker)
        except BrokenCheckpointError:
            continue
    return None
