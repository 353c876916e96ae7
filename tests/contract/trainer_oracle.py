"""The same training in plain PyTorch: one process, one row at a time, no padding, no engine."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from trainer_ranks import LOSS, OPTIMIZER, experience, rankings, texts

# 1e-2 warmed up over two steps, then a straight fall to a tenth over the remaining six.
RATES = [0.005, 0.01, 0.01, 0.0085]


class Loop:
    """A model and the AdamW loop that every tutorial shows."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model.eval()
        named = list(model.parameters())
        self.optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in named if p.ndim > 1],
                    "weight_decay": OPTIMIZER.weight_decay,
                },
                {"params": [p for p in named if p.ndim == 1], "weight_decay": 0.0},
            ],
            betas=OPTIMIZER.betas,
            eps=OPTIMIZER.eps,
        )
        self.taken = 0

    def step(self, loss: Tensor) -> tuple[float, float]:
        """One update; the loss and the gradient norm before clipping."""
        self.optimizer.zero_grad()
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), OPTIMIZER.max_grad_norm)
        for parameters in self.optimizer.param_groups:
            parameters["lr"] = RATES[self.taken]
        self.optimizer.step()
        self.taken += 1
        return float(loss.detach()), float(norm)

    def logits(self, tokens: object) -> Tensor:
        ids = torch.tensor(tokens).long()[None]
        return self.model(input_ids=ids, use_cache=False).logits[0]


def text_loss(loop: Loop) -> Tensor:
    """Mean over all target tokens."""
    batch, losses = texts(), []
    for tokens, targets in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
        logp = loop.logits(tokens).log_softmax(-1)
        losses += [-logp[t - 1, tokens[t]] for t in range(1, len(tokens)) if targets[t]]
    assert len(losses) == batch.target_count
    return torch.stack(losses).mean()


def response_logprobs(loop: Loop, row: int) -> Tensor:
    e = experience()
    tokens, start = e.tokens.row(row), int(e.prompt_lengths[row])
    logp = (loop.logits(tokens) / LOSS.temperature).log_softmax(-1)
    return torch.stack([logp[t - 1, tokens[t]] for t in range(start, len(tokens))])


def ppo_loss(loop: Loop) -> Tensor:
    e, losses = experience(), []
    for i in range(5):
        new = response_logprobs(loop, i)
        for t, (old, advantage) in enumerate(
            zip(e.old_logprobs.row(i), e.advantages.row(i), strict=True)
        ):
            ratio = torch.exp(new[t] - float(old))
            a = (float(advantage) - LOSS.advantage_mean) / LOSS.advantage_std
            losses.append(-min(ratio * a, torch.clamp(ratio, 0.8, 1.2) * a))
    return torch.stack(losses).mean()


def further_loss(loop: Loop, name: str) -> Tensor:
    """The losses of `FURTHER`, token by token."""
    e = experience()
    sequences = []
    for i in range(5):
        new = response_logprobs(loop, i)
        old = torch.tensor(e.old_logprobs.row(i))
        whole = (new.detach() - old).mean().exp()
        terms = []
        for t in range(len(new)):
            a = (float(e.advantages.row(i)[t]) - LOSS.advantage_mean) / LOSS.advantage_std
            d = new[t] - float(e.ref_logprobs.row(i)[t])
            if name == "clip":
                ratio = torch.exp(new[t] - old[t])
                term = -torch.minimum(ratio * a, ratio.clamp(0.8, 1.4) * a)
                term = torch.clamp(term, max=-1.1 * a) if a < 0 else term
                weight = math.exp(float(old[t]) - float(e.rollout_logprobs.row(i)[t]))
                terms.append(term * weight if 0.8 <= weight < 1.2 else 0.0 * new[t])
            elif name == "gspo":
                ratio = whole * torch.exp(new[t] - new[t].detach())
                terms.append(-torch.minimum(ratio * a, ratio.clamp(0.7, 1.3) * a))
                terms[-1] = terms[-1] + 0.6 * (torch.exp(-d) - 1 + d)
            else:
                ratio = min(float(torch.exp(new[t] - old[t]).detach()), 1.1)
                terms.append(-ratio * a * new[t] + 0.2 * d**2 / 2)
        sequences.append(torch.stack(terms))
    if name == "clip":
        return torch.cat(sequences).sum() / (5 * 9)
    if name == "gspo":
        return torch.stack([terms.mean() for terms in sequences]).mean()
    return torch.cat(sequences).mean()


def ranking_loss(loop: Loop) -> Tensor:
    """Mean over the two rankings that hold a pair; the third only ties."""
    means = []
    for ranking in rankings():
        scores = [loop.logits(row)[-1, 0] for row in ranking.sequences.rows()]
        pairs = [
            -torch.log(torch.sigmoid(scores[i] - scores[j]))
            for i in range(len(scores))
            for j in range(len(scores))
            if ranking.ranks[i] < ranking.ranks[j]
        ]
        if pairs:
            means.append(torch.stack(pairs).mean())
    assert len(means) == 2
    return torch.stack(means).mean()


def completion_logprobs(loop: Loop, row: object, prompt: int) -> Tensor:
    logp = loop.logits(row).log_softmax(-1)
    return torch.stack([logp[t - 1, row[t]] for t in range(prompt, len(row))])  # type: ignore[index]


def preference_loss(loop: Loop, name: str) -> Tensor:
    """The losses of `PREFERENCES`, pair by pair; the third ranking only ties."""
    means = []
    for ranking in rankings()[:1] + rankings()[2:]:
        each = [completion_logprobs(loop, row, 2) for row in ranking.sequences.rows()]
        ranks, distinct = ranking.ranks, sorted(set(ranking.ranks.tolist()))
        if name == "simpo":
            rewards = [2.0 * logps.mean() for logps in each]
        else:
            rewards = [
                logps.sum() - float(ref) for logps, ref in zip(each, ranking.reference, strict=True)
            ]
        terms = []
        for i in range(len(ranks)):
            for j in range(len(ranks)):
                near = distinct.index(ranks[j]) == distinct.index(ranks[i]) + 1
                ends = ranks[i] == distinct[0] and ranks[j] == distinct[-1]
                d = rewards[i] - rewards[j]
                if name == "dpo" and ranks[i] < ranks[j]:
                    right, wrong = torch.sigmoid(0.2 * d), torch.sigmoid(-0.2 * d)
                    terms.append(-0.9 * torch.log(right) - 0.1 * torch.log(wrong))
                elif name == "ipo" and ends:
                    terms.append((d - 1.0) ** 2)
                elif name == "simpo" and near:
                    terms.append(-torch.log(torch.sigmoid(d - 0.3)))
        means.append(torch.stack(terms).mean())
        if name == "simpo":
            means[-1] = means[-1] - 0.7 * each[int(ranks.argmin())].mean()
    return torch.stack(means).mean()


def response_values(loop: Loop, row: int) -> Tensor:
    e = experience()
    tokens, start = e.tokens.row(row), int(e.prompt_lengths[row])
    return loop.logits(tokens)[start - 1 : len(tokens) - 1, 0]


def value_loss(loop: Loop) -> Tensor:
    e, losses = experience(), []
    for i in range(5):
        values = response_values(loop, i)
        for t, (old, target) in enumerate(zip(e.values.row(i), e.returns.row(i), strict=True)):
            near = torch.clamp(values[t], float(old) - 0.2, float(old) + 0.2)
            losses.append(max((values[t] - float(target)) ** 2, (near - float(target)) ** 2) / 2)
    return torch.stack(losses).mean()
