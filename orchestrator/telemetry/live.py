"""Progress display of a run: a live view on a terminal, timestamped lines elsewhere."""

from __future__ import annotations

import itertools
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self, TextIO

from rich.box import ROUNDED
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from orchestrator.process.command_exit import visible

Clock = Callable[[], float]

# Labels and units of headline values; other values are shown under their own name.
_LABELS: dict[str, tuple[str, str]] = {
    "score_mean": ("reward", ""),
    "gold_mean": ("gold score", ""),
    "best_score_mean": ("best of a prompt", ""),
    "heldout_score_mean": ("held-out reward", ""),
    "heldout_preferred": ("held-out answers preferred", ""),
    "kl_sequence": ("KL to reference", "nats/sequence"),
    "kl_coefficient": ("KL coefficient", "reward/nat"),
    "loss": ("loss", ""),
    "validation_loss": ("validation loss", "nats/token"),
    "policy_loss": ("policy loss", ""),
    "value_loss": ("value loss", ""),
    "ptx_loss": ("ptx loss", "nats/token"),
    "pair_accuracy": ("pair accuracy", ""),
    "heldout_pair_accuracy": ("held-out pairs", ""),
    "response_tokens_mean": ("length", "tokens"),
    "eos_rate": ("ended by itself", ""),
    "clip_fraction": ("clipped", ""),
    "entropy": ("entropy", "nats/token"),
    "tokens_per_second": ("speed", "tokens/s"),
    "learning_rate": ("learning rate", ""),
    "grad_norm": ("gradient norm", ""),
}
_HISTORY = 4096  # values kept per headline; the sparkline shows only these
_NOTES = 4  # notes shown at a time
_LINE_SECONDS = 5.0  # plain lines: at most one per 5 s, or one per 10 % of a stage
_BARS = "▁▂▃▄▅▆▇█"


@dataclass(slots=True)
class StageState:
    """Progress of one stage, and the history of its headline values."""

    name: str
    total: int = 0
    step: int = 0
    started: float | None = None
    ended: float | None = None
    first: tuple[int, float] | None = None  # steps done and time of the first report
    values: dict[str, deque[float]] = field(default_factory=dict)

    def elapsed(self, now: float) -> float:
        """Seconds since the start, or the total duration of an ended stage."""
        if self.started is None:
            return 0.0
        return (self.ended if self.ended is not None else now) - self.started

    def rate(self, now: float) -> float | None:
        """Mean steps per second, without the first step, which includes the start of processes.

        None until a second step is done.
        """
        if self.first is None or self.step <= self.first[0]:
            return None
        end = self.ended if self.ended is not None else now
        return (self.step - self.first[0]) / max(end - self.first[1], 1e-9)

    def seconds_left(self, now: float) -> float | None:
        """Estimated seconds until the end of the stage; None while the speed is unknown."""
        rate = self.rate(now)
        return None if rate is None else max(0, self.total - self.step) / rate

    def headline(self) -> str:
        """All headline values in one line."""
        parts: list[str] = []
        for name, history in self.values.items():
            parts.append(headline(name, history[-1]))
        return ", ".join(parts)


@dataclass(slots=True)
class RunState:
    """Everything the view shows."""

    title: str
    began: float
    stages: list[StageState]
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=_NOTES))
    current: StageState | None = None


