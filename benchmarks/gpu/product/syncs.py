"""Checks of weight transfers from GPU to GPU: their speed, and an engine that is lost in one."""

from __future__ import annotations

import itertools
import os
import signal
import statistics
import threading
import time
from collections.abc import Iterator

import torch

from benchmarks.common import configuration
from benchmarks.gpu.checks import Bench, CannotRunError, Check, Figures, require
from benchmarks.gpu.samples import model_folder, shape
from benchmarks.weight_sync import roles
from orchestrator.config.cluster import RoleName
from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import rollout_spec, train_spec
from orchestrator.roles.fleet import Fleet
from orchestrator.roles.weight_sync import SyncReport, WeightSync
from workers.errors import RehearsalError

_SYNCS = 3
_EOS = 2
_PROMPTS = [(5, 9, 17), (4, 6)]
_LATE = 120.0  # seconds until a lost engine must have ended the sync with an error


def check_group_sync(bench: Bench) -> Figures:
    """Weights travel from GPU to GPU; a sync whose engine is killed ends, and the next succeeds."""
    if bench.cuda and torch.cuda.device_count() < 2:
        raise CannotRunError("needs two GPUs: a trainer and an engine with a GPU each")
    config = _config(bench)
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())  # else Ray ends this process with its raylet
    folder = str(model_folder(bench, shape(bench, "1B")))
    with roles(config) as fleet:
        versions = itertools.count(1)
        sync = _start(fleet, config, folder, next(versions))
        reports = [sync.run(next(versions)) for _ in range(_SYNCS)]
        killed = _engine(fleet)
        error, seconds = _lose_engine(sync, killed, _typical(reports), versions)
        if error:
            lost = fleet.replace_lost()
            require("rollout rank 0" in lost, f"lost are {lost}, after {error}")
            sync = _start(fleet, config, folder, next(versions))
        again = sync.run(next(versions))
        require(_engine(fleet) != killed, "the killed engine is still listed")
    transfer = _typical(reports)
    return {
        "transport": config.rollout.transport,
        "gb": again.nbytes / 1e9,
        "transfer_seconds": transfer,
        "gb_per_s": again.nbytes / transfer / 1e9,
        "parity_nats": max(r.parity.max_difference for r in [*reports, again]),
        "after_kill": error or "the engine restarted before the next sync",
        "seconds_after_kill": seconds,
    }


def _config(bench: Bench) -> Config:
    """One trainer and one engine, with a GPU each; over gloo on a CPU."""
    keys = ["+experiment=pocket", "run.collective_seconds=30", f"run.dir={bench.folder / 'sync'}",
            "rollout.max_concurrent_sequences=32"]  # fmt: skip
    if not bench.cuda:
        return configuration(*keys, "rollout.transport=gloo", "rollout.kv_cache_mib=64")
    return configuration(
        *keys, "cluster=node_8gpu", "trainer=zero1_bf16", "cluster.gpus_per_node=2",
        "cluster.roles.rollout.workers=1", "cluster.roles.policy.workers=1",
    )  # fmt: skip


def _start(fleet: Fleet, config: Config, folder: str, version: int) -> WeightSync:
    """Load both sides, and connect them."""
    fleet.bring_up(RoleName.policy, RoleName.rollout)
    starting = fleet.rollout.start(rollout_spec(config, folder, _EOS), version)
    optimizer = config.algorithm.policy_optimizer
    fleet.policy.load(train_spec(config, folder, optimizer, 10, threads=4)).result()
    starting.result()
    budget = config.trainer.micro_batch_tokens
    return WeightSync(fleet.policy, fleet.rollout, config.rollout, _PROMPTS, budget)


def _typical(reports: list[SyncReport]) -> float:
    return statistics.median(r.transfer_seconds for r in reports)


def _engine(fleet: Fleet) -> int:
    """Process id of the engine."""
    (pid,) = [info.pid for info in fleet.infos() if info.role == "rollout"]
    return pid


def _lose_engine(
    sync: WeightSync, pid: int, seconds: float, versions: Iterator[int]
) -> tuple[str, float]:
    """Kill the engine in the middle of a transfer.

    Returns:
        The error of the sync, "" if it met none, and the seconds from its start.
    """
    timer = threading.Timer(seconds / 2, os.kill, (pid, signal.SIGKILL))
    timer.start()
    began, error = time.monotonic(), ""
    try:
        for _ in range(2):  # the signal may come after the first, and the engine restart in between
            sync.run(next(versions))
            timer.join()
    except RehearsalError as raised:
        error = f"{type(raised).__name__}: {raised.what}"
    took = time.monotonic() - began
    require(took <= _LATE, f"the sync of a killed engine ended after {took:.0f} s")
    return error, took


CHECKS = [
    Check("weights from GPU to GPU", check_group_sync, 240.0, ("vllm", "ray", "deepspeed")),
]
