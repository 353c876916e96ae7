"""Weight sync as one transaction: publish, receive, compare checksums, probe, admit.

An engine refuses to serve from the start of a transfer until it is admitted, so a failure in
between cannot leave an engine serving unknown weights. An iteration of PPO may have the engines
sample its next batch while the probe is compared: they are then admitted when the checksums agree,
and the caller gets the batch only after the comparison. If that fails, the engines are refused
again, and the run ends.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.config.engines import RolloutConfig
from orchestrator.roles.interfaces import Answer, Rollouts
from orchestrator.roles.rollout_group import RolloutGroup
from orchestrator.roles.scorer_groups import ReferenceGroup
from orchestrator.roles.trainer_groups import PolicyGroup
from workers.errors import ChecksumError, ParityError, RoleDiedError, RoleHungError
from workers.records.generation import RolloutBatch
from workers.records.training import TokenField
from workers.records.weights import WeightReceipt
from workers.weights.transport import find_transport

_MOST_NATS = 700.0  # exp(709.8) is the largest float


@dataclass(frozen=True, slots=True)
class Parity:
    """Difference between engine and trainer on the same tokens, nats."""

    max_difference: float
    mean_difference: float
    k3: float  # mean k3 estimate of KL(engine || trainer)


@dataclass(frozen=True, slots=True)
class SyncReport:
    """One completed weight sync."""

    version: int
    nbytes: int
    seconds: float  # until the engines may sample again
    parity: Parity
    transfer_seconds: float = 0.0  # until the engines hold the weights, before probe and admission


def compare_logprobs(batch: RolloutBatch, fields: list[TokenField]) -> Parity:
    """Difference between the engine's and the trainer's log-probabilities of the same tokens.

    Args:
        batch: sequences with the engine's logprobs, T per row, nats.
        fields: the trainer's logprobs of the same sequences, keyed by id.
    """
    trainer = {int(i): f.values.row(row) for f in fields for row, i in enumerate(f.ids)}
    delta = np.concatenate(
        [
            np.subtract(trainer[int(i)], engine, dtype=np.float64)
            for i, engine in zip(batch.ids, batch.logprobs.rows(), strict=True)
        ]
    )
    return Parity(
        max_difference=float(np.abs(delta).max()),
        mean_difference=float(np.abs(delta).mean()),
        k3=float(np.mean(np.expm1(np.clip(delta, -_MOST_NATS, _MOST_NATS)) - delta)),
    )


def _require_same(received: WeightReceipt, sent: WeightReceipt, rank: int) -> None:
    if (received.checksum, received.version) != (sent.checksum, sent.version):
        raise ChecksumError(
            f"version {sent.version}: sent {sent.checksum}, received {received.checksum} "
            f"(version {received.version})",
            where=f"rollout rank {rank}",
            fix="check the memory and the network of that node; the engine serves nothing",
        )


class WeightSync:
    """Moves the policy's weights into every engine and verifies that they arrived."""

    def __init__(
        self,
        policy: PolicyGroup,
        rollout: RolloutGroup,
        config: RolloutConfig,
        probe_prompts: list[tuple[int, ...]],
        micro_batch_tokens: int,
    ) -> None:
        self._policy = policy
        self._rollout = rollout
        self._config = config
        self._one_sided = find_transport(config.transport, str(Path.cwd())).one_sided
        self._prompts = probe_prompts
        self._budget = micro_batch_tokens
        self._connected: list[int] = []  # ranks of engines
        self.promised = math.inf  # nats that a restarted engine may differ from the trainer
        self._connect()

    def _connect(self) -> None:
        """Form the transfer group of the present engines, if the transport needs one."""
        ranks = self._rollout.ranks
        if self._one_sided or self._connected == ranks:
            return
        self._connected = ranks
        receivers = len(ranks) * self._config.tensor_parallel_size
        address = self._policy.transfer_address(receivers, self._config.transport)
        sender = self._policy.connect(address)
        self._rollout.connect(address).result()
        sender.result()

    def run(self, version: int, meanwhile: Callable[[], None] | None = None) -> SyncReport:
        """Bring every engine to `version`.

        Args:
            version: Of the weights that the trainers hold.
            meanwhile: Has the engines sample, while trainers and driver compare the probe. What
                they sample must not be used before this method returns.

        Raises:
            ChecksumError: the bytes that arrived are not those that were sent.
            ParityError: engine and trainer disagree by more than rollout.parity_tolerance.
        """
        start = time.monotonic()
        if self._config.inflight_updates:
            self._rollout.pause().result()
        self._rollout.join()
        self._connect()
        while True:
            try:
                sent, parity, arrived = self._transact(version, judged=meanwhile is None)
                break
            except (RoleDiedError, RoleHungError):
                # In a transfer group the remaining processes wait for the lost one.
                if not self._one_sided or not self._rollout.replace_lost():
                    raise
        if self._config.inflight_updates:
            self._rollout.resume(version)
        if self._one_sided:
            self._rollout.refresh = self._bring_up
        ready = time.monotonic()
        if meanwhile is not None:
            parity, ready = self._judge_while(version, meanwhile)
        assert parity is not None, "it was judged in the transaction"
        return SyncReport(version, sent.nbytes, ready - start, parity, arrived - start)

    def policy_moves(self) -> None:
        """Call before an update: the weights that the engines serve cannot be sent any more."""
        self._rollout.refresh = None

    def _transact(
        self, version: int, *, judged: bool
    ) -> tuple[WeightReceipt, Parity | None, float]:
        """Returns what was sent, the parity, and the time when all weights had arrived.

        Unless `judged`, the engines are neither probed nor admitted.
        """
        sent, received = self._transfer(version)
        arrived = time.monotonic()
        for rank, receipt in zip(self._rollout.ranks, received, strict=True):
            _require_same(receipt, sent, rank)
        if not judged:
            return sent, None, arrived
        parity = self._probe(version)
        self._rollout.admit(version).result()
        return sent, parity, arrived

    def _judge_while(self, version: int, meanwhile: Callable[[], None]) -> tuple[Parity, float]:
        """Compare the engines with the trainer while they sample what `meanwhile` asks for.

        Returns:
            The parity, and the time when the engines had sampled the probe.
        """
        # An engine works in the order of these calls: the probe comes first.
        probing = self._sampled(version)
        admitting = self._rollout.admit(version)
        meanwhile()
        try:
            while True:
                try:
                    probed = probing.result()
                    ready = time.monotonic()
                    admitting.result()
                    return self._compare(probed, version), ready
                except (RoleDiedError, RoleHungError) as error:
                    if not self._one_sided or not self._rollout.lost(error):
                        raise
                    probing = self._sampled(version)
                    admitting = self._rollout.admit(version)
        except ParityError:
            self._rollout.refuse()
            raise

    def _bring_up(self, rank: int, version: int) -> None:
        """Sync one restarted engine to `version`, which its peers serve."""
        offer = self._policy.publish_weights(version, self._config.transport).result()
        sent = WeightReceipt(version, offer.checksum, offer.nbytes, 0.0)
        (received,) = self._rollout.receive_weights(offer, [rank]).result()
        _require_same(received, sent, rank)
        self._probe(version, [rank])
        self._rollout.admit(version, [rank]).result()

    def _transfer(self, version: int) -> tuple[WeightReceipt, list[WeightReceipt]]:
        offer = self._policy.publish_weights(version, self._config.transport).result()
        if self._one_sided:
            sent = WeightReceipt(version, offer.checksum, offer.nbytes, 0.0)
            return sent, self._rollout.receive_weights(offer).result()
        receiving = self._rollout.receive_weights(offer)
        sent = self._policy.send_weights(offer).result()
        return sent, receiving.result()

    def _sampled(self, version: int, ranks: Sequence[int] | None = None) -> Answer[Rollouts]:
        return sample_probe(self._rollout, self._config, self._prompts, version, ranks)

    def _probe(self, version: int, ranks: Sequence[int] | None = None) -> Parity:
        return self._compare(self._sampled(version, ranks).result(), version, ranks)

    def _compare(
        self, probed: Rollouts, version: int, ranks: Sequence[int] | None = None
    ) -> Parity:
        parity = compare_probe(
            self._rollout, self._policy, self._config, len(self._prompts), self._budget, probed
        )
        require_parity(
            parity,
            min(self._config.parity_tolerance, math.inf if ranks is None else self.promised),
            f"version {version}: engine and trainer",
            "weight sync",
        )
        return parity


