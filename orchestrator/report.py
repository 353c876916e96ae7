"""The report of a run: plots and one self-contained page, made from the run folder alone.

`python -m orchestrator.report RUN_FOLDER` makes it again, also from a run that ended early.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.command import exit_code
from orchestrator.metrics import read_metrics
from orchestrator.page import Page, render_page
from orchestrator.plots import draw_plots
from orchestrator.printing import rendered
from orchestrator.run_folder import RunFolder, write_text
from orchestrator.samples import read_comparisons, read_rollouts
from orchestrator.summary import Summary, read_summary
from orchestrator.tables import places, render_result, time_rows
from workers.disk import writing
from workers.errors import DataError


def write_report(folder: RunFolder) -> Path:
    """Draw the plots and write report.html from the files of the run; returns its path.

    Without a summary (the run ended early) the page shows what metrics and samples there are.

    Raises:
        DataError: the folder holds no metrics, or a file in it is damaged.
        CheckpointError: the disk is full or read-only.
    """
    if not folder.metrics.exists():
        raise DataError("no metrics.jsonl", where=str(folder.path), mend="give the folder of a run")
    summary = read_summary(folder.summary) if folder.summary.exists() else Summary()
    with writing(folder.plots, "a folder"):
        folder.plots.mkdir(exist_ok=True)
    records = read_metrics(folder.metrics)
    captions = draw_plots(folder.plots, records, summary)
    page = Page(
        title=folder.path.resolve().name,
        summary=summary,
        plots=[(caption, folder.plots / name) for name, caption in captions.items()],
        comparisons=read_comparisons(folder),
        rollouts=read_rollouts(folder),
        times=time_rows(records),
        config=folder.config.read_text(encoding="utf-8") if folder.config.exists() else "",
    )
    write_text(folder.report, render_page(page))
    return folder.report


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the report of the run folder named on the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.report", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", metavar="RUN_FOLDER")
    options = parser.parse_args(arguments)
    return exit_code(lambda: _show(RunFolder(Path(options.folder))))


def _show(folder: RunFolder) -> None:
    write_report(folder)
    summary = read_summary(folder.summary) if folder.summary.exists() else Summary()
    sys.stdout.write(rendered(render_result(summary, read_comparisons(folder))) + places(folder))


if __name__ == "__main__":
    sys.exit(main())