class LiveView:
    """Shows the progress of a run. Thread-safe; restores the terminal at the end.

    On a terminal it redraws in place. In a pipe or a file, or with `enabled` off, it writes plain
    lines: at the start and end of a stage, and in between every 5 s or 10 % of the stage.
    """

    def __init__(
        self,
        title: str,
        stages: Sequence[str] = (),
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        log: Path | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        """Prepare the view; drawing begins when the context is entered.

        Args:
            title: Name of the run.
            stages: Names of the stages, in order.
            enabled: Whether to redraw in place where possible.
            stream: Where to write; standard output by default.
            log: A file that gets the plain lines too, with the date; it is appended to.
            clock: Seconds, monotonic.
        """
        self._lock = threading.RLock()
        self._clock = clock
        self._state = RunState(title, clock(), [StageState(name) for name in stages])
        console = Console(file=stream or sys.stdout, highlight=False)
        in_place = enabled and console.is_terminal and not console.is_dumb_terminal
        # The screen draws the state several times per second; lines are written on each event.
        self._screen = _Screen(console, self._state, self._lock, clock) if in_place else None
        self._lines = [] if in_place else [_Lines(stream or sys.stdout, clock)]
        self._log = _LogFile(log, self.note) if log else None
        if self._log:
            self._lines.append(_Lines(self._log, clock, "%Y-%m-%d %H:%M:%S"))

    def __enter__(self) -> Self:
        if self._screen:
            self._screen.open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def stage(self, name: str, total_steps: int) -> None:
        """Begin a stage of `total_steps` steps; 0 = unknown until `expect` is called."""
        with self._lock:
            known = [s for s in self._state.stages if s.name == name and s.ended is None]
            stage = known[0] if known else StageState(name)
            if not known:
                self._state.stages.append(stage)
            stage.total, stage.started = total_steps, self._clock()
            self._state.current = stage
            for lines in self._lines:
                lines.started(stage)

    def expect(self, total_steps: int) -> None:
        """Set the number of steps of the current stage, once it is known from the data."""
        with self._lock:
            stage = self._current()
            changed, stage.total = stage.total != total_steps, total_steps
            for lines in self._lines if changed else []:
                lines.expected(stage)

    def advance(self, step: int, **headline: float) -> None:
        """Report that `step` steps of the current stage are done, with its headline values."""
        with self._lock:
            stage = self._current()
            stage.step = step
            if stage.first is None:
                stage.first = (step, self._clock())
            for name, value in headline.items():
                stage.values.setdefault(name, deque(maxlen=_HISTORY)).append(value)
            for lines in self._lines:
                lines.advanced(stage)

    def finish_stage(self) -> None:
        """End the current stage."""
        with self._lock:
            stage = self._current()
            stage.ended = self._clock()
            self._state.current = None
            for lines in self._lines:
                lines.finished(stage)

    def note(self, text: str) -> None:
        """Show the user a note."""
        text = visible(text)
        with self._lock:
            self._state.notes.append(text)
            for lines in self._lines:
                lines.noted(text)

    def close(self) -> None:
        """Stop drawing and release the terminal; further calls do nothing."""
        if self._screen:
            self._screen.close()
        if self._log:
            self._log.close()

    def _current(self) -> StageState:
        current = self._state.current
        assert current is not None, "no stage is running: call stage() first"
        return current


class _Lines:
    """Plain lines for pipes and files."""

    def __init__(self, stream: TextIO | _LogFile, clock: Clock, moment: str = "%H:%M:%S") -> None:
        self._stream = stream
        self._clock = clock
        self._moment = moment  # of strftime
        self._last = -math.inf
        self._tenth = 0

    def started(self, stage: StageState) -> None:
        self._tenth = 0
        self._last = self._clock()
        steps = f", {stage.total} steps" if stage.total else ""
        self._write(f"{stage.name}: start{steps}")

    def expected(self, stage: StageState) -> None:
        self._write(f"{stage.name}: {stage.total} steps")

    def advanced(self, stage: StageState) -> None:
        now = self._clock()
        tenth = 10 * stage.step // max(stage.total, 1)
        if (tenth == self._tenth and now - self._last < _LINE_SECONDS) or stage.step >= stage.total:
            return
        self._tenth, self._last = tenth, now
        left = stage.seconds_left(now)
        parts = [f"{stage.name} {stage.step}/{stage.total}", stage.headline()]
        if left is not None:
            parts += [speed(stage, now), f"{duration(left)} left"]
        self._write(" | ".join(part for part in parts if part))

    def finished(self, stage: StageState) -> None:
        text = f"{stage.name}: done, {stage.step} steps in {duration(stage.elapsed(self._clock()))}"
        self._write(" | ".join(part for part in (text, stage.headline()) if part))

    def noted(self, text: str) -> None:
        self._write(f"note: {text}")

    def _write(self, text: str) -> None:
        self._stream.write(f"{time.strftime(self._moment)} {text}\n")
        self._stream.flush()


class _LogFile:
    """A file that lines are appended to; the first failure ends it with a note."""

    def __init__(self, path: Path, note: Callable[[str], None]) -> None:
        self._note = note
        self._file: TextIO | None = None
        try:
            self._file = path.open("a", encoding="utf-8", errors="backslashreplace")
        except OSError as error:
            self._drop(error)

    def write(self, text: str) -> None:
        try:
            if self._file is not None:
                self._file.write(text)
        except OSError as error:
            self._drop(error)

    def flush(self) -> None:
        try:
            if self._file is not None:
                self._file.flush()
        except OSError as error:
            self._drop(error)

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with suppress(OSError):  # what was flushed is there
                file.close()

    def _drop(self, error: OSError) -> None:
        self.close()
        self._note(f"no log of this run is kept: {error.strerror or error}")


class _Screen:
    """The live view, redrawn in place 4 times per second by a thread of rich."""

    def __init__(
        self, console: Console, state: RunState, lock: threading.RLock, clock: Clock
    ) -> None:
        self._state = state
        self._lock = lock
        self._clock = clock
        self._ascii = console.options.ascii_only
        self._live = Live(
            console=console, refresh_per_second=4, get_renderable=self._draw, redirect_stderr=True
        )

    def open(self) -> None:
        self._live.start(refresh=True)

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> RenderableType:
        with self._lock:
            return render(self._state, self._clock(), ascii_only=self._ascii)


def render(state: RunState, now: float, *, ascii_only: bool = False) -> RenderableType:
    """Draw the whole state once."""
    parts: list[RenderableType] = [_stage_table(state, now)]
    shown = state.current or _last_ended(state)
    if shown is not None and shown.values:
        parts += [Text(""), _value_table(shown, ascii_only=ascii_only)]
    if state.notes:
        parts += [Text(""), *(Text(f"{note}", style="yellow") for note in state.notes)]
    return Panel(
        Group(*parts),
        title=Text.assemble((" Rehearsal ", "bold"), (f"{state.title} ", "cyan")),
        title_align="left",
        subtitle=Text(f" {duration(now - state.began)} ", style="dim"),
        subtitle_align="right",
        border_style="dim",
        box=ROUNDED,
        padding=(0, 1),
    )


def _last_ended(state: RunState) -> StageState | None:
    ended = [stage for stage in state.stages if stage.ended is not None]
    return ended[-1] if ended else None


def _stage_table(state: RunState, now: float) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, min_width=8)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for stage in state.stages:
        table.add_row(*_stage_row(stage, now))
    return table