def measure_parity(
    rollout: RolloutGroup,
    scorer: PolicyGroup | ReferenceGroup,
    config: RolloutConfig,
    prompts: Sequence[tuple[int, ...]],
    version: int,
    micro_batch_tokens: int,
) -> Parity:
    """Sample a few tokens on every engine and compare their log-probabilities with the scorer's.

    Args:
        rollout: the engines.
        scorer: holds the weights that the engines should serve as `version`.
        config: probe tokens and temperature.
        prompts: prompts for every engine.
        version: the weights that the engines hold, admitted or not.
        micro_batch_tokens: budget of the scorer.
    """
    probed = sample_probe(rollout, config, prompts, version).result()
    return compare_probe(rollout, scorer, config, len(prompts), micro_batch_tokens, probed)


def sample_probe(
    rollout: RolloutGroup,
    config: RolloutConfig,
    prompts: Sequence[tuple[int, ...]],
    version: int,
    ranks: Sequence[int] | None = None,
) -> Answer[Rollouts]:
    """Start to sample the probe's tokens on these engines (None: all)."""
    return rollout.probe(list(prompts), config.parity_tokens, config.temperature, version, ranks)


def compare_probe(
    rollout: RolloutGroup,
    scorer: PolicyGroup | ReferenceGroup,
    config: RolloutConfig,
    prompts: int,
    micro_batch_tokens: int,
    probed: Rollouts,
) -> Parity:
    """Compare the probe's log-probabilities, of `prompts` sequences per engine, with the scorer's.

    The other arguments are those of `measure_parity`.
    """
    summary = probed.summary
    lengths = summary.prompt_lengths + summary.response_lengths
    works = training_batches.equal_work(
        summary.ids, lengths, scorer.size, micro_batch_tokens, packed=scorer.packed
    )
    fields = scorer.logprobs(works, probed, config.temperature).result()
    fetching = rollout.fetch(probed)
    scored, batch = scorer.fetch(fields).result(), fetching.result()
    engine = batch.ids // prompts
    return _worst(
        [compare_logprobs(batch.select(np.flatnonzero(engine == n)), scored)
         for n in np.unique(engine)]
    )  # fmt: skip


def _worst(found: Sequence[Parity]) -> Parity:
    """The largest value of each number over the engines, so that their count has no effect."""
    names = Parity.__dataclass_fields__
    return Parity(**{n: float(np.max([getattr(each, n) for each in found])) for n in names})


def require_parity(parity: Parity, tolerance: float, what: str, where: str) -> None:
    """Reject engine weights whose log-probabilities differ from the expected ones.

    Raises:
        ParityError: a log-probability differs by more than `tolerance` nats.
    """
    if not parity.max_difference <= tolerance:  # NaN fails too
        raise ParityError(
            f"{what} differ by up to "
            f"{parity.max_difference:.2e} nats (mean {parity.mean_difference:.2e}, "
            f"k3 {parity.k3:.2e}), tolerance {tolerance:.0e}",
            where=where,
            fix="with bf16 on either side raise rollout.parity_tolerance (0.3 is normal); "
            "in float32 this means wrong weights: report it with the run folder",
        )
