"""Base class of the policy's and the critic's trainer: process group, model, steps, saving."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workers.errors import NonFiniteError, RoleError
from workers.process import rendezvous
from workers.process.disk import writing
from workers.process.library_errors import reading
from workers.records.arrays import IntArray
from workers.records.processes import FileRecord, RankAddress, RoleInfo
from workers.records.specs import GroupSpec, TrainModelSpec
from workers.records.training import StepStats
from workers.training.state_files import FIX, StateFiles, file_name, write_state
from workers.training.weight_average import WeightAverage

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from workers.training.deepspeed_engine import TrainEngine

_NAMED_IN_ERRORS = 5


@dataclass(frozen=True, slots=True)
class Share:
    """The loss of one micro-batch, and the terms that it is computed from."""

    loss: Tensor  # scalar, divided by the count of the whole step over all ranks
    terms: Tensor  # (N,) numbers; a NaN or infinity here is the cause of a non-finite loss
    names: IntArray  # (N,) id of the sequence (or row) that each term belongs to


@dataclass(slots=True)
class Tally:
    """Losses and statistics that one rank has accumulated since the last optimizer step."""

    loss_name: str
    loss: float = 0.0
    bad_ids: list[int] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)  # summed over micro-batches and ranks
    peaks: dict[str, float] = field(default_factory=dict)  # maximum over micro-batches and ranks

    def add(self, name: str, value: float) -> None:
        """Add to a sum."""
        self.sums[name] = self.sums.get(name, 0.0) + value

    def peak(self, name: str, value: float) -> None:
        """Update a maximum."""
        self.peaks[name] = max(self.peaks.get(name, -math.inf), value)


@dataclass(frozen=True, slots=True)
class Totals:
    """The tallies of all ranks combined."""

    loss: float
    sums: dict[str, float]
    peaks: dict[str, float]
    culprits: tuple[int, ...] = ()  # rows whose loss is not finite


class Trainer:
    """One rank of a trainer role. Call every public method except `address` on all ranks."""

    role = "trainer"

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._where: RankAddress | None = None
        self._group: GroupSpec | None = None
        self._spec: TrainModelSpec | None = None
        self._engine: TrainEngine | None = None
        self._average: WeightAverage | None = None
        self._writer = ThreadPoolExecutor(1, "snapshot")
        self._writing: Future[FileRecord] | None = None

    def address(self) -> tuple[str, int]:
        """This host's address for its peers, and a port reserved for the next group."""
        return rendezvous.listen()

    def join(self, where: RankAddress, spec: GroupSpec) -> RoleInfo:
        """Form the process group; call once per process."""
        # Deferred import: the driver imports this module to name its actors, and must not spend
        # seconds and hundreds of megabytes on an engine that only the actors run.
        # deepspeed picks its device during the import, and by default picks a GPU if there is one.
        os.environ["DS_ACCELERATOR"] = spec.device
        from workers.training.deepspeed_engine import join_group

        if self._where is not None:
            raise RoleError("this process has joined a group already", where=self._name)
        device = join_group(where, spec)
        self._where, self._group = where, spec
        return RoleInfo(self.role, where.rank, os.getpid(), platform.node(), str(device))

    def load(self, spec: TrainModelSpec) -> None:
        """Build model, optimizer and schedule; frees the previous model.

        Random numbers do not depend on what the process trained before: every load reseeds torch's
        generator, with a separate stream per rank for dropout.

        Raises:
            MissingCheckpointError: no such folder.
            BrokenCheckpointError: the folder does not hold the complete model.
            ConfigError: the model lacks the layers for the adapters, the freezing or the dropout.
        """
        from workers.models.forward import ModelPasses
        from workers.models.freezing import freeze
        from workers.models.lora import add_adapters
        from workers.training.deepspeed_engine import TrainEngine

        group = self._joined()
        self.unload()
        torch.set_num_threads(spec.threads or group.threads)
        torch.manual_seed(group.seed)
        model = self._build(spec, group)
        freeze(model, spec.freeze)
        if spec.lora is not None:
            add_adapters(model, spec.lora)
        passes = ModelPasses(
            model,
            packed=spec.packed,
            logits_bytes=spec.logits_bytes,
            vocabulary=spec.vocabulary,
        )
        self._engine = TrainEngine(
            model,
            spec.optimizer,
            group,
            passes=passes,
            gradient_checkpointing=spec.gradient_checkpointing,
        )
        self._spec = spec
        torch.manual_seed(group.seed + 1 + self.rank)
        if spec.ema_decay > 0.0:
            self._average = WeightAverage(spec.ema_decay)
            self._average.start(self._parts(trained_only=True), keep=self.rank == 0)

    def rest(self) -> None:
        """Release GPU memory for the rollout engines, as much as `GroupSpec.rest` says.

        Any method may follow: those that change weights reload the state first, the others do not
        need it. A snapshot copies the state from host memory.
        """
        if self._engine is not None:
            self._engine.rest(state=self._joined().rest == "state")

    def unload(self) -> None:
        """Free the model."""
        if self._engine is not None:
            self._engine.close()
        self._engine = self._average = self._spec = None

    def save(self, path: str, tokenizer_from: str) -> None:
        """Write a Hugging Face folder, with the averaged weights if averaging is on.

        Adapters are merged into the weights, and also saved alone in the subfolder `adapter`.

        Args:
            path: Folder; rank 0 writes, all ranks return when it is complete.
            tokenizer_from: Folder whose tokenizer is saved with the model.

        Raises:
            CheckpointError: the disk is full or read-only.
        """
        from workers.data.tokenize.tokenizers import load_tokenizer

        state: dict[str, Tensor] = {}
        for bucket in self._parts():
            if self.rank == 0:
                state.update((name, w.to("cpu", copy=True)) for name, w in bucket)
        if self.rank == 0:
            if self._average is not None:
                state = self._average.cast_like(state)
            tokenizer = load_tokenizer(tokenizer_from)
            with writing(Path(path), "the model"):
                self._write(path, state)
                tokenizer.save_pretrained(path)
        self.engine.barrier()

    def _write(self, path: str, state: dict[str, Tensor]) -> None:
        from workers.models.lora import FOLDER, save_adapter

        assert self._spec is not None
        sources, module = self.engine.sources.values(), self.engine.module
        merged = {s.name: s.merge([state[part] for part in s.parts]) for s in sources}
        module.save_pretrained(path, state_dict=merged)
        if self._spec.lora is not None:
            base = self._spec.checkpoint
            save_adapter(Path(path) / FOLDER, module, self._spec.lora, state, base)

    def snapshot(self, folder: str) -> None:
        """Copy the training state to host memory; a thread writes it while training continues.

        What follows, another `load` included, does not change what is written. A snapshot whose
        file was not asked for, as after a step back, is no longer waited for.

        Args:
            folder: Gets one file per rank; `written` waits until this rank's file is complete.
        """
        tensors, pieces, facts = self.engine.training_state()
        tensors |= {f"rng/{device}": state for device, state in _random_states().items()}
        if self._average is not None:
            tensors |= {f"average/{name}": w for name, w in self._average.tensors.items()}
        copies = {name: t.detach().to("cpu", copy=True) for name, t in tensors.items()}
        facts |= {"rank": self.rank, "role": self.role}
        assert self._spec is not None
        # For orchestrator.export, which reads the state without the run's configuration.
        facts |= {"model": asdict(self._spec), "dtype": self._joined().dtype}
        path = Path(folder) / file_name(self.role, self.rank)
        self._writing = self._writer.submit(write_state, path, copies, pieces, facts)

    def written(self) -> FileRecord:
        """Wait for the file of the last snapshot.

        Raises:
            CheckpointError: it could not be written; the state in memory is unchanged.
        """
        assert self._writing is not None, "there was no snapshot"
        writing, self._writing = self._writing, None
        return writing.result()

    def restore(self, folder: str) -> None:
        """Resume from a snapshot, on any number of ranks; only directly after `load`.

        With the number of ranks and the ZeRO stage that wrote it, later steps are bitwise equal to
        those of an uninterrupted run.

        Raises:
            BrokenCheckpointError: files are missing, or belong to another model.
        """
        files = StateFiles(Path(folder), self.role)
        self.engine.restore_training_state(files)
        if self._average is not None and self.rank == 0:
            self._average.restore(files.floats(0, "average", self._average.tensors))
        with reading(folder, f"saved random numbers of {self._name} cannot be used", FIX):
            _set_random_states(files.own(self.rank, "rng"))

    @property
    def engine(self) -> TrainEngine:
        """The loaded engine.

        Raises:
            RoleError: nothing is loaded.
        """
        if self._engine is None:
            raise RoleError(
                "no model is loaded", where=self._name, fix="call load before any other verb"
            )
        return self._engine

    @property
    def _name(self) -> str:
        return f"{self.role} rank {self.rank}"

    def _build(self, spec: TrainModelSpec, group: GroupSpec) -> PreTrainedModel:
        raise NotImplementedError

    def _joined(self) -> GroupSpec:
        if self._group is None:
            raise RoleError("no process group yet", where=self._name, fix="call join first")
        return self._group

    def _weights(self) -> Iterator[list[tuple[str, Tensor]]]:
        """Unsharded weights in buckets of whole layers; a collective at ZeRO 3."""
        return self.engine.full_weights(self._buckets())

    def _parts(self, *, trained_only: bool = False) -> Iterator[list[tuple[str, Tensor]]]:
        """Live parameters in the same buckets, adapters separate; a collective at ZeRO 3."""
        engine = self.engine
        return engine.parts(
            [
                [
                    part
                    for name in bucket
                    for part in engine.sources[name].parts
                    if part in engine.trained or not trained_only
                ]
                for bucket in self._buckets()
            ]
        )

    def _buckets(self) -> list[list[str]]:
        from workers.weights.packing import plan_buckets

        plan = plan_buckets(self.engine.metas, self._joined().weight_bucket_bytes)
        return [[s.meta.name for s in bucket.slots] for bucket in plan]

    def _accumulate(self, tally: Tally, share: Share) -> None:
        """Run the backward pass of one micro-batch.

        It also runs for a non-finite loss, after recording it: the other ranks are in their own
        backward pass, and ZeRO's collectives need every rank.
        """
        loss = float(share.loss.detach())
        tally.loss += loss
        if not math.isfinite(loss):
            bad = ~share.terms.detach().isfinite().cpu().numpy()
            tally.bad_ids += np.unique(share.names[bad]).tolist()
        self.engine.backward(share.loss)

    def _total(self, tally: Tally) -> Totals:
        """Combine the tallies of all ranks.

        Raises:
            NonFiniteError: on every rank, if the loss of any rank is not finite, unless the spec
                says `skip_non_finite`. The weights are unchanged, but the accumulated gradient is
                not finite, so the model is unloaded.
        """
        row = [tally.loss, *tally.sums.values(), *tally.peaks.values()]
        rows = self.engine.gather_rows(row).numpy()
        loss = float(rows[:, 0].sum())
        totals_ids: tuple[int, ...] = ()
        if not math.isfinite(loss):
            ids = sorted({i for part in self.engine.gather_objects(tally.bad_ids) for i in part})
            if not self._joined().skip_non_finite:
                self.unload()
                raise _non_finite(tally.loss_name, ids, self._name)
            totals_ids = tuple(ids)
        cut = 1 + len(tally.sums)
        sums = dict(zip(tally.sums, rows[:, 1:cut].sum(axis=0).tolist(), strict=True))
        peaks = dict(zip(tally.peaks, rows[:, cut:].max(axis=0).tolist(), strict=True))
        return Totals(loss, sums, peaks, totals_ids)

    def _step(self, totals: Totals, extra: dict[str, float]) -> StepStats:
        """Optimizer step after all micro-batches.

        Raises:
            NonFiniteError: on every rank, if the loss is finite but the gradient is not; the engine
                has skipped the step. With `skip_non_finite`, only in the opposite case: the loss is
                not finite but the gradient is, so the engine has applied the step.
        """
        outcome = self.engine.step()
        if outcome.applied and not math.isfinite(totals.loss):
            self.unload()
            raise NonFiniteError(
                "a step should be skipped, but its gradient is finite although its loss is not",
                where=self._name,
                fix="weights have changed: resume from the last checkpoint with resume=auto",
                ids=totals.culprits,
            )
        if not outcome.applied and self._joined().skip_non_finite:
            return StepStats(
                totals.loss, outcome.grad_norm, outcome.learning_rate, False, extra, totals.culprits
            )
        if not outcome.applied:
            raise NonFiniteError(
                "the gradient is not finite",
                where=self._name,
                fix="lower the learning rate; the step was skipped and no weight was changed",
            )
        if self._average is not None:
            self._average.update(self._parts(trained_only=True), keep=self.rank == 0)
        return StepStats(
            totals.loss, outcome.grad_norm, outcome.learning_rate, outcome.applied, extra
        )


def _non_finite(loss_name: str, ids: list[int], where: str) -> NonFiniteError:
    shown = ", ".join(map(str, ids[:_NAMED_IN_ERRORS])) or "unknown"
    more = f" and {len(ids) - _NAMED_IN_ERRORS} more" if len(ids) > _NAMED_IN_ERRORS else ""
    return NonFiniteError(
        f"the {loss_name} loss is not finite; rows {shown}{more}",
        where=where,
        fix="lower the learning rate, or look at these rows; no weight was changed",
        ids=tuple(ids),
    )


def _random_states() -> dict[str, Tensor]:
    """The states of torch's random generators, by device type."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _set_random_states(states: dict[str, Tensor]) -> None:
    """Restore saved random generator states; a rank that saved none keeps its seeded state."""
    if "cpu" in states:
        torch.set_rng_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_initialized():
        torch.cuda.set_rng_state(states["cuda"])