def _stage_row(stage: StageState, now: float) -> list[RenderableType]:
    if stage.started is None:
        return [Text(f"  {stage.name}", style="dim"), "", "", "", ""]
    done = stage.ended is not None
    total = max(stage.total, 1)
    bar = ProgressBar(total=total, completed=total if done else stage.step, finished_style="green")
    left = stage.seconds_left(now)
    last = duration(stage.elapsed(now)) if done else f"{duration(left)} left" if left else ""
    return [
        Text(f"{'+' if done else '>'} {stage.name}", style="green" if done else "bold"),
        bar,
        f"{stage.step}/{stage.total}" if stage.total else "",
        Text(speed(stage, now), style="dim"),
        Text(last, style="dim" if done else "bold"),
    ]


def _value_table(stage: StageState, *, ascii_only: bool) -> Table:
    table = Table.grid(padding=(0, 2, 0, 0), expand=True)
    table.add_column(no_wrap=True, min_width=14)
    table.add_column(justify="right", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(no_wrap=True, ratio=1)
    for name, history in stage.values.items():
        label, unit = _label(name)
        table.add_row(
            f"  {label}",
            Text(number(history[-1]), style="bold"),
            unit,
            Text(sparkline(list(history), ascii_only=ascii_only), style="cyan"),
        )
    return table


def sparkline(values: Sequence[float], width: int = 32, *, ascii_only: bool = False) -> str:
    """Draw values as a row of bars; a longer history is averaged into `width` bars.

    Non-finite values leave a gap. In ASCII the heights are `_.-=#`.
    """
    bars = "_.-=#" if ascii_only else _BARS
    columns = min(width, len(values))
    edges = [i * len(values) // columns for i in range(columns + 1)] if columns else [0]
    buckets = [values[a:b] for a, b in itertools.pairwise(edges)]
    means = [math.fsum(b) / len(b) if all(map(math.isfinite, b)) else math.nan for b in buckets]
    finite = [m for m in means if math.isfinite(m)]
    if not finite:
        return ""
    low, high = min(finite), max(finite)
    scale = (len(bars) - 1) / (high - low) if high > low else 0.0
    return "".join(bars[round((m - low) * scale)] if math.isfinite(m) else " " for m in means)


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `2:05` (minutes) or `1:02:05` (hours)."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    if minutes < 60:
        return f"{minutes}:{rest:02d}"
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def speed(stage: StageState, now: float) -> str:
    """Mean speed of a stage, in steps per second or seconds per step."""
    rate = stage.rate(now)
    if rate is None:
        return ""
    return f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"


def number(value: float) -> str:
    """A number in at most eight characters, three or more significant digits."""
    size = abs(value)
    if not math.isfinite(value) or size == 0:
        return f"{value:g}"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.1e}"
    if size >= 1000:
        return f"{value:,.0f}"
    return f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3}f}"


def headline(name: str, value: float) -> str:
    """One value with its label and unit."""
    label, unit = _label(name)
    return f"{label} {number(value)}{' ' + unit if unit else ''}"


def _label(name: str) -> tuple[str, str]:
    return _LABELS.get(name, (name.replace("_", " "), ""))
