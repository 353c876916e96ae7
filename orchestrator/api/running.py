"""Run a recipe from Python, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import deque
from collections.abc import Iterable
from pathlib import Path

import orchestrator
from orchestrator.api.composing import compose
from orchestrator.api.loading import Run, load
from orchestrator.process.command_exit import tell
from orchestrator.session.resume import find_folder
from workers.errors import RehearsalError

_KEPT = 400  # last lines of the output, in which the error is looked for
_ERROR = re.compile(
    r"^error: (?P<what>.*?)(?:\n  where: (?P<where>.*?))?(?:\n  fix: (?P<fix>.*?))?"
    r"(?:\n  traceback: .*)?$",
    flags=re.M,
)


class RunFailedError(RehearsalError):
    """A run that ended before its results were complete."""

    def __init__(self, what: str, *, where: str, fix: str, code: int) -> None:
        super().__init__(what, where=where, fix=fix)
        self.code = code  # that the command ends with; README.md lists them


def run(*arguments: str, config_dir: str | Path = "", quiet: bool = False) -> Run:
    """Run what `rehearsal run` with these arguments runs, wait for its end, and read its folder.

    The recipe runs in a process of its own: its actors, signals and exit leave this one alone. If
    this call is interrupted, it asks the run to save at its next step, and waits for it;
    `resume=auto` goes on with it.

    Args:
        arguments: "+experiment=NAME", "group=option", "key=value".
        config_dir: Folder of your own configuration files; "" = none.
        quiet: Do not print what the run says; it is in run.log of its folder.

    Raises:
        ConfigError: As `compose`, before a process is started.
        RunFailedError: The run failed or was stopped.
    """
    config = compose(*arguments, config_dir=config_dir)
    folder = find_folder(config.resume, Path(config.run.dir), config.experiment).path
    words = [*arguments]
    if config.resume in ("", "auto"):  # the folder's name holds the time of its composition
        words = [word for word in words if not word.startswith("run.dir=")]
        words.append(f"run.dir={folder}")
    flags = ["--config-dir", str(Path(config_dir).resolve())] if config_dir else []
    code, said = _follow([sys.executable, "-m", "orchestrator.run", *flags, *words], quiet)
    if code != 0:
        raise _failure(code, said, folder)
    return load(folder)


def _follow(command: list[str], quiet: bool) -> tuple[int, str]:
    """Run a command to its end; returns its exit code and the end of what it said."""
    home = str(Path(orchestrator.__file__).parents[1])
    paths = [home, *filter(None, [os.environ.get("PYTHONPATH")])]
    last: deque[str] = deque(maxlen=_KEPT)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="backslashreplace",
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        start_new_session=True,  # Ctrl-C reaches this process alone
    ) as child:
        assert child.stdout is not None
        try:
            _relay(child.stdout, last, quiet)
        except BaseException:
            child.terminate()
            _relay(child.stdout, last, quiet)
            child.wait()
            raise
        return child.wait(), "".join(last)


def _relay(lines: Iterable[str], last: deque[str], quiet: bool) -> None:
    for line in lines:
        last.append(line)
        if not quiet:
            tell(line)


def _failure(code: int, said: str, folder: Path) -> RunFailedError:
    """The error that the run printed last."""
    found = list(_ERROR.finditer(said))
    lines = said.strip().splitlines() or ["no output"]
    what, where, fix = found[-1].group("what", "where", "fix") if found else (lines[-1], None, None)
    return RunFailedError(
        what,
        where=where or str(folder),
        fix=fix or "see run.log and error.log in the run folder",
        code=code,
    )
