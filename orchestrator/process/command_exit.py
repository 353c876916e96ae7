"""How every command ends: `orchestrator.run`, `data`, `doctor`, `export`, `label`, `new_model`...

An expected failure ends in its message and exit code. `unexpected` is the last handler: any other
exception ends in one line, a file with the traceback, and exit code 70.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from orchestrator.process.interrupt import end_at_once
from workers.errors import RehearsalError, UnsupportedPlatformError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

UNEXPECTED = 70  # sysexits.h: an internal software error
READER_LEFT = 141  # 128 + SIGPIPE: what a shell shows for `command | head`
_INTERRUPTED = 130  # 128 + SIGINT
_BROKEN_INSTALLATION = UnsupportedPlatformError.exit_code
_ROOT = Path(__file__).resolve().parents[2]
_OURS = tuple(f"{_ROOT / name}{os.sep}" for name in ("orchestrator", "workers"))
# A terminal acts on control characters: a sampled text could clear it or change its title. Colours
# (what rich writes itself) do no harm.
_ACTS = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LONGEST = 300  # characters of an error's own words


def exit_code(work: Callable[[], object], *, outlast_reader: bool = False) -> int:
    """Run a command; returns the exit code.

    Streams that cannot encode a character write it as an escape. SystemExit passes.

    Args:
        work: May print.
        outlast_reader: Go on when the reader of standard output or error leaves (`| head`, a
            closed terminal, a full disk): for a command whose results are files.
    """
    prepare_streams()
    if outlast_reader:
        _outlast_readers()
    try:
        with _interruptible():
            work()
        sys.stdout.flush()  # a full disk or a closed pipe raises here, and not after the end
    except RehearsalError as error:
        say(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        say("stopped\n")
        return _INTERRUPTED
    except BrokenPipeError:  # the reader of the output has closed it (`command | head`)
        _close_stdout()
        return READER_LEFT
    except Exception as error:  # noqa: BLE001  the last handler: nothing is above it
        return unexpected(error)
    finally:
        tell("")
    return 0


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGINT, which ends a command at once before and afterwards, raises KeyboardInterrupt."""
    ours = signal.getsignal(signal.SIGINT) is end_at_once
    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, end_at_once)


def unexpected(error: BaseException, log: Path | None = None) -> int:
    """Print one line with the error and its place, and save the traceback; never raises.

    Args:
        error: Anything that no one has expected.
        log: The error.log of a run folder; otherwise, and where that cannot be written, a file in
            the system's temporary directory is made and named.

    Returns:
        The exit code: `UNEXPECTED`, or that of a platform where a package cannot be imported.
    """
    code = UNEXPECTED
    if isinstance(error, ImportError):
        code = _BROKEN_INSTALLATION
        say(f"error: the installation is not complete: {described(error)}\n")
        say("  fix: `make setup`, or `make setup-gpu`; commands are run by .venv/bin/python\n")
    else:
        say(f"error: unexpected {described(error)}\n")
    lines = traceback.format_exception(error)
    for write in (lambda: _write(log, lines) if log else None, lambda: _temporary(lines)):
        try:
            written = write()
        except (OSError, ValueError, MemoryError):  # full, read-only or deleted: try the next place
            continue
        if written is not None:
            say(f"  traceback: {written}\n")
            return code
    say("  no traceback is kept: neither the run folder nor a temporary file can be written\n")
    return code


def described(error: BaseException) -> str:
    """Type, first line of the message, and place of any error; never raises."""
    return f"{_words(error)}, at {_place(error)}"


def tell(text: str) -> None:
    """Write text to stdout that is also in files; a failure is ignored."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except OSError:
        _close_stdout()


def say(text: str) -> None:
    """Write to stderr; a failure is ignored."""
    try:
        sys.stderr.write(visible(text))
        sys.stderr.flush()
    except (OSError, ValueError, AttributeError):  # closed, full, or missing: cannot be shown
        return


def visible(text: str) -> str:
    """The text with control characters as escapes, but for line ends, tabs and colours."""
    return _ACTS.sub(lambda found: found[0] if len(found[0]) > 1 else _escape(found[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def prepare_streams() -> None:
    """Make the standard streams accept every character.

    A character that they cannot encode becomes an escape; a stream that was closed before the
    process started (`>&-`) discards what is written.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            nowhere = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  until the end
            setattr(sys, name, nowhere)
        elif (reconfigure := getattr(stream, "reconfigure", None)) is not None:
            reconfigure(errors="backslashreplace")


class _Outlasting(io.FileIO):
    """A file descriptor whose reader may close it: what cannot be written is dropped.

    It is installed below the streams and not in our own print calls, because logging of libraries,
    rich's redrawing thread and warnings also write there.
    """

    def write(self, data: ReadableBuffer, /) -> int | None:  # type: ignore[override]
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def _outlast_readers() -> None:
    """Put `_Outlasting` under stdout and stderr; streams that a caller has replaced are left."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not getattr(sys, f"__{name}__") or not isinstance(stream, io.TextIOWrapper):
            continue
        stream.flush()
        raw = _Outlasting(stream.fileno(), "wb", closefd=False)
        lasting = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding=stream.encoding, errors=stream.errors,
            line_buffering=stream.line_buffering or name == "stderr",
        )  # fmt: skip
        setattr(sys, name, lasting)


def end_imports(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """A `sys.excepthook` for what is raised outside `main`: above all imports that fail.

    Raises:
        SystemExit: always; Python then exits with its code.
    """
    del kind, trace
    if isinstance(error, RehearsalError):
        say(f"error: {error}\n")
        raise SystemExit(error.exit_code)
    raise SystemExit(unexpected(error))


def _close_stdout() -> None:
    """Discard further output: Python's own flush at exit would fail again."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, ValueError):  # a stream without a descriptor has no such flush
        return


def _words(error: BaseException) -> str:
    """Type and first line of the message; without the message if its __str__ raises."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001  foreign code: an exception's own __str__
        text = ""
    name = type(error).__name__
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST]} ..."
    return f"{name}: {text}" if text else name


def _place(error: BaseException) -> str:
    """The innermost line of ours that the error passed; otherwise where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [each for each in frames if each.filename.startswith(_OURS)]
    if not frames:
        return "an unknown place"
    last = (ours or frames)[-1]
    name = Path(last.filename)
    shown = name.relative_to(_ROOT) if ours else name
    return f"{shown}:{last.lineno} in {last.name}"


def _write(log: Path, lines: list[str]) -> Path:
    log.write_text("".join(lines), encoding="utf-8", errors="backslashreplace")
    return log


def _temporary(lines: list[str]) -> Path:
    number, name = tempfile.mkstemp(prefix="rehearsal-error-", suffix=".log")
    with open(number, "w", encoding="utf-8", errors="backslashreplace") as file:  # noqa: PTH123
        file.writelines(lines)
    return Path(name)
