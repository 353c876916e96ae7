"""Schedule and publication of a run's checkpoints, and the state of an interrupted stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from orchestrator.batching.batch_sizes import ONLINE_STAGES
from orchestrator.checkpoints.best import Scores
from orchestrator.checkpoints.saved_runs import Needs, SavedRun, SavedRuns, steps_of
from orchestrator.config.run import CheckpointConfig, StageName
from orchestrator.mirror.background import Mirror
from orchestrator.mirror.pruning import Keep
from orchestrator.process.stop_signals import StopRequest
from orchestrator.results.summary import MirrorTotals
from orchestrator.roles.interfaces import Answer, Saver
from orchestrator.run_files.folder import RunFolder
from workers.errors import RehearsalError, StoppedError
from workers.records.processes import FileRecord

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SavedStage:
    """An interrupted stage, as stored in a checkpoint."""

    step: int  # steps done
    own: dict[str, Any]  # the stage's own state
    folder: str  # for `Trainer.restore`


@dataclass(frozen=True, slots=True)
class _Saving:
    """A checkpoint that is still being written."""

    folder: Path
    progress: dict[str, Any]
    savers: Sequence[Saver]
    products: list[Path]


class Teller(Protocol):
    """Shows a text to the user."""

    def __call__(self, text: str) -> None:
        """Show `text`."""
        ...


class Saves:
    """The checkpoints of one run: taken at step boundaries, written while training continues."""

    def __init__(
        self,
        run: RunFolder,
        config: CheckpointConfig,
        stop: StopRequest | None = None,
        facts: Mapping[str, Any] | None = None,
        resumed: SavedRun | None = None,
        scores: Scores | None = None,
        needs: Needs | None = None,
        mirror: Mirror | None = None,
        stages: Mapping[str, str] | None = None,
    ) -> None:
        """Prepare to save.

        Args:
            run: The run folder.
            config: How often to save, and how many checkpoints to keep.
            stop: Whether a signal has requested the end of the run.
            facts: Resolved configuration and package versions, for the manifest.
            resumed: The checkpoint that the run resumes from.
            scores: The values by which checkpoints are compared.
            needs: The models that the run still reads.
            mirror: Where finished checkpoints are copied to.
            stages: Name of a stage run -> its stage, where they differ.
        """
        self._stages = stages or {}
        self._runs = SavedRuns(run, needs)
        self._config = config
        self._stop = stop or StopRequest()
        self._facts = {"config": {}, "versions": {}} | dict(facts or {})
        self._resumed = resumed
        self._mirror = mirror
        self._saving: _Saving | None = None
        self.scores = scores or Scores()
        self.scores.restore(resumed.progress.get("scores", {}) if resumed else {})
        self.finished: list[str] = list(resumed.progress["finished"]) if resumed else []

    @property
    def stopping(self) -> bool:
        """Whether a signal has requested the end of the run."""
        return self._stop.requested

    def best_of(self, stage: str) -> str:
        """A sentence on the best checkpoint of a stage; "" if its metrics are not compared."""
        scores = self.scores
        kind = self._stages.get(stage, stage)
        family = "rejection" if kind == StageName.rejection_sampling else "ppo"
        if kind not in ONLINE_STAGES or scores.metric.partition("/")[0] != family:
            return ""
        saved = self._runs.steps().get(stage, {})
        best = scores.best(stage, saved)
        if best is None:
            return f"{scores.metric} was not measured of any checkpoint of {stage}: none is kept"
        told = f"best {scores.metric} of {stage}'s checkpoints: {scores.values[stage][best]:.4g}"
        # The last checkpoint has no trainer state: its weights are the published model.
        last = not any(saved[best].glob("policy.*"))
        where = f"published as {stage}" if last else f"kept as {saved[best].name}"
        return f"{told} after step {best}, {where}"

    @property
    def mirrored(self) -> MirrorTotals | None:
        """What was copied to the mirror so far; None without one."""
        return self._mirror.totals() if self._mirror else None

    def go_on_copying(self, saved: SavedRun | None) -> None:
        """Have the checkpoint that the run resumes from copied, if the mirror lacks it."""
        if saved is not None:
            self._copy(saved.path)

    def _copy(self, path: Path) -> None:
        if self._mirror is not None:
            names = [*self._mirror.names, path.name]
            kept = frozenset(self._comparable(steps_of(names)) if self.scores.metric else ())
            keep = Keep(self._config.keep_last, self._config.keep_every, kept)
            self._mirror.submit(path, keep)

    def _prune(self) -> None:
        """Delete the checkpoints that need not be kept."""
        compares, mirror = bool(self.scores.metric), self._mirror
        kept = self._comparable(self._runs.steps()) if compares else set[Path]()
        kept |= mirror.pinned() if mirror else set()
        self._runs.prune(self._config.keep_last, self._config.keep_every, kept)
        if compares:
            copies = steps_of(mirror.names if mirror else ())
            for stage, saved in self._runs.steps().items():
                self.scores.forget(stage, {*saved, *copies.get(stage, {})})

    def _comparable(self, saved_steps: Mapping[str, Mapping[int, T]]) -> set[T]:
        """The best checkpoint of each stage, and those that may still become the best."""
        kept: set[T] = set()
        for stage, saved in saved_steps.items():
            still = self.scores.open(stage, saved) if stage not in self.finished else set()
            steps = still | {self.scores.best(stage, saved)}
            kept |= {each for step, each in saved.items() if step in steps}
        return kept

    def within(self, stage: str) -> SavedStage | None:
        """The saved state of this stage, if the run was interrupted in it; None: start it."""
        saved = self._resumed
        if saved is None or saved.stage != stage or stage in self.finished:
            return None
        return SavedStage(saved.step, saved.progress["own"], str(saved.path))

    def due(self, stage: str, step: int) -> bool:
        """Whether a checkpoint is due after `step` steps."""
        every = self._config.steps(self._stages.get(stage, stage))
        return self._stop.requested or bool(every and step % every == 0)

    def start(
        self, progress: dict[str, Any], savers: Sequence[Saver], products: list[Path]
    ) -> None:
        """Have the savers copy their state; they write it while training continues."""
        self.settle()
        folder = self._runs.begin(progress["stage"], progress["step"])
        self._saving = _Saving(folder, progress, savers, products)
        copying: list[Answer[None]] = [saver.snapshot(str(folder)) for saver in savers]
        for pending in copying:
            pending.result()
        if not savers:
            self.settle()  # nothing is written in the background

    def settle(self) -> None:
        """Wait for the checkpoint that is being written, if there is one, and publish it.

        Raises:
            CheckpointError: it could not be written; the previous one is untouched.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            writing = [saver.written() for saver in saving.savers]
            records: list[FileRecord] = [r for answer in writing for r in answer.result()]
            published = self._runs.publish(
                saving.folder, records, saving.progress, self._facts, saving.products
            )
        except RehearsalError:
            self._runs.discard(saving.folder)
            raise
        self._copy(published)
        self._prune()

    def done(self) -> None:
        """Call when the last stage is saved: later stop signals have no effect."""
        self._stop.close()

    def go_back(self, finished: Sequence[str]) -> SavedRun | None:
        """Go back to the newest intact checkpoint and return it; discards one being written.

        Args:
            finished: the finished stages if there is no checkpoint; None is returned then.
        """
        saving, self._saving = self._saving, None
        if saving is not None:
            self._runs.discard(saving.folder)
        saved, _ = self._runs.newest()
        if saved is not None:
            self._runs.continue_from(saved)
        self._resumed = saved
        self.scores.restore(saved.progress.get("scores", {}) if saved else {})
        self.finished = list(saved.progress["finished"] if saved else finished)
        return saved

    def stop_if_asked(self) -> None:
        """End the run here if a signal has requested it.

        Raises:
            StoppedError: a signal has requested it.
        """
        if self._stop.requested:
            self._stop.close()
            saved = self._runs.whole()
            raise StoppedError(
                f"stopped; everything up to {saved[-1].name} is saved"
                if saved
                else "stopped; there is nothing to save yet",
                where=str(self._runs.path.parent),
                fix=f"resume it with resume={self._runs.path.parent}",
            )
