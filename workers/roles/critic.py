"""The trainer of scalar-head models: reward models and PPO's value function."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from workers.errors import NonFiniteError
from workers.models.frozen_model import sequence_scores
from workers.models.padding import last_cells, response_cells
from workers.ops import ValueStats, pair_accuracy, rankings_loss, value_loss, value_stats
from workers.records.arrays import FloatArray, Ragged
from workers.records.gather import gather_experience
from workers.records.generation import RolloutBatch
from workers.records.specs import GroupSpec, TrainModelSpec
from workers.records.training import (
    ExperienceBatch,
    PairCounts,
    Ranking,
    RankingStep,
    StepStats,
    StepWork,
    TokenBatch,
    TokenField,
    Work,
)
from workers.roles.scoring import response_values
from workers.training.trainer import Share, Tally, Totals, Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SCORE_TOKENS = 8192  # tokens per forward pass of `score`, padding included


class CriticWorker(Trainer):
    """One rank of the critic's trainer."""

    role = "critic"

    def train_rankings(self, step: RankingStep) -> StepStats:
        """One optimizer step on the mean ranking loss (InstructGPT, equation 1), nats per pair.

        `extra` holds pair_accuracy, the fraction of kept pairs that were ordered correctly.

        Raises:
            NonFiniteError: the loss is not finite; names the prompts.
        """
        self.engine.mode(training=True)
        tally = Tally("ranking")
        for rankings in step.micro_batches:
            scores, loss = self._rank(rankings, step.rankings)
            _count_pairs(tally, scores, rankings)
            self._accumulate(tally, Share(loss, torch.cat(scores), _prompts(rankings)))
        totals = self._total(tally)
        accuracy = totals.sums["correct"] / max(totals.sums["pairs"], 1.0)
        return self._step(totals, {"pair_accuracy": accuracy})

    def evaluate_rankings(self, step: RankingStep) -> PairCounts:
        """Correctly ordered pairs and summed loss over all ranks, and this rank's scores."""
        self.engine.mode(training=False)
        tally = Tally("ranking")
        found: list[FloatArray] = []
        with torch.no_grad():
            for rankings in step.micro_batches:
                scores, loss = self._rank(rankings, 1)
                _count_pairs(tally, scores, rankings)
                tally.loss += float(loss)
                found += [s.float().cpu().numpy() for s in scores[: len(rankings)]]
        totals = self._total(tally)
        counts = {name: int(value) for name, value in totals.sums.items()}
        return PairCounts(
            counts["correct"], counts["pairs"], totals.loss, counts["rankings"], tuple(found)
        )

    def score(self, batch: TokenBatch) -> FloatArray:
        """Reward at the last token of each row, (B,); every rank computes all of them."""
        self.engine.mode(training=False)
        engine = self.engine
        return sequence_scores(engine.passes, batch.tokens, _SCORE_TOKENS, engine.device)

    def shift_bias(self, mean: float) -> None:
        """Lower every score by `mean`: subtract it from the head's bias.

        Raises:
            NonFiniteError: `mean` is NaN or infinite, which would make every score non-finite.
        """
        if not math.isfinite(mean):
            raise NonFiniteError(
                f"the mean score to shift by is {mean}",
                where=self._name,
                fix="lower the learning rate, or look at the texts that were scored",
            )
        from workers.models.load import scalar_head

        name, _ = scalar_head(self.engine.module)
        self.engine.add_to_weight(f"{name}.bias", -mean)

    def values(self, work: Work, shards: list[RolloutBatch]) -> TokenField:
        """Value of the state before each response token, reward units."""
        self.engine.mode(training=False)
        return response_values(self.engine.passes, work, shards, self.engine.device)

    def update(
        self, steps: list[StepWork], experience: list[ExperienceBatch], value_clip: float
    ) -> list[StepStats]:
        """Value-function steps in order, each on the mean clipped squared error of its tokens.

        `extra` holds value_clip_fraction and explained_variance, 1 - Var(R - V) / Var(R) with the
        values computed in that step.

        Args:
            steps: This rank's share of each step.
            experience: Shards that together hold every sequence of the steps.
            value_clip: Largest change of a value from the old one, reward units.

        Raises:
            NonFiniteError: the loss is not finite; names the sequences.
        """
        self.engine.mode(training=False)
        return [self._update(step, experience, value_clip) for step in steps]

    def _build(self, spec: TrainModelSpec, group: GroupSpec) -> PreTrainedModel:
        from workers.models.load import load_scalar

        return load_scalar(
            spec.checkpoint,
            dtype=group.dtype,
            attention=spec.attention,
            packed=spec.packed,
            head=spec.head,
            seed=group.seed,
        )

    def _rank(self, rankings: tuple[Ranking, ...], count: int) -> tuple[list[Tensor], Tensor]:
        """Scores of each ranking's completions, and their summed loss divided by `count`."""
        none = [Ragged.from_rows([], np.int32)]
        tokens = Ragged.concat([r.sequences for r in rankings] or none)
        rows = self.engine.passes.lay(tokens, self.engine.device)
        scores = self.engine.passes.values(rows, last_cells(rows))
        if not rankings:
            # An empty micro-batch: the loss is 0, but still connected to the graph.
            return [scores], scores.sum()
        split = list(scores.split([len(r.ranks) for r in rankings]))
        ranks = [torch.tensor(r.ranks, device=scores.device) for r in rankings]
        levels = [
            None if r.levels is None else torch.tensor(r.levels, device=scores.device)
            for r in rankings
        ]
        soft = [
            None if r.probabilities is None else torch.tensor(r.probabilities, device=scores.device)
            for r in rankings
        ]
        return split, rankings_loss(
            split, ranks, levels=levels, probabilities=soft, denominator=count
        )

    def _update(
        self, step: StepWork, experience: list[ExperienceBatch], value_clip: float
    ) -> StepStats:
        tally = Tally("value")
        mine = gather_experience(experience, step.work.ids)
        for ids in step.work.micro_batches:
            batch = gather_experience([mine], ids)
            self._accumulate(tally, self._value_share(tally, batch, step, value_clip))
        totals = self._total(tally)
        extra = {
            "value_clip_fraction": totals.sums["clipped"] / step.tokens,
            "explained_variance": _explained_variance(totals),
        }
        return self._step(totals, extra)

    def _value_share(
        self, tally: Tally, batch: ExperienceBatch, step: StepWork, value_clip: float
    ) -> Share:
        device, passes = self.engine.device, self.engine.passes
        rows = passes.lay(batch.tokens, device)
        values = passes.values(rows, response_cells(rows, batch.prompt_lengths, batch.sampled))
        assert batch.values is not None
        assert batch.returns is not None
        old = torch.tensor(batch.values.values, device=device)
        returns = torch.tensor(batch.returns.values, device=device)
        counted = torch.ones_like(values, dtype=torch.bool)
        loss = value_loss(values, old, returns, counted, value_clip, denominator=step.tokens)
        stats = value_stats(values.detach(), old, returns, counted, value_clip)
        for name, total in stats._asdict().items():
            tally.add(name, float(total))
        return Share(loss, values - returns, np.repeat(batch.ids, batch.values.lengths))


def _prompts(rankings: tuple[Ranking, ...]) -> np.ndarray:
    ids = np.array([r.prompt_id for r in rankings], dtype=np.int64)
    return np.repeat(ids, [len(r.ranks) for r in rankings])


def _count_pairs(tally: Tally, scores: list[Tensor], rankings: tuple[Ranking, ...]) -> None:
    counts = [
        pair_accuracy(s.cpu(), torch.tensor(r.ranks))
        for s, r in zip(scores, rankings, strict=bool(rankings))
    ]
    tally.add("correct", sum(correct for correct, _ in counts))
    tally.add("pairs", sum(pairs for _, pairs in counts))
    tally.add("rankings", sum(r.pairs > 0 for r in rankings))


def _explained_variance(totals: Totals) -> float:
    sums = {
        name: torch.tensor(totals.sums[name], dtype=torch.float64) for name in ValueStats._fields
    }
    return ValueStats(**sums).explained_variance()
