"""The DeepSpeed engine of every trainer. The only file that imports deepspeed."""

from __future__ import annotations

import gc
import importlib
import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from transformers import PreTrainedModel

from workers.models.forward import ModelPasses
from workers.models.load import keep_checkpointing
from workers.models.lora import Source, sources
from workers.process import rendezvous
from workers.records.processes import RankAddress
from workers.records.specs import GroupSpec, OptimizerSpec
from workers.records.weights import TensorMeta
from workers.training.deepspeed_state import (
    moment_kinds,
    optimizer_numbers,
    restore_training,
    training_tensors,
)
from workers.training.schedule import learning_rate
from workers.training.state_files import Piece, StateFiles
from workers.training.whole_adamw import WholeAdamW

# deepspeed reads this during its import: no start-up log messages.
os.environ.setdefault("DEEPSPEED_LOG_LEVEL", "warning")

import deepspeed
import deepspeed.ops
from deepspeed.runtime import bf16_optimizer, compiler
from deepspeed.runtime.zero.offload_config import OffloadStateTypeEnum
from deepspeed.utils import (
    groups,
    safe_get_full_fp32_param,
    safe_get_local_fp32_param,
    safe_set_full_fp32_param,
    safe_set_local_fp32_param,
)

_BUCKET_ELEMENTS = 500_000_000  # deepspeed's default
# Masters and moments only: gradients are freed after a step, and the working weights are needed on
# the GPU for the weight sync and its comparison.
_STATE = (OffloadStateTypeEnum.hp_params, OffloadStateTypeEnum.optim_states)

_CONFIG: dict[str, Any] = {
    "train_micro_batch_size_per_gpu": 1,  # required by deepspeed; the driver plans the batches
    "gradient_accumulation_steps": 1,
    "steps_per_print": None,
    "managed_gradient_accumulation": False,
}

# ZeRO-1 in bf16 would print the memory in use six times per model.
bf16_optimizer.see_memory_usage = lambda *_, **__: None

# deepspeed makes these calls; users of this code cannot avoid them.
warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)


@dataclass(frozen=True, slots=True)
class StepOutcome:
    """Result of one optimizer step."""

    grad_norm: float  # before clipping, over all ranks
    learning_rate: float
    applied: bool  # False when the gradient was not finite and the step was skipped


def join_group(where: RankAddress, spec: GroupSpec) -> torch.device:
    """Form the process group of a trainer's ranks; call once per process.

    Args:
        where: This rank, and the address at which rank 0 listens.
        spec: Device, threads, seed and the deadline of every collective in seconds.

    Returns:
        The device that this rank computes on.
    """
    torch.set_num_threads(spec.threads)
    # deepspeed reads these even when rank and address are passed to it.
    os.environ.update(
        RANK=str(where.rank),
        WORLD_SIZE=str(where.world_size),
        LOCAL_RANK=str(where.local_rank),
        LOCAL_SIZE=str(where.world_size),
        MASTER_ADDR=where.host,
        MASTER_PORT=str(where.port),
    )
    device = torch.device("cpu")
    if spec.device == "cuda":
        device = torch.device("cuda", where.local_rank)
        torch.cuda.set_device(device)
    _import_muon_uncompiled()
    # An optional operator that deepspeed would compile now; this project never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    timeout = timedelta(seconds=spec.collective_seconds)
    if not dist.is_initialized():  # a second trainer in one process shares the group
        dist.init_process_group(
            "nccl" if spec.device == "cuda" else "gloo",
            store=rendezvous.store(where.host, where.port, where.world_size, where.rank, timeout),
            rank=where.rank,
            world_size=where.world_size,
            timeout=timeout,
            # Without it torch guesses the device of a barrier. A single rank has no barrier.
            device_id=device if spec.device == "cuda" and where.world_size > 1 else None,
        )
    deepspeed.init_distributed(  # uses the existing group
        dist_backend="nccl" if spec.device == "cuda" else "gloo",
        auto_mpi_discovery=False,
        verbose=False,
        timeout=timeout,
    )
    # ZeRO would create its own copy of the world group with a timeout of half an hour.
    groups._WORLD_GROUP = dist.new_group(ranks=list(range(where.world_size)), timeout=timeout)
    return device


