"""Check of a user's code in a separate process: its import, and what it takes.

`python -m workers.user_functions.trial LOADER PATH FOLDER RESULT`: calls the function of ours at
the import path LOADER with PATH and FOLDER, and writes a JSON object with the error to the file
RESULT, or an empty object if there is none.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from workers.errors import ConfigError
from workers.process.user_code import load_function


def main(loader: str, path: str, folder: str, result: str) -> None:
    """Write the result and exit without waiting for the imported module.

    Its threads, exit handlers and child processes are not waited for.
    """
    found: dict[str, str] = {}
    try:
        load_function(loader, "")(path, folder)
    except ConfigError as error:
        found = {"what": error.what, "where": error.where, "fix": error.fix}
    Path(result).write_text(json.dumps(found), encoding="utf-8")
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
