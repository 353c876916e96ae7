"""Generation with vLLM in this process, with weight updates while the engine runs.

Importing this module registers the weight transfer engine below. vLLM imports it again in each
tensor-parallel worker, because `WorkerExtension` is their extension class.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from vllm import LLM, SamplingParams
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info
from vllm.sampling_params import RequestOutputKind
from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

from workers.errors import ConfigError, RoleError, WeightSyncError
from workers.generation.engine import Generated, Sample
from workers.model_folders.weight_files import OUTPUT_LAYERS
from workers.records.generation import Finish, Sampling
from workers.records.specs import RolloutSpec
from workers.records.weights import GroupAddress, WeightOffer
from workers.weights.transfer import WeightReceiver
from workers.weights.transport import Link

_BACKEND = "packed_buckets"
_FINISH = {"stop": Finish.STOP, "length": Finish.LENGTH, "abort": Finish.ABORT}
_PREFILL_TOKENS = 4096  # CPU: prompt tokens per step
_WEIGHTS, _CACHE = "weights", "kv_cache"  # vLLM's tags of the memory that sleep releases
_TO_HOST = 1  # vLLM's sleep level that keeps the weights in host memory


@dataclass
class JoinInfo(WeightTransferInitInfo):
    """How the workers of one engine join a transfer group."""

    spec: RolloutSpec
    address: GroupAddress
    group_rank: int  # of the first worker


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """Arguments of a weight update, which is one whole transfer."""

    spec: RolloutSpec
    offer: WeightOffer


class PackedTransferEngine(WeightTransferEngine[JoinInfo, UpdateInfo]):
    """Receives packed buckets in a vLLM worker and loads them layer by layer."""

    init_info_cls = JoinInfo
    update_info_cls = UpdateInfo

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checksum = ""
        self._receiver: WeightReceiver | None = None

    def _incoming(self, spec: RolloutSpec) -> WeightReceiver:
        if self._receiver is None:
            link = Link(self.device, spec.collective_seconds)
            self._receiver = WeightReceiver(link, spec.transport_folder)
        return self._receiver

    def init_transfer_engine(self, init_info: JoinInfo) -> None:
        """Join the sender's group; leaves the previous one."""
        rank = init_info.group_rank + self.parallel_config.rank
        self._incoming(init_info.spec).connect(init_info.address, rank)

    def start_weight_update(self) -> None:
        """Do nothing: `receive_weights` starts the reload, if possible after verification."""

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load every bucket; raise WeightSyncError unless all weights of the model arrived."""
        receiver, offer = self._incoming(update_info.spec), update_info.offer
        reuses_buffer = receiver.transport(offer.transport).reuses_buffer
        buckets = receiver.receive(offer)
        wanted = {name for name, _ in self.model.named_parameters()}
        if self.device.type == "cpu":
            self._forget_expert_kernels()
            self._leave_embeddings_plain()
        initialize_layerwise_reload(self.model)
        load: Any = self.model.load_weights
        for bucket in buckets:
            # With tied weights the loader skips the output layer, which is the embedding.
            wanted -= load(iter(bucket))
            if reuses_buffer:
                self._keep_pending(bucket[0][1].untyped_storage().data_ptr())
        self.checksum = receiver.checksum
        if self._tied:
            wanted -= OUTPUT_LAYERS
        if wanted:
            raise WeightSyncError(
                f"{len(wanted)} weights of the engine were not updated, {min(wanted)} among them"
            )

    def _forget_expert_kernels(self) -> None:
        # On CPU, MoE experts multiply with packed weights, and vLLM packs them only when it creates
        # the kernel: a reload would leave plain weights where the kernel reads packed ones.
        for layer in self.model.modules():
            method: Any = getattr(layer, "quant_method", None)
            if getattr(method, "moe_kernel", None) is not None:
                method.moe_kernel = None

    def _leave_embeddings_plain(self) -> None:
        # On CPU, vLLM packs an embedding for matrix products, which only output layers need: a
        # fifth of a small model's loading time, and the embedding's memory a second time.
        heads, embeddings = self._output_layers()
        for layer in embeddings if heads else []:
            layer.quant_method.process_weights_after_loading = _nothing

    def _output_layers(self) -> tuple[list[Any], list[Any]]:
        """The separate output layers, and the embeddings."""
        found = [m for m in self.model.modules() if isinstance(m, VocabParallelEmbedding)]
        heads = [m for m in found if isinstance(m, ParallelLMHead)]
        return heads, [m for m in found if not isinstance(m, ParallelLMHead)]

    def _keep_pending(self, buffer: int) -> None:
        # A layer that waits for more elements holds views of the receive buffer, which the next
        # bucket overwrites. Embeddings wait until the end, because their vocabulary is padded.
        for layer in self.model.modules():
            for _, call in get_layerwise_info(layer).loaded_weights:
                for name, value in call.arguments.items():
                    if isinstance(value, torch.Tensor) and _lies_at(buffer, value):
                        call.arguments[name] = value.clone()

    def finish_weight_update(self) -> None:
        """Finish the reload."""
        finalize_layerwise_reload(self.model, self.model_config)
        if self.device.type == "cpu" and self._tied:
            self._repack_output_layer()

    def _repack_output_layer(self) -> None:
        # On CPU, the output layer multiplies with a packed copy of its weights. A reload refreshes
        # the copies of loaded layers only. A tied output layer is loaded as the embedding, so its
        # copy would keep the old weights.
        heads, embeddings = self._output_layers()
        if not heads and len(embeddings) == 1:
            return  # the output layer is the embedding module, which has been loaded
        if len(heads) != 1 or len(embeddings) != 1:
            raise WeightSyncError(
                f"tied model with {len(heads)} output layers and {len(embeddings)} embeddings",
                fix="untie the weights of the checkpoint",
            )
        heads[0].weight = embeddings[0].weight
        heads[0].quant_method.process_weights_after_loading(heads[0])

    @property
    def _tied(self) -> bool:
        return bool(getattr(self.model_config.hf_config, "tie_word_embeddings", False))

    def shutdown(self) -> None:
        """Leave every transfer group and release shared memory."""
        if self._receiver is not None:
            self._receiver.close()


def _nothing(_: object) -> None:
    """Replacement for a method that packs weights."""


def _lies_at(buffer: int, tensor: torch.Tensor) -> bool:
    return tensor.device.type != "meta" and tensor.untyped_storage().data_ptr() == buffer


class WorkerExtension:
    """Methods added to vLLM's workers."""

    weight_transfer_engine: PackedTransferEngine  # pyright: ignore[reportUninitializedInstanceVariable]
    model_runner: Any  # pyright: ignore[reportUninitializedInstanceVariable]

    def received_checksum(self) -> str:
        """Checksum of the last update that this worker received."""
        return self.weight_transfer_engine.checksum

    def draw_below(self, ids: int) -> int:
        """Never draw a token id of `ids` or above; returns the number of layers with the hook.

        The hook masks logits where the model computes them, so that drawn tokens and reported
        log-probabilities agree, independent of vLLM's later processing.
        """
        layers = [m for m in self.model_runner.model.modules() if isinstance(m, LogitsProcessor)]
        for layer in layers:
            layer.register_forward_hook(_bar_from(ids))
        return len(layers)