class TrainEngine:
    """A model, its optimizer and its schedule, partitioned over the ranks by ZeRO 1, 2 or 3.

    With one rank there is nothing to partition: unless something is offloaded, deepspeed runs at
    stage 0 with an optimizer that updates weights in place.

    Every method that runs the model or returns weights is a collective: all ranks must call it
    equally often. `backward` only accumulates gradients and only `step` ends the accumulation, so
    a step may consist of any number of passes.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        optimizer: OptimizerSpec,
        group: GroupSpec,
        *,
        passes: ModelPasses,
        gradient_checkpointing: bool = False,
    ) -> None:
        self._optimizer_spec = optimizer
        self._steps = 0
        self._resting = False  # masters and moments are in host memory
        self._training: bool | None = None
        self.world_size = dist.get_world_size()
        whole = self.world_size == 1 and group.offload == "none"
        self._stage = 0 if whole else group.zero_stage
        self.device = (
            torch.device("cuda", torch.cuda.current_device())
            if group.device == "cuda"
            else torch.device("cpu")
        )
        if gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        nn.Module.to(model, self.device)
        initialize = _initialize_whole if whole else _initialize
        self._engine = initialize(model, optimizer, group)
        self.passes = passes
        passes.through = self._engine
        live = dict(self._engine.module.named_parameters())
        self.sources: dict[str, Source] = {s.name: s for s in sources(self._engine.module)}
        self.trained = frozenset(name for name, p in live.items() if p.requires_grad)
        self.metas = tuple(_meta(s.name, live[s.parts[0]]) for s in self.sources.values())

    @property
    def module(self) -> PreTrainedModel:
        """The wrapped model; at ZeRO 3 its parameters are empty outside a pass."""
        return self._engine.module

    def mode(self, *, training: bool) -> None:
        """Switch dropout on or off; activation checkpointing is unchanged."""
        if training == self._training:
            return
        self._training = training
        self._engine.train(training)
        keep_checkpointing(self._engine.module)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradient of this rank's share of a loss.

        Args:
            loss: Scalar, already divided by the count over all ranks; the losses of all ranks add
                up to the loss of the step.
        """
        self._rise()
        # deepspeed averages gradients over ranks; scaling the loss turns the mean into the sum.
        self._engine.backward(loss * self.world_size, scale_wrt_gas=False)

    def step(self) -> StepOutcome:
        """Clip the accumulated gradient, update the weights and clear the gradient."""
        self._rise()
        rate = learning_rate(self._optimizer_spec, self._steps)
        for parameters in self._engine.optimizer.param_groups:
            parameters["lr"] = rate
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        self._steps += int(applied)
        norm = self._engine.get_global_grad_norm()
        return StepOutcome(math.nan if norm is None else float(norm), rate, applied)

    def gather_rows(self, row: Sequence[float]) -> Tensor:
        """Collect one row of numbers from every rank: (R, n) float64, the same on all ranks."""
        mine = torch.tensor(row, dtype=torch.float64)
        if self.world_size == 1:
            return mine[None]
        device = "cuda" if dist.get_backend() == "nccl" else "cpu"
        parts = [torch.empty_like(mine, device=device) for _ in range(self.world_size)]
        dist.all_gather(parts, mine.to(device))
        return torch.stack(parts).cpu()

    def gather_objects(self, value: object) -> list[Any]:
        """Collect one picklable object from every rank: the same list on all ranks."""
        parts: list[Any] = [None] * self.world_size
        dist.all_gather_object(parts, value)
        return parts

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world_size > 1:
            dist.barrier()

    def full_weights(self, buckets: Sequence[Sequence[str]]) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield unsharded weights, bucket by bucket, with adapters merged in.

        A weight without an adapter is the live tensor, valid only until the next bucket is
        requested: copy or send it immediately. Every rank must iterate over all buckets.

        Args:
            buckets: Names of the weights, each once.
        """
        chosen = [[self.sources[name] for name in names] for names in buckets]
        parts = self.parts([[p for s in bucket for p in s.parts] for bucket in chosen])
        for bucket, tensors in zip(chosen, parts, strict=True):
            live = dict(tensors)
            yield [(s.name, s.merge([live[p] for p in s.parts])) for s in bucket]

    def parts(self, buckets: Sequence[Sequence[str]]) -> Iterator[list[tuple[str, Tensor]]]:
        """Yield live parameters, bucket by bucket; at ZeRO 3 each bucket is gathered first.

        Like `full_weights`, but yields the factors of adapters as separate parameters.

        Args:
            buckets: Names of live parameters, each once.
        """
        parameters = dict(self._engine.module.named_parameters())
        for names in buckets:
            chosen = [parameters[name] for name in names]
            with deepspeed.zero.GatheredParameters(chosen, enabled=self._stage == 3):
                yield [(n, p.detach()) for n, p in zip(names, chosen, strict=True)]

    def add_to_weight(self, name: str, amount: float) -> None:
        """Add a number to every element of a weight, in both the master and the working copy."""
        parameter = dict(self._engine.module.named_parameters())[name]
        partitioned = self._stage == 3
        master = self.master(parameter)
        if self._stage == 0:
            for copy in {parameter, master} - {None}:
                copy.data.add_(amount)
            return
        # Computed before the working copy changes: both may share memory.
        moved = None if master is None else master + amount
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned):
            parameter.data.add_(amount)
        if moved is not None:
            write = safe_set_local_fp32_param if partitioned else safe_set_full_fp32_param
            write(parameter, moved)

    def master(self, parameter: nn.Parameter) -> Tensor | None:
        """The fp32 copy of a weight (at ZeRO 3, this rank's part); None for a frozen weight."""
        if not parameter.requires_grad:
            return None
        self._rise()  # while masters are offloaded, deepspeed cannot find them from their weights
        if self._stage == 0:
            return self._engine.optimizer.master(parameter)
        # ZeRO 3 cannot set a whole weight that has fewer elements than ranks, only its parts.
        read = safe_get_local_fp32_param if self._stage == 3 else safe_get_full_fp32_param
        master = read(parameter)
        assert master is not None, "every weight that is trained has a master copy"
        return master

    def training_state(self) -> tuple[dict[str, Tensor], list[Piece], dict[str, Any]]:
        """Views of this rank's masters and moments, their pieces, and facts for the state file.

        The views are live: copy them before the next step.
        """
        tensors, pieces = training_tensors(self._engine, self._stage)
        facts = {
            "steps": self._steps,
            "numbers": optimizer_numbers(self._engine, self._stage),
            "kinds": moment_kinds(self._engine, self._stage),
        }
        return tensors, pieces, facts

    def restore_training_state(self, files: StateFiles) -> None:
        """Resume from a saved state; only before the first step, on all ranks."""
        self._rise()
        self._steps, kinds, numbers = files.optimizer
        restore_training(self._engine, self._stage, files, kinds, numbers)

    def rest(self, *, state: bool) -> None:
        """Release GPU memory that only training needs; the next training call takes it back.

        Args:
            state: True: also move masters and moments to host memory; False: only free what torch
                caches. With several ranks deepspeed moves them at ZeRO 1 and 2, but not at ZeRO 1
                in bf16, and at ZeRO 3 only those of its own optimizer.
        """
        if state and not self._resting:
            if self._stage == 0:
                self._engine.optimizer.move_state(torch.device("cpu"))
            else:
                self._engine.offload_states(include=_STATE)
            self._resting = True
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _rise(self) -> None:
        if self._resting:
            if self._stage == 0:
                self._engine.optimizer.move_state(self.device)
            else:
                self._engine.reload_states()
            self._resting = False

    def close(self) -> None:
        """Free the model and its optimizer state."""
        self._engine.destroy()
        del self._engine, self.passes
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # for the other roles on this GPU


def _import_muon_uncompiled() -> None:
    """Import deepspeed's Muon optimizer with deepspeed's `compile` decorator disabled.

    This project does not use Muon, but ZeRO imports it for a type check of the optimizer, and its
    three decorators import torch's compiler: seconds of start-up and forty megabytes per process.
    """
    decorate = compiler.compile
    compiler.compile = lambda *_, **__: lambda function: function
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = decorate


def _initialize_whole(model: nn.Module, spec: OptimizerSpec, group: GroupSpec) -> Any:
    if group.dtype == "bfloat16":  # adapters are fp32 so far
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16()
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=WholeAdamW(_parameter_groups(model, spec.weight_decay), spec),
        # The optimizer clips and keeps masters; deepspeed at stage 0 would apply a step of NaN.
        config=_CONFIG | {"gradient_clipping": 0.0, "zero_optimization": {"stage": 0}},
    )
    engine.enable_backward_allreduce = False  # would copy every gradient into a bucket and back
    return engine


