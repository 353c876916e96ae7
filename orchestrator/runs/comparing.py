"""Compare two runs: `python -m orchestrator.runs.comparing A B`.

Keys that differ, the last value of every metric that differs, and the evaluations with their
differences; those of win rates have a 95 % interval.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.process.command_exit import exit_code, say
from orchestrator.process.printing import rendered
from orchestrator.process.program import program
from orchestrator.report.tables import MISSING
from orchestrator.results.summary import EvaluationRow, Preference, Summary, model_label
from orchestrator.run_files.damage import Damage
from orchestrator.runs.reading import RunView, read_run
from orchestrator.telemetry.metrics import comparable, read_whole_metrics

_ABSENT = "(none)"
# Keys that say where a run writes and when it was started, not what it computes.
_OF_THE_RUN = ("run.dir", "data.date", "resume", "rerun")
_FIGURES = tuple(each.name for each in fields(EvaluationRow) if "float" in str(each.type))

Row = tuple[str, ...]


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison of the two runs on the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _compare(Path(options.a), Path(options.b), options.metrics))


def _compare(a: Path, b: Path, wanted: Sequence[str]) -> None:
    first, second, damage = read_run(a), read_run(b), Damage()
    keys = list(different_keys(first.config, second.config))
    equal, metrics = different_metrics(
        _last_values(first, damage), _last_values(second, damage), wanted
    )
    parts: list[RenderableType] = [
        _section("keys that differ", ("key", "A", "B"), keys),
        _section(
            f"metrics: {equal:,} end at the same value, {len(metrics):,} do not (last values)",
            ("stage", "metric", "A", "B", "B - A"),
            metrics,
        ),
        _section(
            "evaluation on held-out prompts",
            ("model", "figure", "A", "B", "B - A [95 %]"),
            list(evaluation_rows(first.summary, second.summary)),
        ),
    ]
    sys.stdout.write(f"A  {a}: {first.state}\nB  {b}: {second.state}\n")
    sys.stdout.write(rendered(Group(*parts)))
    notes = [*first.damage, *second.damage, *damage.notes()]
    say("".join(f"damaged: {note}\n" for note in notes))


def different_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> Iterator[Row]:
    """(key, value in A, value in B) of each key that differs, dotted, in the order of A."""
    first, second = dict(_flat(a)), dict(_flat(b))
    for key in {**first, **second}:
        found = [_shown(side[key]) if key in side else _ABSENT for side in (first, second)]
        if found[0] != found[1] and key not in _OF_THE_RUN:
            yield key, *found


def keys_and_values(config: Mapping[str, Any]) -> dict[str, str]:
    """Every key that says what a run computes, dotted, with its value as text."""
    return {key: _shown(value) for key, value in _flat(config) if key not in _OF_THE_RUN}


def different_metrics(
    a: Mapping[tuple[str, str], float],
    b: Mapping[tuple[str, str], float],
    wanted: Sequence[str] = (),
) -> tuple[int, list[Row]]:
    """Compare last values, (stage, metric) -> value.

    Args:
        a: Of the first run.
        b: Of the second run.
        wanted: Patterns such as `ppo/gold*`; a metric must match one. None: all metrics.

    Returns:
        How many are equal, and (stage, metric, A, B, B - A) of the others, in stages of both runs.
    """
    equal, rows = 0, list[Row]()
    both = {stage for stage, _ in a} & {stage for stage, _ in b}
    for stage, name in {**a, **b}:
        if stage not in both or (wanted and not any(fnmatchcase(name, w) for w in wanted)):
            continue
        one, other = a.get((stage, name)), b.get((stage, name))
        if repr(one) == repr(other):  # NaN equals NaN
            equal += 1
            continue
        moved = MISSING if one is None or other is None else f"{other - one:+.4g}"
        rows.append((stage, name, _number(one), _number(other), moved))
    return equal, rows


def evaluation_rows(a: Summary, b: Summary) -> Iterator[Row]:
    """(model, figure, A, B, difference) of the models that both runs evaluated."""
    for model in a.ordered_models():
        if model not in b.models:
            continue
        for p in a.preferred:
            q = b.preference(model, p.over)
            if p.model == model and q is not None:
                low, high = difference_interval(p, q)
                moved = f"{q.rate - p.rate:+.1%} [{low:+.1%} to {high:+.1%}]"
                what = f"preferred to {model_label(p.over)}"
                yield model_label(model), what, f"{p.rate:.1%}", f"{q.rate:.1%}", moved
        for name in _FIGURES:
            one, other = getattr(a.models[model], name), getattr(b.models[model], name)
            if one is not None and other is not None:
                what = name.replace("_", " ").removesuffix(" mean")
                moved = f"{other - one:+.4g}"
                yield model_label(model), what, _number(one), _number(other), moved


def difference_interval(a: Preference, b: Preference) -> tuple[float, float]:
    """95 % interval of the difference of two win rates, b less a, from their own intervals.

    The square-and-add rule for independent samples (Newcombe 1998, method 10). Runs that were
    evaluated on the same prompts are more alike than independent ones, so for them it is too wide.
    """
    moved = b.rate - a.rate
    low = math.hypot(b.rate - b.low, a.high - a.rate)
    high = math.hypot(b.high - b.rate, a.rate - a.low)
    return moved - low, moved + high


def _last_values(run: RunView, damage: Damage) -> dict[tuple[str, str], float]:
    if not run.folder.metrics.exists():
        return {}
    records = comparable(read_whole_metrics(run.folder.metrics, damage))
    return {(record.stage, record.name): record.value for record in records}


def _flat(section: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in section.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _shown(value: object) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return '""' if value == "" else str(value)


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.6g}"


def _section(title: str, heads: Sequence[str], rows: Sequence[Row]) -> RenderableType:
    if not rows:
        return Text(f"{title}: none\n")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return Group(Text(title), table)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.runs.comparing"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("a", metavar="A", help="folder of a run")
    parser.add_argument("b", metavar="B", help="folder of another run")
    parser.add_argument(
        "--metrics", nargs="+", default=[], metavar="PATTERN", help="only these, as ppo/gold*"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
