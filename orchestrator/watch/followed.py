"""A run that is followed: a thread reads what its files gained, pages show what was read."""

from __future__ import annotations

import threading
from dataclasses import dataclass

from orchestrator.report.measured import Measured
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.following import Following, News
from orchestrator.run_files.samples import Answered, RolloutSample, answered_of, rollout_of
from orchestrator.telemetry.metrics import MetricRecord
from orchestrator.watch.index import Index
from orchestrator.watch.sequences import Sequence
from workers.errors import RehearsalError

_PAUSE_SECONDS = 1.0  # between two looks at files that did not grow
_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How much of the files was read."""

    read: int  # bytes
    size: int

    @property
    def done(self) -> bool:
        """Whether all there was at the last look is read."""
        return self.read >= self.size


class Followed:
    """Metrics and sequences of a run folder, kept up to date.

    Use as `with closing(Followed(folder))`; the thread starts with `start`, so that tests can look
    by hand.
    """

    def __init__(self, folder: RunFolder) -> None:
        self.folder = folder
        self.measured, self.index = Measured(), Index()
        #: What of the files cannot be shown, a sentence each; replaced as a whole after each look.
        self.notes: list[str] = []
        #: How much of the files was read.
        self.progress = Progress(0, 1)
        self._metrics = Following(folder.metrics, MetricRecord.from_fields)
        self._rollouts = Following(folder.rollouts, rollout_of)
        self._answers = Following(folder.samples / "answers.jsonl", answered_of)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    def start(self) -> None:
        """Begin to read in the background."""
        self._thread.start()

    def close(self) -> None:
        """End reading, and delete the index."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(_END_SECONDS)
        self.index.close()

    def look(self) -> bool:
        """Read the next piece of each file; whether there is more to read at once.

        Raises:
            DataError: the index has no room.
        """
        metrics = self._metrics.look()
        if metrics.replaced:
            self.measured.clear()
        self.measured.add(metrics.records)
        rollouts, answers = self._rollouts.look(), self._answers.look()
        if rollouts.replaced or answers.replaced:
            rollouts, answers = self._again()
        self.index.add(Sequence.of_rollout(sample) for sample in rollouts.records)
        self.index.add(each for line in answers.records for each in Sequence.of_answers(line))
        self._tell()
        return metrics.more or rollouts.more or answers.more

    def _again(self) -> tuple[News[RolloutSample], News[Answered]]:
        """Both files from their starts, as one of them was cut or replaced."""
        self.index.clear()
        self._rollouts = Following(self._rollouts.path, rollout_of)
        self._answers = Following(self._answers.path, answered_of)
        return self._rollouts.look(), self._answers.look()

    def _tell(self, failure: RehearsalError | None = None) -> None:
        files = (self._metrics, self._rollouts, self._answers)
        found = [note for each in files for note in each.damage.notes()]
        found += [
            f"{each.path}: its last line is not complete ({each.torn:,} bytes)"
            for each in files
            if each.torn
        ]
        if not self._metrics.size and not self._metrics.damage.notes():
            found.append(f"{self._metrics.path}: no metrics yet")
        if failure is not None:
            found.append(f"nothing more is read: {failure}")
        self.notes = found
        self.progress = Progress(sum(f.place + f.torn for f in files), sum(f.size for f in files))

    def _follow(self) -> None:
        while not self._ended.is_set():
            try:
                more = self.look()
            except RehearsalError as error:
                self._tell(error)
                return
            if not more:
                self._ended.wait(_PAUSE_SECONDS)
