"""A process that runs checks: `python -m benchmarks.gpu.child MODULE FIRST DEVICE FOLDER [quick]`.

It writes the list of MODULE and then one JSON line per check from number FIRST + 1 to
FOLDER/answers_FIRST. An error that is neither CannotRunError
nor ViolatedError ends the process with its traceback, because the state of a GPU is unknown then.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, TextIO

from benchmarks.gpu.checks import Bench, CannotRunError, Check, Figures, ViolatedError


def main(arguments: list[str]) -> None:
    module, first, device, folder, *quick = arguments
    # deepspeed picks its device during its import.
    os.environ["DS_ACCELERATOR"] = device
    bench = Bench("cuda" if device == "cuda" else "cpu", bool(quick), Path(folder))
    checks: list[Check] = importlib.import_module(module).CHECKS
    listed = [{"name": check.name, "seconds": check.seconds} for check in checks]
    with (bench.folder / f"answers_{first}").open("a", encoding="utf-8") as answers:
        write(answers, {"number": 0, "checks": listed})
        for number, check in enumerate(checks[int(first) :], start=int(first) + 1):
            print(f"--- {number} {check.name}", flush=True)
            began = time.monotonic()
            found = outcome(check, bench)
            line = {"number": number, "seconds": time.monotonic() - began, **found}
            write(answers, line)
            gc.collect()
            if bench.cuda:
                import torch

                torch.cuda.empty_cache()


def write(answers: TextIO, line: dict[str, Any]) -> None:
    answers.write(json.dumps(line) + "\n")
    answers.flush()


def outcome(check: Check, bench: Bench) -> dict[str, Any]:
    """Status, and figures or reason."""
    missing = [name for name in check.needs if importlib.util.find_spec(name) is None]
    if missing:
        return {"status": "skipped", "reason": f"{', '.join(missing)} is not installed"}
    try:
        figures: Figures = check.run(bench)
    except CannotRunError as error:
        return {"status": "skipped", "reason": str(error)}
    except ViolatedError as error:
        return {"status": "failed", "reason": str(error)}
    return {"status": "passed", "figures": figures}


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # libraries' threads and destructors have nothing left to do
