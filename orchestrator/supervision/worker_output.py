"""Where the output of a dead actor is, and its last line that says something.

Ray writes the output of each worker process to two files in its session's folder on the process's
node, named after the worker and the pid. Ray's errors give the pid and the node's address.
"""

from __future__ import annotations

import re
from pathlib import Path

from ray._private import worker

_PID = re.compile(r"^\s*pid: (\d+)$", re.MULTILINE)
_IP = re.compile(r"^\s*ip: (\S+)$", re.MULTILINE)
_READ = 1 << 16  # bytes at the end of a file in which the last lines are looked for
_SHOWN = 200  # characters
# Ray's marks at the beginning of a file, and stacks of native code and of Python
_NOISE = re.compile(
    r":(job_id|actor_name|task_name):|\s|PC: @|\*\*\* |\[\d{4}-\d\d-\d\d |Extension modules|"
    r"(Current thread|Thread|Stack) "
)


def output_of(error: str) -> str:
    """What to tell of the output of the process that an error of Ray's is about; "" if unknown."""
    pid, ip = _PID.search(error), _IP.search(error)
    node = worker._global_node
    if pid is None or node is None:
        return ""
    folder, name = Path(node.get_logs_dir_path()), f"worker-*-{pid[1]}"
    if ip is not None and ip[1] != node.node_ip_address:
        return f"its output is in {name}.err and .out of the folder {folder} on {ip[1]}"
    files = sorted(folder.glob(f"{name}.err")) + sorted(folder.glob(f"{name}.out"))
    if not files:
        return ""
    said = next(filter(None, map(last_line, files)), "")
    return f"its output is in {files[0]}" + (f', which ends in "{said}"' if said else "")


def last_line(file: Path) -> str:
    """The last line of a worker's output that is no mark of Ray's and no line of a stack.

    Of a Python traceback that is the error; control characters are left out.
    """
    try:
        with file.open("rb") as lines:
            lines.seek(max(0, file.stat().st_size - _READ))
            text = lines.read().decode("utf-8", "replace")
    except OSError:
        return ""
    told = [line for line in text.splitlines() if line.strip() and not _NOISE.match(line)]
    return "".join(c for c in told[-1][:_SHOWN] if c.isprintable()).strip() if told else ""
