"""Checks of GPUs and collectives judge what the torch process answers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.doctor import gpus, torch_steps
from orchestrator.doctor.findings import State
from orchestrator.doctor.subject import Subject
from workers.errors import RoleError

ROOT = Path(__file__).resolve().parents[4]
Subjects = Callable[..., Subject]
GIB = 1 << 30
CHECKS = (gpus.check_gpus, gpus.check_capability, gpus.check_gpu_memory, gpus.check_nccl)


def answers(**changed: Any) -> dict[str, Any]:
    gpu = {"name": "H100", "capability": [9, 0], "free": 79 * GIB, "total": 80 * GIB} | changed
    return {
        "import": {"torch": "2.13.0", "cuda": "13.0"},
        "gpus": {"gpus": [gpu], "architectures": ["sm_80", "sm_90"], "driver": "580.1"},
        "nccl": {"ranks": 1, "bytes": 64 << 20},
    }


ONE = ("+experiment=pocket", "cluster=one_gpu")


def test_a_machine_with_the_planned_gpu_passes(subject: Subjects) -> None:
    found = [check(subject(*ONE, torch=answers())) for check in CHECKS]
    assert [each.state for each in found] == [State.ok] * 4
    assert found[0].what == "1 x H100, driver 580.1, torch for CUDA 13.0"


def test_a_run_on_cpus_asks_no_gpu(subject: Subjects) -> None:
    assert {check(subject()).state for check in CHECKS} == {State.skip}


def test_a_driver_that_torch_cannot_use_fails_once_with_its_words(subject: Subjects) -> None:
    torch = answers() | {"gpus": RoleError("RuntimeError: the driver is too old")}
    found = [check(subject(*ONE, torch=torch)) for check in CHECKS]
    assert found[0].state is State.fail
    assert "the driver is too old" in found[0].what
    joined = subject(*ONE, "cluster.address=h:1", torch=torch)
    assert gpus.check_gpus(joined).state is State.skip  # its GPUs may be on other machines


def test_fewer_gpus_than_the_plan_takes_fail(subject: Subjects) -> None:
    eight = subject("+experiment=pocket", "cluster=node_8gpu", torch=answers())
    found = gpus.check_gpus(eight)
    assert found.state is State.fail
    assert "this machine has 1 x H100" in found.what
    torch = answers()
    torch["gpus"]["gpus"] = []
    assert gpus.check_gpus(subject(*ONE, torch=torch)).what == "torch sees no GPU"


@pytest.mark.parametrize(
    ("capability", "words"), [([7, 5], "bf16 needs 8.0"), ([12, 0], "kernels for sm_80, sm_90")]
)
def test_gpus_that_this_torch_or_precision_cannot_use_fail(
    subject: Subjects, capability: list[int], words: str
) -> None:
    found = gpus.check_capability(subject(*ONE, torch=answers(capability=capability)))
    assert found.state is State.fail
    assert words in found.what


@pytest.mark.parametrize(
    ("architectures", "serves"),
    [(["sm_80"], True), (["sm_90"], False), (["sm_90a", "compute_80"], True), (["sm_70"], False)],
)
def test_binaries_serve_their_major_version_and_ptx_all_later_ones(
    architectures: list[str], serves: bool
) -> None:
    assert gpus._has_kernels(8, 6, architectures) is serves


def test_smaller_and_used_gpus_are_found(subject: Subjects) -> None:
    small = gpus.check_gpu_memory(subject(*ONE, torch=answers(total=24 * GIB, free=24 * GIB)))
    assert small.state is State.fail
    assert "cluster.gpu_memory_gib=24" in small.fix
    used = gpus.check_gpu_memory(subject(*ONE, torch=answers(free=30 * GIB)))
    assert used.state is State.warn
    assert "30 of 80 GiB" in used.what


@pytest.mark.parametrize(("check", "step"), [(gpus.check_gloo, "gloo"), (gpus.check_nccl, "nccl")])
def test_a_collective_that_fails_is_the_finding(
    subject: Subjects, check: Callable[[Subject], Any], step: str
) -> None:
    torch = answers() | {step: RoleError("connection closed by peer")}
    with pytest.raises(RoleError, match="closed by peer"):
        check(subject(*ONE, torch=torch))


def test_two_processes_sum_through_gloo() -> None:
    program = """
from pathlib import Path
from orchestrator.doctor import torch_steps
torch_steps._BYTES = 1 << 20
print(torch_steps._gloo(None, Path()))
"""
    # in a fresh process, as by the command: forks of one that has computed have no OpenMP threads
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=120,
        env=os.environ | {"REHEARSAL_HOST": "127.0.0.1"}, cwd=ROOT,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("{'bytes': 1048576}\n", 0), done.stderr[-2000:]


def test_forks_tell_values_errors_and_crashes() -> None:
    assert torch_steps._in_forks([lambda: 3, lambda: "x"]) == [3, "x"]
    for work, words in (
        (lambda: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda: os.kill(os.getpid(), signal.SIGKILL), "SIGKILL"),
        (lambda: os._exit(3), "exit code 3"),
        (lambda: os.kill(os.getpid(), signal.SIGALRM), "no end within"),
    ):
        with pytest.raises(RoleError, match=words):
            torch_steps._in_forks([work])


def test_a_package_that_crashes_on_import_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator nms does not exist')")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = torch_steps._siblings(None, Path())
    assert found["torchvision"] == "RuntimeError: operator nms does not exist"


def test_the_version_of_the_driver_is_read(tmp_path: Path) -> None:
    file = tmp_path / "version"
    assert torch_steps.driver_version(file) == ""
    for line in (
        "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19",
        "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  535.104.05  Release Build",
    ):
        file.write_text(line)
        assert torch_steps.driver_version(file) == "535.104.05"
