"""Read the folder of a run: metrics and evaluation as tables, rollouts one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.results.summary import EvaluationRow, Summary
from orchestrator.run_files.damage import complaint
from orchestrator.run_files.samples import Comparison, RolloutSample, read_comparisons, rollout_of
from orchestrator.runs.reading import RunView, find_runs, read_run
from orchestrator.telemetry.metrics import read_metrics
from workers.errors import DataLineError

if TYPE_CHECKING:  # half a second to import
    from pandas import DataFrame

_NESTED = ("lm_eval", "flags")  # tables of their own in `summary.models`


@dataclass(frozen=True, slots=True)
class Run:
    """A run as its folder shows it at this moment; `load` again for a later one."""

    view: RunView

    def __repr__(self) -> str:
        return f"Run({str(self.path)!r}, {self.view.experiment}, {self.view.state})"

    @property
    def path(self) -> Path:
        """The run folder."""
        return self.view.folder.path

    @property
    def state(self) -> str:
        """One of running, finished, failed, stopped."""
        return self.view.state

    @property
    def config(self) -> dict[str, Any]:
        """config.yaml, the resolved configuration."""
        return self.view.config

    @property
    def summary(self) -> Summary:
        """summary.json as typed records; empty until the run has ended."""
        return self.view.summary

    @property
    def report(self) -> Path:
        """The page report.html."""
        return self.view.folder.report

    @property
    def models(self) -> dict[str, Path]:
        """Name -> Hugging Face folder of each model that the run has published."""
        folders = sorted((self.path / "checkpoints").glob("*/config.json"))
        return {file.parent.name: file.parent for file in folders}

    def metrics(self, *names: str, stage: str = "") -> DataFrame:
        """The lines of metrics.jsonl: columns stage, step, name, value, unit, timing.

        Args:
            names: Only these metrics, such as "ppo/score_mean"; none = all.
            stage: Only this stage, such as "ppo"; "" = all.

        Raises:
            DataLineError: A line is no metric record.
        """
        from pandas import DataFrame

        records = [
            asdict(each)
            for each in read_metrics(self.view.folder.metrics)
            if (not names or each.name in names) and stage in ("", each.stage)
        ]
        return DataFrame(records, columns=["stage", "step", "name", "value", "unit", "timing"])

    def evaluation(self) -> DataFrame:
        """One row per evaluated model: what was measured, and how often it was preferred to others.

        `preferred_to_sft` is a fraction with its 95 % interval in `..._low` and `..._high`, over
        `..._n` prompts. Columns that nothing was measured for are left out; units are documented
        in `orchestrator.results.summary.EvaluationRow`.
        """
        from pandas import DataFrame

        rows = {name: self._figures(name) for name in self.summary.ordered_models()}
        return DataFrame.from_dict(rows, orient="index").rename_axis("model")

    def _figures(self, name: str) -> dict[str, float]:
        row: EvaluationRow = self.summary.models[name]
        found = {
            key: value
            for key, value in asdict(row).items()
            if key not in _NESTED and value is not None
        }
        for each in self.summary.preferred:
            if each.model == name:
                key = f"preferred_to_{each.over}"
                found |= {key: each.rate, f"{key}_low": each.low, f"{key}_high": each.high}
                found[f"{key}_n"] = each.n
        return found

    def rollouts(self, *, stage: str = "", step: int | None = None) -> Iterator[RolloutSample]:
        """The recorded samples, one by one, in the order of training; none without PPO.

        Args:
            stage: Only this stage; "" = all.
            step: Only this iteration.

        Raises:
            DataLineError: A line is no sample.
        """
        path = self.view.folder.rollouts
        if not path.is_file():
            return
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith("\n"):  # of a run that was killed, or is writing
                    return
                try:
                    sample = rollout_of(json.loads(line))
                except (ValueError, TypeError) as error:
                    raise DataLineError(
                        f"not a sample: {complaint(error)}",
                        where=f"{path}:{number}",
                        fix="the file was edited or damaged; remove the line",
                    ) from error
                if stage in ("", sample.stage) and step in (None, sample.step):
                    yield sample

    def answers(self) -> list[Comparison]:
        """Answers of all evaluated models to the same prompts; [] without an evaluation."""
        return read_comparisons(self.view.folder)


def load(folder: str | Path) -> Run:
    """Read a run folder, of a finished run or one that goes on.

    Raises:
        ConfigError: It is no folder of a run.
    """
    return Run(read_run(Path(folder)))


def find(root: str | Path = "outputs") -> list[Run]:
    """The runs at or below a folder, the newest first.

    Raises:
        ConfigError: There is no such folder.
    """
    return [Run(read_run(path)) for path in find_runs(Path(root))]