def _bar_from(ids: int) -> Callable[[Any, Any, torch.Tensor | None], None]:
    """Build a hook that gives token ids of `ids` and above zero probability."""

    def bar(_layer: Any, _arguments: Any, logits: torch.Tensor | None) -> None:
        if logits is not None:  # tensor parallel: only one worker has them
            logits[..., ids:] = -torch.inf

    return bar


WeightTransferEngineFactory.register_engine(_BACKEND, PackedTransferEngine)


class VllmEngine:
    """One vLLM engine; it draws tokens only when the caller steps it."""

    def __init__(self, spec: RolloutSpec) -> None:
        self._spec = spec
        self._broken = False
        self._numbers = itertools.count()
        self._sleeping: frozenset[str] = frozenset()  # released memory, by tag
        # Tokens and logprobs of active samples that vLLM has returned so far.
        self._drawn: dict[int, tuple[list[int], list[float]]] = {}
        try:
            self._llm: LLM | None = LLM(**_engine_arguments(spec))
        except ValueError as error:  # includes pydantic's errors
            raise ConfigError(
                f"vLLM refuses these settings: {error}", where=f"engine on {spec.checkpoint}"
            ) from error
        if spec.device == "cpu":
            self._require_head_size(self._llm)
        self._draw_tokens_alone(self._llm)

    def _draw_tokens_alone(self, llm: LLM) -> None:
        """Exclude embedding rows beyond the tokenizer's ids, if there are any, from sampling."""
        ids = self._spec.vocabulary
        if not 0 < ids < llm.llm_engine.vllm_config.model_config.get_vocab_size():
            return
        if 0 in llm.collective_rpc("draw_below", args=(ids,)):
            self.close()
            raise ConfigError(
                "this engine cannot keep its samples to the tokens of the tokenizer: the model has "
                "no layer of vLLM's that makes its logits",
                where=f"engine on {self._spec.checkpoint}",
                fix="set rollout.engine=transformers",
            )

    @property
    def running(self) -> bool:
        """Whether samples are active."""
        return self._require_llm().llm_engine.has_unfinished_requests()

    def add(self, samples: Sequence[Sample], sampling: Sampling) -> list[int]:
        """Add samples to vLLM's queue. Temperature 0 is greedy, with logprobs at temperature 1."""
        self._wake(_WEIGHTS, _CACHE)
        engine = self._require_llm().llm_engine
        numbers = [next(self._numbers) for _ in samples]
        with self._unbroken():
            for number, sample in zip(numbers, samples, strict=True):
                prompt: Any = {"prompt_token_ids": list(sample.prompt)}
                engine.add_request(str(number), prompt, self._parameters(sample, sampling))
                self._drawn[number] = ([], [])
        return numbers

    def step(self) -> list[tuple[int, Generated]]:
        """Run one step of vLLM; returns the samples that finished."""
        engine = self._require_llm().llm_engine
        with self._unbroken():
            outputs: list[Any] = engine.step()
        finished: list[tuple[int, Generated]] = []
        for output in outputs:
            number, completion = int(output.request_id), output.outputs[0]
            tokens, logprobs = self._drawn[number]
            tokens.extend(completion.token_ids)
            logprobs.extend(completion.logprobs.logprobs)
            if output.finished:
                del self._drawn[number]
                finished.append((number, Generated(tokens, logprobs, _finish(completion))))
        return finished

    def drop(self, numbers: Collection[int]) -> list[tuple[int, Generated]]:
        """Abort samples; returns their tokens so far if `interruptible`, else no tokens."""
        engine = self._require_llm().llm_engine
        with self._unbroken():
            engine.abort_request([str(number) for number in numbers])
        return [(n, Generated(*self._drawn.pop(n), Finish.ABORT)) for n in numbers]

    @property
    def asleep(self) -> bool:
        """Whether any of its GPU memory is released."""
        return bool(self._sleeping)

    def sleep(self) -> None:
        """Release weights and KV cache: weights move to host memory, cached prefixes are dropped.

        vLLM could discard the weights (level 2) if new ones will follow. But an evaluation or a
        probe that wakes the engine first would then sample from uninitialized weights.

        Raises:
            RoleError: vLLM failed; the engine is unusable.
        """
        assert not self._drawn, "vLLM would abort what is under way"
        llm = self._require_llm()
        if not self._spec.sleep or {_WEIGHTS, _CACHE} <= self._sleeping:
            return
        try:
            with self._unbroken():
                llm.sleep(level=_TO_HOST)
        # vLLM asserts that the GPU has more free memory than before, counting all processes.
        except (AssertionError, RuntimeError) as error:
            raise RoleError(
                f"the engine cannot give its GPU memory away: {error}",
                fix="see that no other program takes memory of this GPU, and that the host has "
                "room for the weights; or set rollout.sleep=false",
            ) from error
        self._sleeping = frozenset((_WEIGHTS, _CACHE))

    def _wake(self, *wanted: str) -> None:
        """Take released memory back, at the same addresses."""
        tags = [tag for tag in wanted if tag in self._sleeping]
        if not tags:
            return
        llm = self._require_llm()
        try:
            with self._unbroken():
                llm.wake_up(tags)
        except RuntimeError as error:  # CUDA errors; includes torch's out-of-memory error
            raise RoleError(
                f"the engine cannot take its GPU memory back: {error}",
                fix="lower rollout.gpu_memory_fraction or trainer.micro_batch_tokens, or set "
                "trainer.rest_on_host=true",
            ) from error
        self._sleeping -= set(tags)

    @contextmanager
    def _unbroken(self) -> Iterator[None]:
        """Mark the engine as unusable if the body raises: requests may be left inside vLLM."""
        self._broken = True
        yield
        self._broken = False

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        """Join a transfer group, one rank per tensor-parallel worker from `group_rank` upward."""
        info = {"spec": self._spec, "address": address, "group_rank": group_rank}
        self._require_llm().init_weight_transfer_engine({"init_info": info})

    def receive(self, offer: WeightOffer) -> str:
        """Replace all weights and drop cached prefixes; returns the received bytes' checksum."""
        self._wake(_WEIGHTS)  # vLLM copies new weights into the memory of the old ones
        llm = self._require_llm()
        self._broken = True
        try:
            llm.start_weight_update()
            llm.update_weights({"update_info": {"spec": self._spec, "offer": offer}})
            llm.finish_weight_update(str(offer.version))
        except WeightSyncError:
            raise
        except RuntimeError as error:  # tensor-parallel workers pass on only an error's text
            raise WeightSyncError(
                f"vLLM could not load the update: {error}",
                where=f"version {offer.version}",
                fix="start the engine again, then transfer the whole model",
            ) from error
        if not llm.reset_prefix_cache():
            raise WeightSyncError("cached prefixes of the old weights could not be dropped")
        checksums = set(llm.collective_rpc("received_checksum"))
        if len(checksums) != 1:
            raise WeightSyncError(f"workers of one engine received different bytes: {checksums}")
        self._broken = False
        return checksums.pop()

    def close(self) -> None:
        """Stop the engine's workers and free its memory."""
        if self._llm is not None:
            self._llm.llm_engine.engine_core.shutdown()
            self._llm = None

    def _require_llm(self) -> LLM:
        if self._llm is None or self._broken:
            raise RoleError(
                "engine is closed" if self._llm is None else "an earlier call failed inside vLLM",
                fix="start the engine again",
            )
        return self._llm

    def _require_head_size(self, llm: LLM) -> None:
        # vLLM checks only at the first token, and then keeps the failed request.
        size = llm.llm_engine.vllm_config.model_config.get_head_size()
        supported = CPUAttentionBackend.get_supported_head_sizes()
        if size not in supported:
            self.close()
            raise ConfigError(
                f"attention heads of size {size}; vLLM on CPU computes {supported}",
                where=f"engine on {self._spec.checkpoint}",
                fix="choose hidden_size / heads among these, or rollout.engine=transformers",
            )

    def _parameters(self, sample: Sample, sampling: Sampling) -> SamplingParams:
        interruptible = self._spec.interruptible
        return SamplingParams(
            temperature=sampling.temperature,
            max_tokens=sample.max_tokens or sampling.max_tokens,
            seed=sample.seed,
            # Only the trainer's end-of-sequence token ends a response, even if the checkpoint's
            # generation settings name others.
            ignore_eos=True,
            stop_token_ids=[self._spec.eos_token_id],
            allowed_token_ids=list(sampling.allowed) or None,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            # Returning every token costs time; only interruptible requests need it.
            output_kind=(
                RequestOutputKind.DELTA if interruptible else RequestOutputKind.FINAL_ONLY
            ),
        )


