"""A child process of the doctor: `python -m orchestrator.doctor.child KIND FOLDER SECONDS`.

It writes one JSON line per step to FOLDER/answers (see `children`). Steps that use a GPU or a
library that may crash run in a fork, whose end the process survives.
"""

from __future__ import annotations

import json
import os
import pickle
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from workers.errors import RehearsalError
from workers.process.caught_errors import Caught

Step = Callable[[Any, Path], Any]


def main(arguments: list[str]) -> int:
    """Do the steps of one kind until one fails that the others need; returns 0."""
    kind, folder, seconds = arguments[0], Path(arguments[1]), float(arguments[2])
    signal.alarm(int(seconds) + 2)  # in case the parent is killed and cannot end this process
    given = pickle.loads((folder / "arguments").read_bytes())  # ours: written by the parent
    steps = _steps(kind)
    with (folder / "answers").open("a", encoding="utf-8") as answers:
        for name, step in steps.items():
            _write(answers, {"begin": name})
            if not _do(answers, name, step, given, folder) and name == next(iter(steps)):
                break  # the first step imports or joins what the others use
    return 0


def _steps(kind: str) -> Mapping[str, Step]:
    # Imported here, because each kind imports other libraries.
    if kind == "torch":
        from orchestrator.doctor import torch_steps as found
    elif kind == "ray":
        from orchestrator.cluster import inspection as found
    else:
        from orchestrator.doctor import engine_steps as found
    return found.STEPS


def _do(answers: Any, name: str, step: Step, given: Any, folder: Path) -> bool:
    caught, value = Caught(Exception), None  # libraries raise anything
    with caught:
        value = step(given, folder)
    error = caught.error
    if error is None:
        _write(answers, {"done": name, "value": value})
        return True
    typed = error if isinstance(error, RehearsalError) else None
    words = " ".join(str(error).split())[:_LONGEST]
    what = typed.what if typed else f"{type(error).__name__}: {words}"
    where, fix = (typed.where, typed.fix) if typed else ("", "")
    _write(answers, {"done": name, "error": {"what": what, "where": where, "fix": fix}})
    return False


_LONGEST = 300  # characters of a library's message


def _write(answers: Any, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # libraries' threads and destructors have nothing left to do
