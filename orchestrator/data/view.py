"""Shows an inspection: progress while it runs, then tables and samples."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from rich.box import SIMPLE
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from orchestrator.data.inspection import Inspection, Piece, Seen, buckets, quantile
from orchestrator.process.printing import plain_console, rendered
from workers.data.formats.lines import Meter

_SAMPLE_CHARACTERS = 1200  # of each stretch; the middle of a longer one is left out
_BAR = 40  # characters of the longest histogram bar
_LINE_SECONDS = 5.0
_COLUMNS = 20  # unread columns that are named


def follow(
    steps: Iterable[Inspection], meter: Meter, source: str, stream: TextIO | None = None
) -> None:
    """Run an inspection to its end: a progress bar on a terminal, a line every 5 s elsewhere."""
    console = plain_console(stream or sys.stderr)
    if console.is_terminal and not console.is_dumb_terminal:
        _follow_with_bar(steps, meter, source, console)
        return
    began = last = time.monotonic()
    for inspection in steps:
        now = time.monotonic()
        if now - last >= _LINE_SECONDS:
            last = now
            console.print(_progress(inspection, meter, now - began), soft_wrap=True)


def render(inspection: Inspection, source: str, seconds: float, meter: Meter) -> RenderableType:
    """The whole report."""
    parts: list[RenderableType] = [_counts(inspection, source, seconds, meter)]
    if inspection.drops:
        parts.append(_drops(inspection))
    completions = "document" if inspection.kind == "pretraining" else "completion"
    for name, lengths in (("prompt", inspection.prompts), (completions, inspection.completions)):
        if lengths:
            parts.append(_histogram(f"{name} {inspection.unit}", lengths))
    parts += [_sample(each, number) for number, each in enumerate(inspection.samples, 1)]
    return Group(*parts)


def print_report(report: RenderableType, stream: TextIO | None = None) -> None:
    """Write a report to standard output, or to a stream."""
    (stream or sys.stdout).write(rendered(report, stream))


def _follow_with_bar(
    steps: Iterable[Inspection], meter: Meter, source: str, console: Console
) -> None:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[state]}", markup=False),
        TimeRemainingColumn(),
    )
    began = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task(source, total=None, state="")
        for inspection in steps:
            state = _progress(inspection, meter, time.monotonic() - began)
            progress.update(task, total=meter.total or None, completed=meter.done, state=state)


def _progress(inspection: Inspection, meter: Meter, seconds: float) -> str:
    parts = [f"{inspection.read:,} rows"]
    if meter.total:
        parts.append(f"{min(1.0, meter.done / meter.total):.0%}")
    if meter.unit == "B" and seconds > 0:
        parts.append(f"{meter.done / seconds / 1e6:.1f} MB/s")
    return ", ".join(parts)


def _counts(inspection: Inspection, source: str, seconds: float, meter: Meter) -> Table:
    table = Table(box=SIMPLE, show_header=False)
    table.add_column()
    table.add_column(justify="right", overflow="fold")
    table.add_row("data set", source)
    table.add_row("read as", inspection.kind)
    table.add_row("examples read", f"{inspection.read:,}")
    table.add_row("usable", _share(inspection.usable, inspection.read))
    table.add_row("dropped", _share(inspection.read - inspection.usable, inspection.read))
    if inspection.cut:
        table.add_row("completions cut by the limit", f"{inspection.cut:,}")
    for options, count in sorted(inspection.options.items()):
        table.add_row(f"rankings of {options}", f"{count:,}")
    if inspection.noted.labels:
        table.add_row("labels", inspection.noted.labels)
    if unread := inspection.noted.unread:
        named = ", ".join(f"{name} ({count:,})" for name, count in unread.most_common(_COLUMNS))
        more = f" and {len(unread) - _COLUMNS:,} more" if len(unread) > _COLUMNS else ""
        table.add_row("columns that nothing reads (rows)", named + more)
    if inspection.options:
        table.add_row("pairs ranked apart", f"{inspection.pairs:,}")
        table.add_row("pairs tied", f"{inspection.tied_pairs:,}")
    speed = f", {meter.done / seconds / 1e6:.1f} MB/s" if meter.unit == "B" and seconds else ""
    table.add_row("time", f"{seconds:.1f} s{speed}")
    return table


def _drops(inspection: Inspection) -> Table:
    table = Table("dropped because", box=SIMPLE)
    table.add_column("rows", justify="right")
    table.add_column("first at", overflow="fold")
    for reason, count in inspection.drops.most_common():
        table.add_row(reason, _share(count, inspection.read), inspection.first_drop[reason])
    return table


def _histogram(name: str, lengths: Counter[int]) -> RenderableType:
    marks = ((0.5, "median"), (0.9, "90 %"), (0.99, "99 %"), (1.0, "longest"))
    facts = ", ".join(f"{label} {quantile(lengths, share):,}" for share, label in marks)
    table = Table(box=SIMPLE, show_header=False)
    table.add_column(justify="right")
    table.add_column(justify="right")
    table.add_column()
    rows = buckets(lengths)
    most = max(count for _, _, count in rows)
    for first, last, count in rows:
        bar = "█" * max(round(_BAR * count / most), 1 if count else 0)
        table.add_row(f"{first:,}-{last:,}", f"{count:,}", bar)
    return Group(Text(f"{name}: {facts}", style="bold"), table)


def _sample(sample: Seen, number: int) -> RenderableType:
    text = Text()
    for i, piece in enumerate(sample.pieces()):
        # completions of one ranking follow each other: each is named
        if sample.ranks and i:
            text.append(f"\n(rank {sample.ranks[i - 1]}) ", style="bold")
        text.append_text(_marked(piece))
    title = Text(f"sample {number}: {sample.where}")  # a string would be read as markup
    return Padding(Panel(text, title=title, subtitle="⟦trained⟧", title_align="left"), (1, 0, 0, 0))


def _marked(piece: Piece) -> Text:
    """The text with the trained part in brackets, which a pipe shows as well."""
    shown = piece.text
    if len(shown) > _SAMPLE_CHARACTERS:
        half = _SAMPLE_CHARACTERS // 2
        left_out = len(shown) - 2 * half
        shown = f"{shown[:half]} … {left_out:,} characters … {shown[-half:]}"
    return Text(f"⟦{shown}⟧", style="green") if piece.trained else Text(shown)


def _share(count: int, total: int) -> str:
    return f"{count:,} ({count / total:.1%})" if total else f"{count:,}"
