"""List runs: `python -m orchestrator.runs.listing [FOLDER] [--sweep]`, the newest first.

State is running (on this machine), finished, failed (its error.log says why) or stopped (with
`resume=FOLDER` it goes on from the checkpoint that is named). `--sweep` compares the jobs of a
sweep and the models that they evaluated.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from orchestrator.process.command_exit import exit_code, say
from orchestrator.process.printing import rendered
from orchestrator.process.program import program
from orchestrator.report.tables import MISSING
from orchestrator.results.summary import Summary, model_label
from orchestrator.runs.reading import RunView, find_runs, read_run
from orchestrator.runs.sweep import Sweep, sweep_of
from orchestrator.runs.sweep_models import model_rows
from orchestrator.telemetry.live import duration
from workers.errors import ConfigError

_HEADS = ("run", "experiment", "state", "started", "time", "result")


def main(arguments: Sequence[str] | None = None) -> int:
    """List the runs below the folder on the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    root = Path(options.folder)
    if options.sweep:
        return exit_code(lambda: _sweep(root, as_json=options.json))
    return exit_code(lambda: _list(root, options.state, as_json=options.json))


def _list(root: Path, state: str, *, as_json: bool) -> None:
    paths = find_runs(root)
    if not paths:
        raise ConfigError(
            "no run is in this folder", where=str(root), fix="name the folder that holds the runs"
        )
    runs = [run for run in map(read_run, paths) if state in ("", run.state)]
    if as_json:
        sys.stdout.write(json.dumps([_plain(run, root) for run in runs], indent=2) + "\n")
        return
    sys.stdout.write(rendered(_table(_HEADS, [_row(run, root) for run in runs])))
    say("".join(f"damaged: {note}\n" for run in runs for note in run.damage))


def _sweep(root: Path, *, as_json: bool) -> None:
    """The jobs of a sweep side by side, and means over those that differ in their seed alone."""
    runs = [read_run(path) for path in find_runs(root)]
    if len(runs) < 2:
        raise ConfigError(
            f"a sweep has several jobs, this folder {len(runs)}", where=str(root),
            fix="name the folder that holds the numbered folders of the jobs",
        )  # fmt: skip
    sweep = sweep_of(runs)
    if as_json:
        sys.stdout.write(json.dumps(_plain_sweep(sweep, root), indent=2) + "\n")
        return
    rows = [
        (run.folder.path.name, *values, _state(run), figure.text() if figure else MISSING)
        for run, values, figure in sweep.jobs
    ]
    result = f"{sweep.figure} [95 %]" if sweep.figure else "result"
    sys.stdout.write(rendered(_table(("job", *sweep.keys, "state", result), rows)))
    if sweep.groups:
        heads = (*sweep.settings, "jobs", "mean over seeds [95 %]")
        means = [(*values, str(mean.jobs), mean.text()) for values, mean in sweep.groups]
        sys.stdout.write(rendered(_table(heads, means)))
    if any(each.spread.jobs > 1 for each in sweep.models):
        heads, cells = model_rows(sweep.models)
        sys.stdout.write(rendered(_table((*sweep.settings, *heads), cells)))
    say("".join(f"damaged: {note}\n" for run in runs for note in run.damage))


def _plain_sweep(sweep: Sweep, root: Path) -> dict[str, object]:
    """Jobs and means over seeds as lists of flat records, which pandas reads as tables."""
    return {
        "jobs": [
            dict(zip(sweep.keys, values, strict=True))
            | _plain(run, root)
            | {"figure": sweep.figure if figure else None,
               "value": figure.value if figure else None}
            for run, values, figure in sweep.jobs
        ],
        "models": [
            dict(zip(sweep.settings, each.values, strict=True))
            | {"model": each.model, "figure": each.figure}
            | asdict(each.spread)
            for each in sweep.models
        ],
    }  # fmt: skip


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def headline(summary: Summary) -> str:
    """The figure that tells most about a run: the last model's win rate, else what was measured."""
    names = summary.ordered_models()
    for name in reversed(names):
        found = summary.preference(name, "sft")
        if found is not None:
            return f"{model_label(name)} preferred to SFT {found.rate:.0%}"
    for name in reversed(names):
        gold = summary.models[name].gold_mean
        if gold is not None:
            return f"{model_label(name)} gold score {gold:.2f}"
    held_out = summary.reward_model.heldout
    if held_out is not None and held_out.accuracy is not None:
        return f"reward model {held_out.accuracy:.1%} of held-out pairs"
    if summary.ledger.trained:
        return f"{summary.ledger.trained:,} sequences trained"
    return ""


def _state(run: RunView) -> str:
    at = f" at {run.place}" if run.place and run.state != "finished" else ""
    return f"{run.state}{at}"


def _row(run: RunView, root: Path) -> list[str]:
    seconds = run.summary.timing.total_seconds
    return [
        _name(run, root),
        run.experiment,
        _state(run),
        _started(run).strftime("%Y-%m-%d %H:%M"),
        duration(seconds) if seconds else "",
        headline(run.summary),
    ]


def _name(run: RunView, root: Path) -> str:
    """Path of the run as it can be typed."""
    return str(root if run.folder.path == root else root / run.folder.path.relative_to(root))


def _started(run: RunView) -> datetime.datetime:
    written = run.folder.config.stat().st_mtime
    return datetime.datetime.fromtimestamp(written, datetime.UTC).astimezone()


def _plain(run: RunView, root: Path) -> dict[str, object]:
    return {
        "run": _name(run, root),
        "experiment": run.experiment,
        "state": run.state,
        "checkpoint": run.place,
        "started": _started(run).isoformat(timespec="seconds"),
        "seconds": run.summary.timing.total_seconds or None,
        "result": headline(run.summary),
        "damage": list(run.damage),
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.runs.listing"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", nargs="?", default="outputs", help="where the runs are (outputs)")
    states = ["running", "finished", "failed", "waiting", "stopped"]
    parser.add_argument("--state", choices=states, default="", help="only runs in this state")
    parser.add_argument("--sweep", action="store_true", help="compare the jobs of a sweep")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
