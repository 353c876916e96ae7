"""The policy's trainer: supervised steps, PPO steps with pretraining text, weight sync."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from workers.models.padding import response_cells
from workers.ops import ResponseTokens, bounded_log_ratio, importance_weights, ratio_stats, whiten
from workers.records.arrays import FloatArray, IntArray
from workers.records.gather import gather_experience, gather_fields, gather_rollouts, gather_scores
from workers.records.generation import RolloutBatch
from workers.records.specs import (
    GroupSpec,
    PolicyLossSpec,
    PreferenceSpec,
    ShapingSpec,
    TrainModelSpec,
)
from workers.records.training import (
    ExperienceBatch,
    ExperienceSummary,
    PairCounts,
    PolicyStep,
    RankingStep,
    Scores,
    SequenceField,
    StepStats,
    StepWork,
    SupervisedStep,
    TextLoss,
    TokenField,
    Work,
)
from workers.records.weights import GroupAddress, TensorMeta, WeightOffer, WeightReceipt
from workers.roles.preferences import preference_share
from workers.roles.scoring import response_logprobs, text_loss, text_nll
from workers.training.estimator import find_estimator
from workers.training.experience import build_experience, kl_sums
from workers.training.policy_loss import batch_loss, find_policy_loss
from workers.training.trainer import Share, Tally, Trainer
from workers.weights.packing import make_offer
from workers.weights.transfer import WeightSender
from workers.weights.transport import Link

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PolicyWorker(Trainer):
    """One rank of the policy's trainer. Dropout is on in supervised steps, off in PPO."""

    role = "policy"

    def __init__(self, rank: int) -> None:
        super().__init__(rank)
        self._sender: WeightSender | None = None
        self._shares_rows = False  # see `shares_rows`

    def shares_rows(self) -> bool:
        """Whether this model keeps documents that share a row from attending to each other."""
        self._joined()
        return self._shares_rows

    def train_supervised(self, step: SupervisedStep) -> StepStats:
        """One optimizer step on the mean loss of the target tokens, nats per token.

        Raises:
            NonFiniteError: the loss is not finite; no weight has changed.
        """
        self.engine.mode(training=True)
        tally = Tally("next-token")
        self._accumulate_text(tally, step, 1.0)
        return self._step(self._total(tally), {})

    def evaluate_supervised(self, step: SupervisedStep) -> TextLoss:
        """Summed loss over all ranks, without an update."""
        self.engine.mode(training=False)
        engine = self.engine
        parts = [text_loss(engine.passes, b, engine.device) for b in step.micro_batches]
        nll, tokens = sum(p.nll for p in parts), sum(p.tokens for p in parts)
        totals = engine.gather_rows([nll, tokens]).sum(dim=0).tolist()
        return TextLoss(totals[0], int(totals[1]))

    def complete(self, prompts: list[IntArray], limit: int, stop: int) -> list[IntArray]:
        """Greedy answers of at most `limit` tokens; every rank computes the same."""
        from workers.models.greedy import greedy_answers

        assert self._spec is not None
        self.engine.mode(training=False)
        return greedy_answers(
            self.engine.module,
            prompts,
            limit=limit,
            stop=stop,
            vocabulary=self._spec.vocabulary,
            device=self.engine.device,
        )

    def train_preferences(self, step: RankingStep, spec: PreferenceSpec) -> StepStats:
        """One optimizer step on the mean preference loss of the rankings, without dropout.

        `extra` holds pair_accuracy and margin (reward units) of all pairs, and best_logprob and
        worst_logprob, nats summed over the completion, means over rankings.

        Raises:
            NonFiniteError: the loss is not finite; names the prompts. No weight has changed.
        """
        self.engine.mode(training=False)
        tally = Tally("preference")
        for rankings in step.micro_batches:
            share = preference_share(self.engine.passes, rankings, spec, self.engine.device)
            self._accumulate(tally, Share(share.loss / step.rankings, share.terms, share.names))
            for name, value in asdict(share.counts).items():
                tally.add(name, value)
        totals = self._total(tally)
        pairs, rankings = totals.sums["pairs"], totals.sums["rankings"]
        extra = {
            "pair_accuracy": totals.sums["correct"] / pairs,
            "margin": totals.sums["margin"] / pairs,
            "best_logprob": totals.sums["best"] / rankings,
            "worst_logprob": totals.sums["worst"] / rankings,
        }
        return self._step(totals, extra)

    def evaluate_preferences(self, step: RankingStep, spec: PreferenceSpec) -> PairCounts:
        """Correctly ordered pairs, summed loss over all ranks, and this rank's implicit rewards."""
        self.engine.mode(training=False)
        tally = Tally("preference")
        rewards: list[FloatArray] = []
        with torch.no_grad():
            for rankings in step.micro_batches:
                share = preference_share(self.engine.passes, rankings, spec, self.engine.device)
                tally.loss += float(share.loss)
                for name, value in asdict(share.counts).items():
                    tally.add(name, value)
                rewards += share.rewards
        totals = self._total(tally)
        counts = {name: int(totals.sums[name]) for name in ("correct", "pairs", "rankings")}
        return PairCounts(
            counts["correct"], counts["pairs"], totals.loss, counts["rankings"], tuple(rewards)
        )

    def logprobs(self, work: Work, shards: list[RolloutBatch], temperature: float) -> TokenField:
        """Log-probabilities (nats) of this rank's response tokens under the current weights."""
        self.engine.mode(training=False)
        return response_logprobs(self.engine.passes, work, shards, temperature, self.engine.device)

    def kl_sums(
        self,
        work: Work,
        shards: list[RolloutBatch],
        old: list[TokenField],
        reference: list[TokenField],
    ) -> SequenceField:
        """log(policy / reference) of this rank's sequences, summed over their tokens, nats.

        The arguments are those of `build_experience`.
        """
        rollouts = gather_rollouts(shards, work.ids)
        return kl_sums(rollouts, _old(rollouts, old), gather_fields(reference, work.ids))

    def build_experience(
        self,
        work: Work,
        shards: list[RolloutBatch],
        old: list[TokenField],
        reference: list[TokenField],
        values: list[TokenField],
        scores: Scores,
        shaping: ShapingSpec,
        numbers: SequenceField | None = None,
    ) -> tuple[ExperienceBatch, ExperienceSummary]:
        """Token rewards, advantages and returns of this rank's share of the sequences.

        Args:
            work: This rank's share.
            shards: Rollouts that together hold the share.
            old: The policy's log-probabilities, all shards; if empty, the engine's are used.
            reference: The reference model's log-probabilities, all shards.
            values: The critic's values, all shards; empty without a critic.
            scores: One score per sequence; `work` must not contain sequences whose score failed.
            shaping: KL coefficient, gamma, lambda and advantage estimator.
            numbers: What the estimator computed on the driver, one per sequence; None: nothing.
        """
        ids = work.ids
        rollouts = gather_rollouts(shards, ids)
        return build_experience(
            rollouts,
            _old(rollouts, old),
            gather_fields(reference, ids),
            gather_fields(values, ids) if values else None,
            gather_scores([scores], ids),
            shaping,
            numbers,
        )

    def update(
        self, steps: list[PolicyStep], experience: list[ExperienceBatch], loss: PolicyLossSpec
    ) -> list[StepStats]:
        """PPO steps in order; the pretraining text of a step adds to the same gradient.

        L = L_ppo + kl_coefficient * L_KL + ptx_coefficient * L_text: L_ppo and L_KL averaged as
        `loss.aggregate` says, L_text a mean over the counted tokens of the step (InstructGPT,
        equation 2). `StepStats.loss` is L_ppo + kl_coefficient * L_KL; `extra` holds clip_fraction,
        approx_kl (k3, nats), entropy (nats), ratio_mean, ratio_max and, with text, ptx_loss; with a
        KL term kl_loss (L_KL, nats); with importance weights importance_mean and importance_capped
        (fraction of tokens beyond a bound).

        Args:
            steps: This rank's share of each step.
            experience: Shards that together hold every sequence of the steps.
            loss: Surrogate and its bounds, averages, and the moments used to whiten advantages.

        Raises:
            NonFiniteError: a loss is not finite; names the sequences.
        """
        self.engine.mode(training=False)
        return [self._update(step, experience, loss) for step in steps]

    def publish_weights(self, version: int, transport: str) -> WeightOffer | None:
        """Offer the current weights; rank 0 returns the offer, the others None.

        Args:
            version: Policy version of these weights.
            transport: Its name. A one-sided one writes them now; for others, `send_weights` sends
                them.
        """
        bucket_bytes = self._joined().weight_bucket_bytes
        offer = make_offer(version, self._sent_metas(), transport, bucket_bytes)
        if self._outgoing().transport(transport).one_sided:
            return self._send(offer)
        return offer if self.rank == 0 else None

    def connect(self, address: GroupAddress) -> None:
        """Form the transfer group as its sender (rank 0 only); leaves the previous group."""
        self._outgoing().connect(address)

    def send_weights(self, offer: WeightOffer) -> WeightReceipt | None:
        """Send the offered weights to the connected engines; rank 0 returns the receipt."""
        began = time.perf_counter()
        sent = self._send(offer)
        if sent is None:
            return None
        return WeightReceipt(sent.version, sent.checksum, sent.nbytes, time.perf_counter() - began)

    def _send(self, offer: WeightOffer) -> WeightOffer | None:
        if self.rank == 0:
            return self._outgoing().send(offer, self._sent_weights())
        for _ in self._weights():  # take part in the collectives that gather the weights
            pass
        return None

    def _outgoing(self) -> WeightSender:
        if self._sender is None:
            group = self._joined()
            link = Link(self.engine.device, group.collective_seconds)
            self._sender = WeightSender(link, group.transport_folder)
        return self._sender

    def _build(self, spec: TrainModelSpec, group: GroupSpec) -> PreTrainedModel:
        from workers.models.load import keeps_documents_apart, load_causal_lm

        if spec.estimator is not None:
            find_estimator(spec.estimator)
        if spec.policy_loss is not None:
            find_policy_loss(spec.policy_loss)
        model = load_causal_lm(
            spec.checkpoint,
            dtype=group.dtype,
            attention=spec.attention,
            packed=spec.packed,
            dropout=spec.dropout,
        )
        self._shares_rows = spec.packed or keeps_documents_apart(model)
        return model

    def _sent_metas(self) -> tuple[TensorMeta, ...]:
        from workers.model_folders.saved_form import checkpoint_metas

        return checkpoint_metas(self.engine.module, self.engine.metas)

    def _sent_weights(self) -> Iterator[list[tuple[str, torch.Tensor]]]:
        """Unsharded weights under the names in the model's folder, which engines expect."""
        from workers.model_folders.saved_form import checkpoint_form

        for bucket in self._weights():
            yield from checkpoint_form(self.engine.module, bucket)

    def _update(
        self, step: PolicyStep, experience: list[ExperienceBatch], loss: PolicyLossSpec
    ) -> StepStats:
        tally = Tally("policy")
        mine = gather_experience(experience, step.ppo.work.ids)
        for ids in step.ppo.work.micro_batches:
            batch = gather_experience([mine], ids)
            self._accumulate(tally, self._ppo_share(tally, batch, step.ppo, loss))
        text = Tally("pretraining text")
        if step.ptx is not None:
            self._accumulate_text(text, step.ptx, loss.ptx_coefficient)
        totals = self._total(tally)
        tokens = step.ppo.tokens
        extra = {name: total / tokens for name, total in totals.sums.items()} | totals.peaks
        if step.ptx is not None:
            extra["ptx_loss"] = self._total(text).sums["nll"] / step.ptx.tokens
        return self._step(totals, extra)

    def _ppo_share(
        self, tally: Tally, batch: ExperienceBatch, step: StepWork, loss: PolicyLossSpec
    ) -> Share:
        device, passes = self.engine.device, self.engine.passes
        rows = passes.lay(batch.tokens, device)
        cells = response_cells(rows, batch.prompt_lengths, batch.sampled)
        old = torch.tensor(batch.old_logprobs.values, device=device)
        advantages = torch.tensor(batch.advantages.values, device=device)
        counted = torch.ones_like(advantages, dtype=torch.bool)
        moments = (loss.advantage_mean, loss.advantage_std)
        advantages = whiten(advantages, counted, moments=moments)
        new, entropies = passes.logprobs(
            rows, cells, loss.temperature, with_entropy=True, sampled=True
        )
        assert entropies is not None, "they were asked for"
        weights = self._importance(tally, batch, old, loss)
        owner = torch.from_numpy(np.repeat(np.arange(len(batch.ids)), batch.old_logprobs.lengths))
        lengths = torch.from_numpy(batch.old_logprobs.lengths)
        found = batch_loss(
            ResponseTokens(new, old, advantages, owner.to(device), lengths.to(device)),
            self._reference(batch, loss),
            weights,
            loss,
            step,
        )
        value = found.policy
        if found.kl is not None:
            value = value + loss.kl_coefficient * found.kl
            tally.add("kl_loss", float(found.kl.detach()) * step.tokens)
        stats = ratio_stats(new.detach(), old, counted)
        tally.add("clip_fraction", float(found.clipped.sum()))
        tally.add("approx_kl", float(stats.approx_kl))
        tally.add("ratio_mean", float(stats.ratio))
        tally.add("entropy", float(entropies.sum()))
        tally.peak("ratio_max", float(stats.ratio_max))
        names = np.repeat(batch.ids, batch.old_logprobs.lengths)
        return Share(value, bounded_log_ratio(new - old).exp() * advantages, names)

    def _importance(
        self, tally: Tally, batch: ExperienceBatch, old: torch.Tensor, loss: PolicyLossSpec
    ) -> torch.Tensor | None:
        """(N,) weights for the difference between trainer and engine; None if that is off."""
        if loss.importance_cap is None:
            return None
        sampled = torch.tensor(batch.rollout_logprobs.values, device=old.device)
        weights, outside = importance_weights(
            old,
            sampled,
            torch.ones_like(old, dtype=torch.bool),
            loss.importance_cap,
            loss.importance_floor,
            drop=loss.importance_outside == "drop",
        )
        tally.add("importance_mean", float(weights.sum()))
        tally.add("importance_capped", float(outside.sum()))
        return weights

    def _reference(self, batch: ExperienceBatch, loss: PolicyLossSpec) -> torch.Tensor | None:
        """(N,) nats, of the reference model; None if the KL is not part of the loss."""
        if loss.kl_coefficient == 0.0:
            return None
        assert batch.ref_logprobs is not None, "the experience was built without them"
        return torch.tensor(batch.ref_logprobs.values, device=self.engine.device)

    def _accumulate_text(self, tally: Tally, step: SupervisedStep, coefficient: float) -> None:
        """Add the gradient of coefficient * mean loss of the target tokens.

        The tally sums unscaled nats. Rows have no ids: errors name them by their number within
        this rank's step.
        """
        first = 0
        for batch in step.micro_batches:
            assert batch.positions is None or self._shares_rows, "documents would see each other"
            nll, names = text_nll(self.engine.passes, batch, self.engine.device)
            total = nll.sum()
            tally.add("nll", total.item())
            self._accumulate(tally, Share(total * (coefficient / step.tokens), nll, names + first))
            first += len(batch)


def _old(rollouts: RolloutBatch, old: list[TokenField]) -> TokenField:
    """The trainer's log-probabilities of the rollouts, or those of the engine if there are none."""
    return gather_fields(old, rollouts.ids) if old else TokenField(rollouts.ids, rollouts.logprobs)
