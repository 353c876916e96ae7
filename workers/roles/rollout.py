"""The rollout role: one generation engine, and which weight version it may sample from.

An engine is `empty` until it has weights, `unverified` once they have arrived, and `admitted` after
the driver has compared it with the trainer. Sampling requires admitted weights of the version that
the caller names; only `probe` samples from unverified weights, for that comparison.
"""

from __future__ import annotations

import importlib
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from queue import SimpleQueue
from typing import TYPE_CHECKING

from workers.errors import RoleError, StaleEngineError, UnsupportedPlatformError, WeightSyncError
from workers.generation.engine import GenerationEngine, require_complete, require_fitting
from workers.generation.job import Job
from workers.generation.pool import Pool, nobody
from workers.model_folders.weight_files import OUTPUT_LAYERS, SafetensorsFolder
from workers.process.openmp import openmp
from workers.records.generation import (
    Delivery,
    EngineState,
    GenerationCall,
    GenerationRequest,
    RolloutBatch,
    Sampling,
)
from workers.records.processes import RoleInfo
from workers.records.weights import GroupAddress, WeightOffer, WeightReceipt

if TYPE_CHECKING:
    from workers.records.specs import RolloutSpec

EMPTY, UNVERIFIED, ADMITTED = "empty", "unverified", "admitted"


