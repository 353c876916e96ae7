"""How a command was started, for usage lines and for commands that messages suggest."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys

_verb = ""
_script = ""  # path of `rehearsal`, as the process got it


def begin_verb(verb: str) -> None:
    """Say that the process runs `rehearsal VERB`."""
    global _verb, _script
    _verb, _script = verb, sys.argv[0]


def invocation(verb: str, module: str) -> str:
    """Another command, as it can be typed in the shell that started this one."""
    if _verb:
        return f"{_typed(_script, 'rehearsal')} {verb}"
    return f"{_typed(sys.orig_argv[0], 'python')} -m {module}"


def program(module: str) -> str:
    """What a usage line calls the command of a module."""
    return f"rehearsal {_verb}" if _verb else f"python -m {module}"


def _typed(path: str, name: str) -> str:
    """A program of which the process knows the path: quoted for a shell, short if possible.

    Shells pass on what was typed, except to a script that they found in PATH: it gets its path.
    """
    if os.sep not in path:
        return path if re.fullmatch(rf"{name}[\d.]*", path) else name
    if not os.access(path, os.X_OK) or shutil.which(name) == path:
        return name
    near = os.path.relpath(path) if path.startswith(os.sep) else path
    return shlex.quote(path if near.startswith(os.pardir) else near)
