"""Checks of this machine: shared memory, limits, disks, cores, memory, and the loopback network."""

from __future__ import annotations

import os
import resource
import shutil
import socket
from pathlib import Path

from orchestrator.config.cluster import RoleName
from orchestrator.doctor.findings import Finding, failure, good, skipped, warning
from orchestrator.doctor.subject import Subject
from orchestrator.planning.disk_space import disk_space
from orchestrator.planning.host_memory import check_host_memory
from orchestrator.planning.runs.expand import expand
from orchestrator.planning.threads import threads_of
from orchestrator.process.cores import usable_cores
from orchestrator.process.temporary_folders import home
from workers.process.disk import require_space

_GIB, _MIB = 1 << 30, 1 << 20
_FEWEST_FILES, _FEW_FILES = 1024, 4096  # Ray's servers warn below the second
SHM = Path("/dev/shm")
_LOOPBACK_SECONDS = 2.0
_PROXIES = ("http_proxy", "HTTP_PROXY", "grpc_proxy", "https_proxy", "HTTPS_PROXY")


def check_shared_memory(subject: Subject) -> Finding:
    """Whether /dev/shm has room for Ray's object store; otherwise Ray uses files in /tmp."""
    free = shutil.disk_usage(SHM).free // _MIB
    wanted = subject.config.cluster.object_store_mib if subject.local else 64
    if free <= wanted:  # Ray needs more than it takes
        return warning(
            f"/dev/shm has {free:,} MiB free, and Ray's object store takes {wanted:,}: it will use "
            "slower files in /tmp",
            "start the container with --shm-size=8g (Kubernetes: an emptyDir of medium Memory), or "
            "lower cluster.object_store_mib",
        )
    return good(f"{free:,} MiB free in /dev/shm, {wanted:,} needed")


def check_open_files(_subject: Subject) -> Finding:
    """Whether a process may open enough files; Ray raises the soft limit to the hard one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY or hard >= _FEW_FILES:
        return good("any number" if hard == resource.RLIM_INFINITY else f"up to {hard:,} files")
    what = f"a process may open {hard:,} files"
    fix = "raise the hard limit: `ulimit -Hn 65536`, limits.conf, LimitNOFILE= or --ulimit nofile="
    return failure(what, fix) if hard < _FEWEST_FILES else warning(what, fix)


def check_memfd(subject: Subject) -> Finding:
    """Whether the kernel gives anonymous shared memory, through which transport shm sends."""
    if subject.config.rollout.transport != "shm":
        return skipped(f"rollout.transport={subject.config.rollout.transport} does not use it")
    try:
        number = os.memfd_create("doctor", os.MFD_CLOEXEC)
        with os.fdopen(number, "wb") as file:
            file.write(bytes(_MIB))
    except OSError as error:
        return failure(
            f"the kernel gives no anonymous shared memory: {error.strerror}",
            "allow memfd_create (gVisor and strict seccomp profiles refuse it), or set "
            "rollout.transport=gloo",
        )
    return good("anonymous shared memory can be made and written")


def check_temporary(_subject: Subject) -> Finding:
    """Whether the folder for Ray's sockets and logs is private and has room."""
    folder = home()
    require_space(folder)
    return good(f"{shutil.disk_usage(folder).free / _GIB:,.3g} GiB free in {folder}")


def check_disk(subject: Subject) -> Finding:
    """Whether checkpoints and models fit on the disk of the run folder, by the plan."""
    folder = existing(Path(subject.config.run.dir).absolute())
    if not os.access(folder, os.W_OK | os.X_OK):
        return failure(f"this user cannot write in {folder}", "choose another run.dir")
    free = shutil.disk_usage(folder).free
    there = f"{free / _GIB:,.3g} GiB free in {folder}"
    if subject.plan is None:
        return skipped(f"{there}; what a run needs is known with an experiment")
    need = disk_space(subject.config, subject.plan)
    if need is None:
        return skipped(f"{there}; the sizes of the models are not known")
    words = (
        f"{need.total / _GIB:,.3g} GiB needed: {need.checkpoints / _GIB:,.3g} for checkpoints of "
        f"{need.checkpoint / _GIB:,.3g} each, {need.models / _GIB:,.3g} for models"
    )
    if free < need.total:
        return failure(
            f"{there}, {words}",
            "free space, choose run.dir on another disk, or lower run.checkpoint.keep_last",
        )
    return good(f"{there}, {words}")


def existing(path: Path) -> Path:
    """The nearest folder above a path, or the path itself, that exists."""
    return next(each for each in (path, *path.parents) if each.is_dir())


def check_cores(subject: Subject) -> Finding:
    """Whether each role's threads fit on the cores that this process may use."""
    if not subject.local:
        return skipped("the cores of a joined cluster are counted under nodes")
    if subject.layout is None:
        return skipped("there is no plan")
    return judge_cores(subject, usable_cores())


def judge_cores(subject: Subject, cores: float) -> Finding:
    """Compare the threads of each role, which works alone at some time, with the cores."""
    assert subject.layout is not None
    config, roles = subject.config, subject.config.cluster.roles
    threads = {
        role: roles.of(role).workers * max(threads_of(run.config, run.stage, role) for run in runs)
        for role in subject.layout.roles
        if (runs := [each for each in expand(config) if role in each.roles])
    }
    if not threads:
        return skipped("no role computes here")
    role: RoleName = max(threads, key=lambda each: threads[each])
    if threads[role] > cores:
        return warning(
            f"{role.value} computes with {threads[role]} threads, and there are {cores:g} cores: "
            "they wait for each other",
            f"lower cluster.roles.{role.value}.threads or .workers",
        )
    return good(f"{cores:g} cores; the largest role, {role.value}, has {threads[role]} thread(s)")


def check_memory(subject: Subject) -> Finding:
    """Whether the plan's models fit into this machine's memory."""
    if subject.plan is None:
        return skipped("there is no plan")
    if notes := check_host_memory(subject.config):
        what, _, fix = notes[0].partition(": ")
        return warning(what, fix)
    if not subject.plan.memory:
        return skipped("the sizes of the models are not known")
    need = sum(each.workers * each.total for each in subject.plan.memory)
    return good(f"all roles together are estimated at {need / _GIB:,.3g} GiB")


def check_loopback(_subject: Subject) -> Finding:
    """Whether processes of this machine can connect to each other, without a proxy between."""
    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            address = server.getsockname()
            with socket.create_connection(address, timeout=_LOOPBACK_SECONDS) as line:
                accepted, _ = server.accept()
                accepted.close()
                line.recv(1)
    except OSError as error:
        return failure(
            f"a process cannot connect to another one through 127.0.0.1: {error}",
            "bring the interface lo up (`ip link set lo up`), and let the firewall pass it",
        )
    return _judge_proxies()


def _judge_proxies() -> Finding:
    there = [name for name in _PROXIES if os.environ.get(name)]
    direct = os.environ.get("no_proxy", os.environ.get("NO_PROXY", ""))
    names = {each.strip() for each in direct.split(",")}
    if there and not names & {"127.0.0.1", "127.0.0.0/8", "*"}:
        return warning(
            f"{there[0]} is set, and no_proxy does not have 127.0.0.1: Ray's processes may ask the "
            "proxy for each other",
            "export no_proxy=localhost,127.0.0.1, with the addresses of the other nodes",
        )
    return good("processes reach each other through 127.0.0.1")