def _initialize(model: nn.Module, spec: OptimizerSpec, group: GroupSpec) -> Any:
    elements = sum(p.numel() for p in model.parameters())
    optimizer = torch.optim.AdamW(
        _parameter_groups(model, spec.weight_decay),
        lr=spec.learning_rate,
        betas=spec.betas,
        eps=spec.eps,
        weight_decay=spec.weight_decay,
        fused=True,
    )
    engine, *_ = deepspeed.initialize(
        model=model,
        optimizer=optimizer,
        config=engine_config(elements, spec.max_grad_norm, group),
    )
    return engine


def engine_config(elements: int, max_grad_norm: float, group: GroupSpec) -> dict[str, Any]:
    """Deepspeed's configuration for a model of so many elements."""
    # Buckets no larger than the model: deepspeed allocates one in each backward pass.
    bucket = min(_BUCKET_ELEMENTS, elements)
    zero: dict[str, Any] = {
        "stage": group.zero_stage,
        "overlap_comm": False,
        "reduce_bucket_size": bucket,
        **_offload(group),
    }
    if group.zero_stage == 3:
        zero["stage3_param_persistence_threshold"] = 10_000
        zero["stage3_prefetch_bucket_size"] = min(50_000_000, elements)
    config: dict[str, Any] = _CONFIG | {
        "gradient_clipping": max_grad_norm,
        "zero_optimization": zero,
        # torch's fused AdamW is as fast as deepspeed's, which would be compiled at start-up.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if group.dtype == "bfloat16":
        config["bf16"] = {"enabled": True}
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    return config


def _parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: weight decay for matrices, none for vectors (norms and biases)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    if weight_decay == 0.0:
        return [{"params": parameters}]
    matrices = [p for p in parameters if p.ndim > 1]
    vectors = [p for p in parameters if p.ndim <= 1]
    return [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]


def _meta(name: str, parameter: Any) -> TensorMeta:
    shape = getattr(parameter, "ds_shape", parameter.shape)  # at ZeRO 3 `shape` is that of a part
    return TensorMeta(name, str(parameter.dtype).removeprefix("torch."), tuple(shape))


def _offload(group: GroupSpec) -> dict[str, Any]:
    """Settings of deepspeed that keep optimizer state, or also weights, in host memory."""
    where = {"device": "cpu", "pin_memory": group.device == "cuda"}
    if group.offload == "optimizer":
        return {"offload_optimizer": where}
    if group.offload == "parameters":
        return {"offload_optimizer": where, "offload_param": dict(where)}
    return {}
