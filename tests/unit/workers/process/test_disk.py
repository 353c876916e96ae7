"""Whatever a run writes, a disk that takes no more of it is said in one way, with exit code 4."""

import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from orchestrator.report.charts.plots import draw_plots
from orchestrator.results.summary import Summary
from orchestrator.run_files.folder import RunFolder, write_text
from orchestrator.run_files.rankings import save_rankings
from orchestrator.run_files.samples import RolloutSample, append_rollouts
from orchestrator.telemetry.metrics import MetricRecord
from workers.errors import CheckpointError
from workers.records.arrays import Ragged
from workers.records.training import Ranking
from workers.scorers.judge_cache import VerdictCache

_FULL = "/dev/full"  # takes no byte: every write is ENOSPC


def _rankings(folder: Path) -> None:
    (folder / ".rankings.tmp").mkdir()
    sequences = Ragged.from_rows([[1, 2], [1, 3]], np.int32)
    save_rankings(folder / "rankings", [Ranking(0, sequences, np.array([0, 1]))])


def _plot(folder: Path) -> None:
    (folder / "reward.png").symlink_to(_FULL)
    records = [MetricRecord.make("ppo", step, "ppo/score_mean", 0.5) for step in range(2)]
    draw_plots(folder, records, Summary())


def _samples(folder: Path) -> None:
    run = RunFolder(folder / "run").create()
    (run.samples / "rollouts.jsonl").symlink_to(_FULL)
    sample = RolloutSample("ppo", 0, 0, "a prompt", "a response", 0.5, 0.1, "stop", 1)
    append_rollouts(run, [sample])


def _verdict(folder: Path) -> None:
    cache = VerdictCache(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))  # no file may grow
    try:
        cache.put("key", "A")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _text(folder: Path) -> None:
    write_text(folder / "absent" / "file", "text")


def _lock(folder: Path) -> None:
    (folder / ".lock").mkdir()
    with RunFolder(folder).locked():
        pass


@pytest.mark.parametrize("write", [_rankings, _plot, _samples, _verdict, _text, _lock])
def test_a_file_that_cannot_be_written_is_a_typed_error(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        write(tmp_path)
    assert str(tmp_path) in caught.value.where
    assert caught.value.exit_code == 4
