"""Checks 1 to 3: what the machine has, and process groups of one rank."""

from __future__ import annotations

import time

import torch
from torch.cuda import nccl

from benchmarks.gpu.checks import Bench, CannotRunError, Check, Figures, require
from benchmarks.gpu.facts import gpus
from benchmarks.gpu.samples import OPTIMIZER, SECONDS, joined, model_folder, shape, synchronize
from workers.process.rendezvous import listen
from workers.records.specs import TrainModelSpec
from workers.records.weights import GroupAddress
from workers.weights.packing import describe, make_offer
from workers.weights.transfer import WeightSender
from workers.weights.transport import Link


def check_machine(bench: Bench) -> Figures:
    """A product of matrices on the device has its exact result."""
    a = torch.full((64, 64), 0.5, device=bench.device)
    require(bool((a @ a == 16.0).all()), "0.5 * 0.5 summed 64 times is not 16")
    found: Figures = {"torch": torch.__version__}
    if bench.cuda:
        require(bool(gpus()), "nvidia-smi shows no GPU")
        free, total = torch.cuda.mem_get_info()
        major, minor = torch.cuda.get_device_capability()
        found |= {
            "gpu": torch.cuda.get_device_name(),
            "capability": f"{major}.{minor}",
            "free_gib": free / 2**30,
            "total_gib": total / 2**30,
            "nccl": ".".join(map(str, nccl.version())),
            "nvidia_smi": gpus(),
        }
    return found


def check_group(bench: Bench) -> Figures:
    """A trainer's process group of one rank forms and gathers."""
    began = time.monotonic()
    worker = joined(bench, 1, "float32")
    seconds = time.monotonic() - began
    worker.load(TrainModelSpec(str(model_folder(bench, shape(bench, "20M"))), OPTIMIZER))
    rows = worker.engine.gather_rows([1.5, -2.0])
    require(rows.tolist() == [[1.5, -2.0]], f"one rank gathered {rows.tolist()}")
    backend = torch.distributed.get_backend()
    require(backend == ("nccl" if bench.cuda else "gloo"), f"the group's backend is {backend}")
    total = torch.ones(8, device=bench.device)
    torch.distributed.all_reduce(total)
    require(bool((total == 1).all()), "a sum over one rank is not its own")
    worker.unload()
    return {"backend": backend, "join_seconds": seconds}


def check_transfer_group(bench: Bench) -> Figures:
    """The private group of a weight sync forms, sends, and gives its memory back."""
    if bench.cuda and not torch.distributed.is_nccl_available():
        raise CannotRunError("this torch has no NCCL")
    backend = "nccl" if bench.cuda else "gloo"
    weights = [("layers.0.w", torch.arange(1 << 20, dtype=torch.float32, device=bench.device))]
    offer = make_offer(1, describe(weights), backend)
    sender = WeightSender(Link(torch.device(bench.device), SECONDS))
    began = time.monotonic()
    sender.connect(GroupAddress(*listen(), 1, backend))
    sent = sender.send(offer, [weights])
    synchronize(bench)
    seconds = time.monotonic() - began
    sender.close()
    shared = WeightSender(Link(torch.device("cpu"), SECONDS))
    again = shared.send(
        make_offer(1, describe(weights), "shm"), [[(n, w.cpu()) for n, w in weights]]
    )
    shared.close()
    require(sent.checksum == again.checksum, "the checksum differs from that of the host's bytes")
    return {"backend": backend, "seconds": seconds}


CHECKS = [
    Check("machine", check_machine, 30.0),
    Check("trainer group", check_group, 60.0, ("deepspeed",)),
    Check("weight transfer group", check_transfer_group, 60.0),
]
