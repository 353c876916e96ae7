"""The report of a run: plots and one self-contained page, made from the run folder alone.

`python -m orchestrator.report RUN_FOLDER` makes it again, also from a run that ended early.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import lexists
from pathlib import Path
from typing import Any

import yaml

from orchestrator.batching.batch_sizes import SAMPLING_STAGES
from orchestrator.process.command_exit import exit_code, say
from orchestrator.process.printing import rendered
from orchestrator.process.program import program
from orchestrator.report.charts.chart import Chart, panels
from orchestrator.report.charts.curves import further, groups, terms_of
from orchestrator.report.costs import cost_rows, time_rows
from orchestrator.report.heading import heading, state_of
from orchestrator.report.losses import loss_rows
from orchestrator.report.measured import Measured
from orchestrator.report.overoptimization import hidden_reward_models
from orchestrator.report.page import Page, render_page
from orchestrator.report.tables import places, render_result
from orchestrator.results.summary import Summary, read_summary
from orchestrator.run_files.damage import Damage
from orchestrator.run_files.folder import RunFolder, write_text
from orchestrator.run_files.origin import read_origin
from orchestrator.run_files.samples import Comparison, read_comparisons, read_rollouts
from orchestrator.telemetry.metrics import MetricRecord, read_whole_metrics
from workers.errors import DataError
from workers.process.disk import writing

_MOST_CONFIG = 1 << 20  # bytes shown of a config.yaml; ours have some thousands


@dataclass(frozen=True, slots=True)
class Report:
    """A report that was made, and what of the run folder it could not show."""

    path: Path
    summary: Summary
    comparisons: list[Comparison]
    damage: list[str]  # a sentence for each file, line or part that is not used


def write_report(folder: RunFolder) -> Report:
    """Draw the plots and write report.html from the files of the run.

    What is damaged is left out, and said in the page and in the result. Without a summary (the run
    ended early) the page shows what metrics and samples there are.

    Raises:
        DataError: the folder is none, or nothing in it can be shown.
        CheckpointError: the disk is full or read-only.
    """
    damage = Damage()
    _require_folder(folder)
    summary, comparisons, rollouts = Summary(), [], []
    if lexists(folder.summary):
        summary = read_summary(folder.summary, damage)
    records = [] if _only_evaluated(folder, summary) else read_whole_metrics(folder.metrics, damage)
    comparisons, rollouts = read_comparisons(folder, damage), read_rollouts(folder, damage)
    config, keys = _config(folder, damage)
    origin = read_origin(folder, damage)
    if not (records or comparisons or rollouts or summary != Summary()):
        notes = damage.notes()
        raise DataError(
            "there is nothing to report" + (f": {'; '.join(notes[:3])}" if notes else ""),
            where=str(folder.path),
            fix="give the folder of a run, which holds metrics.jsonl",
        )
    with writing(folder.plots, "a folder"):
        folder.plots.mkdir(exist_ok=True)
    from orchestrator.report.charts.plots import (
        draw_plots,  # half a second of imports, at the end only
    )

    drawn = draw_plots(folder.plots, records, summary, damage)
    page = Page(
        title=folder.path.resolve().name,
        summary=summary,
        charts=_charts(records, summary),
        comparisons=comparisons,
        rollouts=rollouts,
        times=time_rows(records),
        costs=cost_rows(summary, records),
        config=config,
        damage=damage.notes(),
        heading=heading(keys, origin, state_of(folder, keys, summary)),
        losses=loss_rows(records),
        drawings=[
            (caption, (folder.plots / name).read_bytes())
            for name, caption in drawn.items()
            if name.endswith(".svg")
        ],
    )
    write_text(folder.report, render_page(page))
    return Report(folder.report, summary, comparisons, damage.notes())


def _only_evaluated(folder: RunFolder, summary: Summary) -> bool:
    """Whether the run has no steps that it could have measured: its empty file is whole."""
    ran = set(summary.timing.stages)
    sampled = bool(ran) and ran <= {stage.value for stage in SAMPLING_STAGES}
    return sampled and folder.metrics.is_file() and not folder.metrics.stat().st_size


def _require_folder(folder: RunFolder) -> None:
    try:
        found = folder.path.is_dir()
    except OSError as error:  # a name that is too long
        raise DataError(
            f"the folder cannot be looked at: {error.strerror}", where=f"{folder.path}"[:200]
        ) from error
    if not found:
        raise DataError(
            "there is no such folder", where=str(folder.path), fix="give the folder of a run"
        )


def _charts(records: Sequence[MetricRecord], summary: Summary) -> list[Chart]:
    """A chart for each panel of curves that has data."""
    measured = Measured()
    measured.add(records)
    hidden = hidden_reward_models(summary)
    names = [*summary.timing.stages, *summary.models, *(record.stage for record in records)]
    others = further([name for name in names if name not in hidden])
    found = groups(others, terms_of(measured.names())).values()
    return [each for some in found for each in panels(measured, some, readable=True)]


def _config(folder: RunFolder, damage: Damage) -> tuple[str, dict[str, Any]]:
    """The text of config.yaml, and its keys if it can be read."""
    text = damage.text(folder.config, _MOST_CONFIG) if lexists(folder.config) else None
    loaded: object = None
    if text is not None:
        loaded = damage.part(folder.config, "it", lambda: _yaml(text), None)
        if loaded is not None and not isinstance(loaded, dict):
            damage.note(folder.config, "it is no mapping")
    return text or "", loaded if isinstance(loaded, dict) else {}


def _yaml(text: str) -> object:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the run folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.report"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", metavar="RUN_FOLDER")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _show(RunFolder(Path(options.folder))))


def _show(folder: RunFolder) -> None:
    made = write_report(folder)
    sys.stdout.write(rendered(render_result(made.summary, made.comparisons)) + places(folder))
    sys.stdout.flush()
    say("".join(f"damaged: {note}\n" for note in made.damage))