def engine_environment(spec: RolloutSpec) -> dict[str, str]:
    """Environment variables that an engine's process needs before vLLM is imported.

    If possible, set them before the process starts: OpenMP reads its variables when torch loads.
    """
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if spec.device == "cpu":
        # With logprobs, even in eager mode, vLLM compiles one helper of the sampler: 20 s before
        # the first token.
        environment |= {"TORCHDYNAMO_DISABLE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
        environment |= openmp(spec.threads)
    return environment


class RolloutWorker:
    """Generates with versioned weights. One engine per worker.

    Any thread may call `pause`, `announce` and `refuse` at any time; other methods must not run
    concurrently.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._pool: Pool | None = None
        self._spec: RolloutSpec | None = None
        self._folder: SafetensorsFolder | None = None
        self._version = -1
        self._status = EMPTY
        self._failed = ""
        self._paused = threading.Event()
        self._held: dict[int, Job] = {}  # unfinished calls by `GenerationCall.number`
        self._joining: SimpleQueue[tuple[int, Job]] = SimpleQueue()
        self._begun = -1  # number of the newest call of `generate_parts`

    def prepare(self, engine: str) -> None:
        """Import the engine, which takes seconds, before its model is known.

        `start` reports an engine that cannot be imported.
        """
        with suppress(ImportError):
            importlib.import_module(f"workers.generation.{engine}_engine")

    def start(self, spec: RolloutSpec, version: int) -> RoleInfo:
        """Start the engine on the checkpoint of `spec`; its weights count as admitted `version`.

        Raises:
            CheckpointError: The folder is missing or broken.
            UnsupportedPlatformError: The engine cannot run here.
        """
        self.close()
        folder = SafetensorsFolder(spec.checkpoint)
        os.environ.update(engine_environment(spec))
        self._pool, self._spec, self._folder = Pool(_make_engine(spec)), spec, folder
        self._failed = ""
        self._version, self._status = version, ADMITTED
        return RoleInfo("rollout", self.rank, os.getpid(), platform.node(), spec.device)

    def generate(
        self, requests: list[GenerationRequest], sampling: Sampling, version: int
    ) -> RolloutBatch:
        """Sample every request; rows are in the order of the requests, K consecutive rows each.

        Raises:
            StaleEngineError: The engine is not admitted for exactly `version`.
            DataError: A prompt is empty, too long, or not in the vocabulary.
        """
        self._require(version, ADMITTED)
        return self._sample(requests, sampling)

    def generate_parts(self, call: GenerationCall) -> Iterator[RolloutBatch]:
        """Sample a call; yield parts of whole groups of K in order, as `call.delivery` says.

        If `pause` interrupts it, it ends early; `proceed` then yields the rest.

        Raises:
            StaleEngineError: The engine is not admitted for exactly the version of the call.
            DataError: A prompt is empty, too long, or not in the vocabulary.
        """
        self._take_in()
        if call.number not in self._held:
            self._held[call.number] = self._job(call)
        self._begun = call.number
        yield from self.proceed(call.number, call.version)

    def announce(self, call: GenerationCall) -> None:
        """Queue a call of `generate_parts` that will follow the running one.

        Its sequences are sampled along with the running call as engine slots become free; its own
        `generate_parts` yields them.
        """
        self._joining.put((call.number, self._job(call)))

    def proceed(self, call: int, version: int) -> Iterator[RolloutBatch]:
        """Resume an interrupted call, possibly under newer weights; no-op if it is done.

        Raises:
            StaleEngineError: The engine is not admitted for exactly `version`.
        """
        self._require(version, ADMITTED)
        spec, _, pool = self._started()
        job = self._held.get(call)
        if job is not None:
            others = self._take_in if spec.join_running else nobody
            yield from pool.run(job, self._version, self._paused.is_set, others)
            if job.done:
                del self._held[call]

    def _job(self, call: GenerationCall) -> Job:
        self._require(call.version, ADMITTED)
        spec, folder, _ = self._started()
        require_fitting(call.requests, call.sampling, spec, folder.vocabulary)
        return Job(call.requests, call.sampling, call.delivery)

    def _take_in(self) -> Iterable[Job]:
        """Move announced calls to the unfinished ones; return all unfinished calls."""
        while not self._joining.empty():
            call, job = self._joining.get()
            if call > self._begun:  # else it started before its announcement
                self._held[call] = job
        return self._held.values()

    def pause(self) -> None:
        """Interrupt running and future calls of `generate_parts` between two engine steps.

        Lasts until the next `admit`. If the spec is `interruptible`, sampled tokens are kept.
        """
        self._paused.set()

    def forget(self) -> None:
        """Discard every unfinished call and its sampled tokens; call after `pause`."""
        _, _, pool = self._started()
        pool.land()
        self._joining = SimpleQueue()
        self._held = {}

    def probe(
        self, prompts: list[tuple[int, ...]], max_tokens: int, temperature: float, version: int
    ) -> RolloutBatch:
        """Sample one response per prompt, from weights that need not be admitted yet.

        Ids differ between engines; seeds depend only on the prompt's index and the engine's seed.
        """
        self._require(version, UNVERIFIED, ADMITTED)
        spec, _, _ = self._started()
        first = self.rank * len(prompts)
        requests = [
            GenerationRequest(i, tokens, (first + i,), (spec.seed + i,))
            for i, tokens in enumerate(prompts)
        ]
        return self._sample(requests, Sampling(temperature, max_tokens))

    def alive(self) -> bool:
        """Sample one token to prove that the engine works; False if nothing is admitted.

        Also False for a sleeping engine, which stays asleep: other roles use its memory.
        """
        if self._status != ADMITTED:
            return False
        spec, _, pool = self._started()
        if pool.engine.asleep:
            return False
        if pool.nudge():  # a new request would queue behind the active calls
            return True
        prompt = (spec.eos_token_id,)  # too short to enter the prefix cache
        self._sample([GenerationRequest(0, prompt, (0,), (0,))], Sampling(1.0, 1))
        return True

    def sleep(self) -> None:
        """Release the engine's GPU memory to other roles; version and status stay the same.

        Weights move to host memory. The next call that needs the engine (sampling, a probe or a
        weight sync) wakes it.
        """
        _, _, pool = self._started()
        pool.engine.sleep()

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        """Join the sender's transfer group; waits for all its members."""
        _, _, pool = self._started()
        pool.engine.connect(address, group_rank)

    def receive_weights(self, offer: WeightOffer) -> WeightReceipt:
        """Replace all weights with the offered ones, which are then unverified.

        Raises:
            WeightSyncError: The offer is incomplete, late or corrupted; the engine is then empty.
        """
        _, folder, _ = self._started()
        self._status = EMPTY
        require_complete(offer, folder.shapes)
        return self._swap(offer)

    def load_checkpoint(self, path: str, version: int) -> WeightReceipt:
        """Load and admit the weights of another folder of the same architecture.

        Raises:
            MissingCheckpointError: No such folder.
            BrokenCheckpointError: The folder cannot be read.
            WeightSyncError: The folder holds another architecture.
        """
        import torch

        from workers.weights.packing import make_offer
        from workers.weights.transfer import WeightSender
        from workers.weights.transport import Link

        _, folder, _ = self._started()
        other = SafetensorsFolder(path)
        _require_same_output(other, folder)
        self._status = EMPTY
        sender = WeightSender(Link(torch.device("cpu"), seconds=0.0))
        try:
            offer = make_offer(version, other.metas, "shm")
            receipt = self.receive_weights(sender.send(offer, other.buckets()))
        finally:
            sender.close()
        self.admit(version)
        return receipt

    def admit(self, version: int) -> None:
        """Allow `generate` with the received weights; call after the comparison."""
        self._require(version, UNVERIFIED, ADMITTED)
        self._status = ADMITTED
        self._paused.clear()

    def refuse(self) -> None:
        """Serve nothing until weights are received or loaded: a comparison has failed."""
        self._status = EMPTY

    def state(self) -> EngineState:
        """Version and status of the engine's weights."""
        return EngineState(self._version, self._status)

    def close(self) -> None:
        """Stop the engine and free its memory."""
        self._status = EMPTY
        self._held = {}
        self._joining = SimpleQueue()
        self._paused.clear()
        self._begun = -1
        if self._pool is not None:
            self._pool.engine.close()
            self._pool = None

    def _sample(self, requests: list[GenerationRequest], sampling: Sampling) -> RolloutBatch:
        spec, folder, pool = self._started()
        require_fitting(requests, sampling, spec, folder.vocabulary)
        (batch,) = pool.run(Job(requests, sampling, Delivery()), self._version)
        return batch

    def _swap(self, offer: WeightOffer) -> WeightReceipt:
        _, _, pool = self._started()
        pool.land()
        began = time.perf_counter()
        # Until the swap has succeeded, the engine may hold weights of two versions. A failed swap
        # is not retried, because vLLM can hang on a half-loaded model.
        self._failed = f"update to version {offer.version} did not finish"
        checksum = pool.engine.receive(offer)
        self._failed = ""
        self._version, self._status = offer.version, UNVERIFIED
        return WeightReceipt(offer.version, checksum, offer.nbytes, time.perf_counter() - began)

    def _started(self) -> tuple[RolloutSpec, SafetensorsFolder, Pool]:
        if self._pool is None or self._spec is None or self._folder is None:
            raise RoleError("engine not started", where=self._where, fix="call start first")
        if self._failed:
            raise WeightSyncError(
                self._failed,
                where=self._where,
                fix="start the engine again, then transfer the whole model",
            )
        return self._spec, self._folder, self._pool

    def _require(self, version: int, *statuses: str) -> None:
        self._started()
        if self._status not in statuses or self._version != version:
            raise StaleEngineError(
                f"asked for version {version}, holds version {self._version} ({self._status})",
                where=self._where,
                fix="transfer the weights of that version, compare them, and admit the engine",
            )

    @property
    def _where(self) -> str:
        return f"rollout worker {self.rank}"


def _require_same_output(update: SafetensorsFolder, engine: SafetensorsFolder) -> None:
    # An engine with a tied output layer would ignore a separate output layer in the checkpoint and
    # use the embedding instead.
    own = OUTPUT_LAYERS & update.shapes.keys() - engine.shapes.keys()
    if own and engine.tied:
        raise WeightSyncError(
            f"{min(own)} is a separate weight in the checkpoint, but the engine shares it "
            "with the embedding",
            where=str(update.path),
            fix="give all models of a run the same tie_word_embeddings",
        )


def _make_engine(spec: RolloutSpec) -> GenerationEngine:
    if spec.engine == "transformers":
        from workers.generation.transformers_engine import TransformersEngine

        return TransformersEngine(spec)
    try:
        from workers.generation.vllm_engine import VllmEngine
    except ImportError as error:
        raise UnsupportedPlatformError(
            f"vLLM cannot be imported: {error}",
            where=f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
            fix="install the cpu or the gpu extra, or choose rollout.engine=transformers",
        ) from error
    return VllmEngine(spec)
