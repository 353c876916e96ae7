"""The work of a PPO step by raw vLLM and plain PyTorch in one process: what no framework adds to.

Generation with log-probabilities, scores, reference, values, advantages, one AdamW step of policy
and critic per minibatch, and the policy's new weights in the engine. The engine's log-probabilities
are the old ones. Lengths are equal, so that no row has padding and attention needs no mask.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
    "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip

import torch
from marks import Marks, job
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from vllm import LLM, SamplingParams
from vllm.model_executor.model_loader.reload import (
    finalize_layerwise_reload,
    initialize_layerwise_reload,
)

KL, LAMBDA, CLIP, VALUE_CLIP = 0.05, 0.95, 0.2, 0.2


class Master:
    """AdamW on float32 weights; a model in bf16 gets copies of them."""

    def __init__(self, model: nn.Module, learning_rate: float) -> None:
        self._weights = list(model.parameters())
        self._own = self._weights[0].dtype != torch.float32
        self._masters = [
            nn.Parameter(w.detach().float()) if self._own else w for w in self._weights
        ]
        self._optimizer = torch.optim.AdamW(
            self._masters, lr=learning_rate, betas=(0.9, 0.95), eps=1e-5, weight_decay=0.0,
            fused=True,
        )  # fmt: skip

    def step(self) -> None:
        """One step by the gradients of the model, which are then gone."""
        if self._own:
            for master, weight in zip(self._masters, self._weights, strict=True):
                assert weight.grad is not None  # every weight is trained
                master.grad, weight.grad = weight.grad.float(), None
        nn.utils.clip_grad_norm_(self._masters, 1.0)
        self._optimizer.step()
        self._optimizer.zero_grad()
        if self._own:
            with torch.no_grad():
                for master, weight in zip(self._masters, self._weights, strict=True):
                    weight.copy_(master)


def main() -> None:
    told = job()
    torch.set_num_threads(told["threads"])
    inputs, dtype = Path(told["inputs"]), getattr(torch, told["dtype"])
    causal = lambda: AutoModelForCausalLM.from_pretrained(inputs / "sft", dtype=dtype)  # noqa: E731
    scalar = lambda: AutoModelForTokenClassification.from_pretrained(  # noqa: E731
        inputs / "reward_model", dtype=dtype
    )
    policy, reference, critic, reward = causal(), causal(), scalar(), scalar()
    optimizers = [Master(m, told["learning_rate"]) for m in (policy, critic)]
    engine = _engine(told)
    tokenizer = AutoTokenizer.from_pretrained(inputs / "sft")
    lines = (inputs / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    prompts = [tokenizer(json.loads(line)["prompt"])["input_ids"] for line in lines]
    marks, batch = Marks(told["marks"]), told["sequences"]
    for step in range(told["steps"]):
        rows, old = _generate(engine, prompts[step * batch : (step + 1) * batch], told)
        first = told["prompt_tokens"] - 1  # the cell whose output is the first response token
        with torch.no_grad():
            scores = _values(reward, rows)[:, -1]
            kl = old - _logprobs(reference, rows, first)
            values = _values(critic, rows)[:, first:-1]
        advantages, returns = _advantages(scores, kl, values)
        steps = 0
        for _ in range(told["epochs"]):
            for chosen in torch.randperm(batch).split(told["minibatch"]):
                _policy_loss(policy, rows[chosen], first, old[chosen], advantages[chosen])
                _value_loss(critic, rows[chosen], first, values[chosen], returns[chosen])
                for optimizer in optimizers:
                    optimizer.step()
                steps += 1
        _load(engine, policy)
        marks.add(len(rows), first + 1, rows.shape[1] - first - 1, steps)


def _engine(told: dict) -> LLM:
    return LLM(
        model=str(Path(told["inputs"]) / "sft"), dtype=told["dtype"], skip_tokenizer_init=True,
        generation_config="vllm", max_model_len=told["prompt_tokens"] + told["response_tokens"],
        max_num_seqs=told["sequences"], enforce_eager=True, logprobs_mode="processed_logprobs",
        kv_cache_memory_bytes=told["kv_cache_mib"] << 20, disable_log_stats=True,
        distributed_executor_backend="uni",
    )  # fmt: skip


def _generate(engine: LLM, prompts: list[list[int]], told: dict) -> tuple[Tensor, Tensor]:
    sampling = SamplingParams(
        temperature=1.0, max_tokens=told["response_tokens"], ignore_eos=True, logprobs=0,
        detokenize=False,
    )  # fmt: skip
    made = engine.generate(
        [{"prompt_token_ids": p} for p in prompts], sampling, use_tqdm=False
    )  # in the order of the prompts
    drawn = [each.outputs[0] for each in made]
    rows = [p + list(d.token_ids) for p, d in zip(prompts, drawn, strict=True)]
    old = [
        [each[t].logprob for t, each in zip(d.token_ids, d.logprobs or (), strict=True) if each]
        for d in drawn
    ]
    return torch.tensor(rows), torch.tensor(old)


def _logprobs(model: PreTrainedModel, rows: Tensor, first: int) -> Tensor:
    """Log-probabilities of the response tokens."""
    logits = model(input_ids=rows, logits_to_keep=rows.shape[1] - first, use_cache=False).logits
    chances = logits[:, :-1].float().log_softmax(-1)
    return chances.gather(-1, rows[:, first + 1 :, None])[..., 0]


def _values(model: PreTrainedModel, rows: Tensor) -> Tensor:
    return model(input_ids=rows, use_cache=False).logits[..., 0].float()


def _advantages(scores: Tensor, kl: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation without discount, whitened; and returns."""
    rewards = -KL * kl
    rewards[:, -1] += scores
    following = torch.cat([values[:, 1:], torch.zeros(len(values), 1)], 1)
    deltas, advantage = rewards + following - values, torch.zeros(len(values))
    found = torch.empty_like(deltas)
    for t in reversed(range(deltas.shape[1])):
        advantage = deltas[:, t] + LAMBDA * advantage
        found[:, t] = advantage
    return (found - found.mean()) / (found.std() + 1e-8), found + values


def _policy_loss(
    policy: PreTrainedModel, rows: Tensor, first: int, old: Tensor, advantages: Tensor
) -> None:
    ratio = (_logprobs(policy, rows, first) - old).exp()
    clipped = ratio.clamp(1 - CLIP, 1 + CLIP)
    (-torch.minimum(advantages * ratio, advantages * clipped).mean()).backward()


def _value_loss(
    critic: PreTrainedModel, rows: Tensor, first: int, old: Tensor, returns: Tensor
) -> None:
    values = _values(critic, rows)[:, first:-1]
    clipped = old + (values - old).clamp(-VALUE_CLIP, VALUE_CLIP)
    worse = torch.maximum((values - returns) ** 2, (clipped - returns) ** 2)
    (0.5 * worse.mean()).backward()


def _load(engine: LLM, policy: PreTrainedModel) -> None:
    """Give the engine the policy's weights."""
    runner = engine.llm_engine.model_executor.driver_worker.worker.model_runner
    model = runner.model
    with torch.no_grad():
        initialize_layerwise_reload(model)
        model.load_weights((name, weight.detach()) for name, weight in policy.named_parameters())
        finalize_layerwise_reload(model, engine.llm_engine.vllm_config.model_config)


if __name__ == "__main__":
    main()
