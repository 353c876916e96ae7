"""The same policy step in plain PyTorch in fp64 on the CPU: the oracle of the trainers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from benchmarks.gpu.samples import LOSS, OPTIMIZER
from workers.records.training import ExperienceBatch, TokenBatch


class PlainLoop:
    """One row at a time, without padding, packing, engine or chunks."""

    def __init__(self, folder: Path, dtype: torch.dtype, device: str) -> None:
        self.device = device
        model = LlamaForCausalLM.from_pretrained(folder, dtype=dtype)
        self.model = nn.Module.to(model, device).eval()
        weights = list(self.model.parameters())
        matrices, vectors = ([w for w in weights if (w.ndim > 1) == m] for m in (True, False))
        decay = OPTIMIZER.weight_decay
        self._optimizer = torch.optim.AdamW(
            [{"params": matrices, "weight_decay": decay}, {"params": vectors, "weight_decay": 0.0}],
            lr=OPTIMIZER.learning_rate, betas=OPTIMIZER.betas, eps=OPTIMIZER.eps,
        )  # fmt: skip

    def step(self, e: ExperienceBatch, documents: TokenBatch) -> tuple[float, float, float]:
        """PPO's loss, the text's loss, and the gradient norm before clipping."""
        self._optimizer.zero_grad()
        ppo, text = 0.0, 0.0
        for loss in self.ppo_losses(e):
            loss.backward()
            ppo += float(loss)
        for loss in self._text_losses(documents):
            (LOSS.ptx_coefficient * loss).backward()
            text += float(loss)
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.max_grad_norm)
        self._optimizer.step()
        return ppo, text, float(norm)

    def ppo_losses(self, e: ExperienceBatch) -> Iterator[Tensor]:
        """Each sequence's part of the clipped loss, a mean over all response tokens."""
        count = len(e.advantages.values)
        for row, tokens in enumerate(e.tokens.rows()):
            first = int(e.prompt_lengths[row])
            new = self._logprobs(torch.tensor(tokens))[first - 1 :]
            old, advantage = (
                torch.tensor(field.row(row)).to(new) for field in (e.old_logprobs, e.advantages)
            )
            ratio = (new - old).exp()
            near = ratio.clamp(1 - LOSS.clip, 1 + LOSS.clip)
            yield -torch.minimum(ratio * advantage, near * advantage).sum() / count

    def _text_losses(self, documents: TokenBatch) -> Iterator[Tensor]:
        for tokens in documents.tokens.rows():
            yield -self._logprobs(torch.tensor(tokens)).sum() / documents.target_count

    def _logprobs(self, tokens: Tensor) -> Tensor:
        """(S - 1,) log-probability of each token after the first."""
        ids = tokens.long().to(self.device)
        logits = self.model(input_ids=ids[None], use_cache=False).logits[0, :-1]
        return logits.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
