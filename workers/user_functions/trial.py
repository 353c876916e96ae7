"""Check of a user's function in a separate process: its import and its parameters.

`python -m workers.user_functions.trial KIND PATH FOLDER RESULT`: writes a JSON object with the
error to the file RESULT, or an empty object if there is none.
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
    """Write the result and exit without waiting for the imported module.

    Its threads, exit handlers and child processes are not waited for.
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
