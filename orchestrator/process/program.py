"""How a command was started, for its usage line: by `python -m`, or as a verb of `rehearsal`."""

from __future__ import annotations

_verb = ""


def begin_verb(verb: str) -> None:
    """Say that the process runs `rehearsal VERB`."""
    global _verb
    _verb = verb


def invocation(verb: str, module: str) -> str:
    """How another command is typed, in the way in which this one was started."""
    return f"rehearsal {verb}" if _verb else f"python -m {module}"


def program(module: str) -> str:
    """What a usage line calls the command of a module."""
    return f"rehearsal {_verb}" if _verb else f"python -m {module}"
