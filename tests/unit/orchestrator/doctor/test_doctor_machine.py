"""Checks of this machine fail when what they look at is missing."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from orchestrator.doctor import machine, models
from orchestrator.doctor.findings import State
from orchestrator.doctor.subject import Subject
from orchestrator.process import temporary_folders
from workers.errors import CheckpointError

Subjects = Callable[..., Subject]
GIB = 1 << 30


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the free bytes of every disk."""

    def put(size: int) -> None:
        usage = type(shutil.disk_usage("/"))(4 * GIB, 4 * GIB - size, size)
        monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)

    return put


def test_shared_memory_smaller_than_the_object_store_warns(
    subject: Subjects, free: Callable[[int], None]
) -> None:
    free(64 << 20)
    found = machine.check_shared_memory(subject())
    assert found.state is State.warn
    assert "64 MiB free" in found.what
    assert "512" in found.what
    assert machine.check_shared_memory(subject("cluster.object_store_mib=32")).state is State.ok


@pytest.mark.parametrize(
    ("hard", "state"), [(512, State.fail), (2048, State.warn), (4096, State.ok), (-1, State.ok)]
)
def test_few_open_files_fail(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch, hard: int, state: State
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (256, hard))
    assert machine.check_open_files(subject()).state is state


def test_a_kernel_without_memfd_fails_where_the_transport_needs_it(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(errno.EPERM, "Operation not permitted")

    assert machine.check_memfd(subject()).state is State.ok
    monkeypatch.setattr(os, "memfd_create", refuse)
    found = machine.check_memfd(subject())
    assert found.state is State.fail
    assert "Operation not permitted" in found.what
    assert machine.check_memfd(subject("rollout.transport=gloo")).state is State.skip


def test_a_full_temporary_folder_fails(
    subject: Subjects, free: Callable[[int], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(temporary_folders, "temporary_base", lambda: tmp_path)
    tmp_path.chmod(0o700)
    assert machine.check_temporary(subject()).state is State.ok
    free(1 << 20)
    with pytest.raises(CheckpointError, match="is full"):
        machine.check_temporary(subject())


def test_a_disk_without_room_for_the_checkpoints_of_the_plan_fails(
    subject: Subjects, free: Callable[[int], None], tmp_path: Path
) -> None:
    pocket = subject("+experiment=pocket_tiny", f"run.dir={tmp_path / 'new' / 'run'}")
    assert machine.check_disk(pocket).state is State.ok
    free(1 << 20)
    found = machine.check_disk(pocket)
    assert found.state is State.fail
    assert str(tmp_path) in found.what
    assert "keep_last" in found.fix


def test_a_run_folder_that_cannot_be_written_fails(
    subject: Subjects, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & os.W_OK)
    found = machine.check_disk(subject("+experiment=pocket_tiny", f"run.dir={tmp_path / 'run'}"))
    assert found.state is State.fail
    assert f"cannot write in {tmp_path}" in found.what


def test_more_threads_than_cores_warn_by_role(subject: Subjects) -> None:
    many = subject("+experiment=pocket", "cluster.roles.policy.workers=2",
                   "cluster.roles.policy.threads=3")  # fmt: skip
    found = machine.judge_cores(many, 4.0)
    assert found.state is State.warn
    assert "policy computes with 6 threads" in found.what
    assert machine.judge_cores(many, 6.0).state is State.ok


def test_models_larger_than_the_memory_fail_or_warn(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    def have(available: int) -> None:
        memory = psutil.virtual_memory()._replace(total=64 * GIB, available=available)
        monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)

    pocket = subject("+experiment=pocket")
    have(64 * GIB)
    assert machine.check_memory(pocket).state is State.ok
    have(1 * GIB)
    found = machine.check_memory(pocket)
    assert found.state is State.warn
    assert "micro_batch_tokens" in found.fix


def test_a_loopback_that_refuses_fails(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in machine._PROXIES:
        monkeypatch.delenv(name, raising=False)
    assert machine.check_loopback(subject()).state is State.ok

    def refuse(*_: Any, **__: Any) -> socket.socket:
        raise ConnectionRefusedError("refused here")

    monkeypatch.setattr(socket, "create_connection", refuse)
    found = machine.check_loopback(subject())
    assert found.state is State.fail
    assert "refused here" in found.what


@pytest.mark.parametrize(("direct", "state"), [("", State.warn), ("a,127.0.0.1", State.ok)])
def test_a_proxy_between_local_processes_warns(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch, direct: str, state: State
) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", direct)
    assert machine.check_loopback(subject()).state is state


def test_a_model_that_the_cache_lacks_fails_offline_and_warns_online(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    given = ("+experiment=ppo", "model.checkpoints.sft=someone/absent")
    for offline, state in ((True, State.fail), (False, State.warn)):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        found = models.check_hub_cache(subject(*given))
        assert found.state is state
        assert "someone/absent" in found.what
    assert models.check_hub_cache(subject()).state is State.ok


@pytest.mark.parametrize(("refused", "state"), [(os.R_OK, State.fail), (os.W_OK, State.warn)])
def test_a_cache_that_this_user_cannot_use_is_found(
    subject: Subjects, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, refused: int, state: State
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "access", lambda _path, mode: not mode & refused)
    found = models.check_hub_cache(subject())
    assert found.state is state
    assert "HF_HOME" in found.fix