def _finish(completion: Any) -> Finish:
    finish = _FINISH.get(completion.finish_reason)
    if finish is None:
        raise RoleError(f"vLLM finished a sequence with reason {completion.finish_reason!r}")
    return finish


def _engine_arguments(spec: RolloutSpec) -> dict[str, Any]:
    length = spec.max_prompt_tokens + spec.max_response_tokens
    arguments: dict[str, Any] = {
        "model": spec.checkpoint,
        "dtype": spec.dtype,
        # Not "auto", which prefers a second copy of the weights in Mistral's format, if present.
        "load_format": "hf",
        "config_format": "hf",
        "skip_tokenizer_init": True,
        "generation_config": "vllm",
        "seed": spec.seed,
        "max_model_len": length,
        "max_num_seqs": spec.max_concurrent_sequences,
        "tensor_parallel_size": spec.tensor_parallel_size,
        # Explicit, because inside a Ray placement group vLLM would start its own Ray workers.
        "distributed_executor_backend": "uni" if spec.tensor_parallel_size == 1 else "mp",
        "enable_prefix_caching": spec.prefix_caching,
        "enforce_eager": spec.enforce_eager,
        "logprobs_mode": "processed_logprobs",
        "disable_log_stats": True,
        # A step scheduled ahead would still run after an abort, under other weights.
        "async_scheduling": False if spec.interruptible else None,
        "use_tqdm_on_load": False,
        "weight_transfer_config": {"backend": _BACKEND},
        "worker_extension_cls": f"{__name__}.{WorkerExtension.__name__}",
    }
    if spec.device == "cuda":
        return arguments | {
            "gpu_memory_utilization": spec.gpu_memory_fraction,
            "enable_sleep_mode": spec.sleep,
        }
    return arguments | {
        "kv_cache_memory_bytes": spec.kv_cache_bytes,
        # Per-request seeds across chunks need generators that skip ahead; CPU ones cannot.
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(
            length, min(_PREFILL_TOKENS, length * spec.max_concurrent_sequences)
        ),
    }
