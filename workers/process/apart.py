"""Run one function in this process, for another process: `python apart.py REQUEST RESULT`.

REQUEST is a pickled `What`, RESULT the pickled (value, error) of the call.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from pathlib import Path
from typing import Any

from workers.process.caught_errors import Caught

What = tuple[str, tuple[Any, ...], dict[str, Any]]  # `module:name` of a function, its arguments


def run(function: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Call a function of ours."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*arguments, **named)


def main(request: str, result: str) -> None:
    """Run the function of a request; its error is passed on."""
    what: What = pickle.loads(Path(request).read_bytes())
    value: Any = None
    caught = Caught(Exception)
    with caught:
        value = run(*what)
    Path(result).write_bytes(pickle.dumps((value, caught.error)))


if __name__ == "__main__":
    main(*sys.argv[1:])
