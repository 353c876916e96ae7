"""Imports a user's function and looks at its parameters, in a process of its own.

`python -m workers.user_functions.trial KIND PATH FOLDER RESULT`: a JSON object in the file RESULT
says what is wrong; an empty one that nothing is.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

from workers.errors import ConfigError
from workers.user_functions.judge_function import load_judge
from workers.user_functions.reward_function import load_reward

_LOADERS: dict[str, Callable[[str, str], object]] = {"reward": load_reward, "judge": load_judge}


def main(kind: str, path: str, folder: str, result: str) -> None:
    """Write what is wrong, or that nothing is, and end at once.

    Threads, exit handlers and children of the imported module are not waited for.
    """
    found: dict[str, str] = {}
    try:
        _LOADERS[kind](path, folder)
    except ConfigError as error:
        found = {"what": error.what, "where": error.where, "fix": error.fix}
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
