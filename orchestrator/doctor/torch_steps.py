"""Steps of the child process that imports torch: collectives on this machine, and its GPUs.

The process itself only imports torch. All else runs in forks, since CUDA cannot be used in a fork
of a process that has used it, and a broken library may crash the process that imports it.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import signal
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from workers.errors import RoleError
from workers.process import rendezvous
from workers.process.caught_errors import Caught

_SECONDS = 20  # of a fork; the child's own deadline is later
_BYTES = 64 << 20  # sent by a collective
_SIBLINGS = ("torchvision", "torchaudio", "torchcodec")
_DRIVER = Path("/proc/driver/nvidia/version")


def _import(_given: object, _folder: Path) -> dict[str, Any]:
    return {"torch": torch.__version__, "cuda": torch.version.cuda}


def _gloo(_given: object, _folder: Path) -> dict[str, Any]:
    _collective("gloo", 2)
    return {"bytes": _BYTES}


def _gpus(_given: object, _folder: Path) -> dict[str, Any]:
    return _in_forks([_gpu_facts])[0]


def _gpu_facts() -> dict[str, Any]:
    torch.cuda.init()  # raises with the driver's reason
    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        capability = list(torch.cuda.get_device_capability(index))
        name = torch.cuda.get_device_name(index)
        found.append({"name": name, "capability": capability, "free": free, "total": total})
    return {"gpus": found, "architectures": torch.cuda.get_arch_list(), "driver": driver_version()}


def driver_version(file: Path = _DRIVER) -> str:
    """Version of NVIDIA's kernel driver; "" if it is not loaded."""
    if not file.is_file():
        return ""
    found = re.search(r"Kernel Module.*?\s(\d+\.[\d.]+)\s", file.read_text(encoding="utf-8"))
    return found[1] if found else ""


def _nccl(_given: object, _folder: Path) -> dict[str, Any]:
    """A collective of up to two GPUs; with one it still sets NCCL up."""
    ranks = min(2, _in_forks([torch.cuda.device_count])[0])
    if not ranks:
        return {"ranks": 0}
    _collective("nccl", ranks)
    return {"ranks": ranks, "bytes": _BYTES}


def _siblings(_given: object, _folder: Path) -> dict[str, str]:
    """By name of each installed package that libraries import beside torch: what that raises."""
    there = [name for name in _SIBLINGS if importlib.util.find_spec(name) is not None]
    return {name: _in_forks([lambda name=name: _trouble(name)])[0] for name in there}


def _trouble(name: str) -> str:
    caught = Caught(BaseException)
    with caught:
        importlib.import_module(name)
    if caught.error is None:
        return ""
    return f"{type(caught.error).__name__}: {' '.join(str(caught.error).split())[:200]}"


def _collective(backend: str, ranks: int) -> None:
    """Sum a tensor of `_BYTES` over processes of this machine, and compare the result.

    Raises:
        RoleError: with the first rank's error.
    """
    host, port = rendezvous.listen()
    works = [lambda rank=rank: _rank(backend, host, port, rank, ranks) for rank in range(ranks)]
    _in_forks(works)


def _rank(backend: str, host: str, port: int, rank: int, ranks: int) -> None:
    wait = timedelta(seconds=_SECONDS / 2)
    store = rendezvous.store(host, port, ranks, rank, wait)
    device = torch.device("cpu")
    if backend == "nccl":
        device = torch.device("cuda", rank)
        torch.cuda.set_device(device)
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks, timeout=wait)
    values = torch.full((_BYTES // 4,), float(rank + 1), device=device)
    dist.all_reduce(values)
    expected = ranks * (ranks + 1) / 2
    if not bool((values == expected).all()):
        raise RuntimeError(f"the sum over {ranks} ranks is wrong")


def _in_forks(works: Sequence[Callable[[], Any]]) -> list[Any]:
    """Run each in a fork at the same time; returns their values, which JSON can represent.

    Raises:
        RoleError: one raised, crashed or did not end in time.
    """
    forks = [_fork(work) for work in works]
    told = [_told(pid, reading) for pid, reading in forks]  # all end before an error is raised
    for error, _ in told:
        if error:
            raise RoleError(error)
    return [value for _, value in told]


def _fork(work: Callable[[], Any]) -> tuple[int, int]:
    """Pid of the fork, and the end of a pipe that its value comes through."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid:
        os.close(writing)
        return pid, reading
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(_SECONDS)  # a fork does not inherit its parent's
    caught, value = Caught(BaseException), None
    with caught:
        value = work()
    error = "" if caught.error is None else f"{type(caught.error).__name__}: {caught.error}"
    with os.fdopen(writing, "w", encoding="utf-8") as pipe:
        json.dump([error, value], pipe)
    os._exit(0)


def _told(pid: int, reading: int) -> tuple[str, Any]:
    """The fork's error or "", and its value."""
    with os.fdopen(reading, encoding="utf-8") as pipe:
        text = pipe.read()
    _, status = os.waitpid(pid, 0)
    if text:
        error, value = json.loads(text)
        return error, value
    number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    if number == signal.SIGALRM:
        return f"no end within {_SECONDS} s", None
    cause = signal.Signals(number).name if number else f"exit code {os.WEXITSTATUS(status)}"
    return f"its process ended by {cause}", None


STEPS = {"import": _import, "gloo": _gloo, "gpus": _gpus, "nccl": _nccl, "siblings": _siblings}
