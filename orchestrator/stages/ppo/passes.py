"""Passes over new sequences: reward, old and reference log-probabilities, values.

Passes over one part of a batch start as soon as it arrives, while the engines sample the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.roles.interfaces import Answer, Fields, Rollouts, joined
from orchestrator.roles.scorer_groups import ReferenceGroup
from orchestrator.roles.trainer_groups import TrainerGroup
from orchestrator.session.session import Session
from workers.data.rows.asked import Asked
from workers.records.arrays import IntArray
from workers.records.combining import combined
from workers.records.gather import gather_scores
from workers.records.training import Scores, Work


def shared(
    session: Session, rollouts: Rollouts, ids: IntArray, group: TrainerGroup | ReferenceGroup
) -> list[Work]:
    """The sequences `ids`, split so that the ranks of a group have similar token counts."""
    summary = rollouts.summary
    lengths = dict(
        zip(
            summary.ids.tolist(),
            (summary.prompt_lengths + summary.response_lengths).tolist(),
            strict=True,
        )
    )
    return training_batches.equal_work(
        ids,
        np.array([lengths[int(i)] for i in ids]),
        group.size,
        session.config.trainer.micro_batch_tokens,
        packed=group.packed,
    )


class Passes:
    """The passes of one batch, which run at the same time."""

    def __init__(
        self,
        session: Session,
        begin: Callable[[str], Callable[[], None]],
        *,
        values: bool = True,
        rewards: bool = True,
        reference: bool = True,
        of_engine: bool = False,
    ) -> None:
        """Prepare the passes; nothing starts yet.

        Args:
            session: The run.
            begin: Starts the clock of a phase; the returned function stops it.
            values: Whether there is a critic.
            rewards: Whether there is a reward role; without, every score is 0.
            reference: Whether the reference's log-probabilities of each token are needed.
            of_engine: Whether the old log-probabilities are those of the rollouts.
        """
        self._session = session
        self._begin = begin
        self._asked: list[Asked] = []
        self._values = values
        self._rewards = rewards
        self._reference = reference
        self.of_engine = of_engine
        self._ends: dict[str, Callable[[], None]] = {}
        self._parts: list[Rollouts] = []
        self._scores: list[Answer[Scores]] = []
        self._scored: list[Scores] = []
        self._fields: dict[str, list[Answer[Fields]]] = {}

    def expect(self, asked: Sequence[Asked]) -> None:
        """Enter the prompts of the next parts as text, for a reward that reads text; else ()."""
        self._asked += asked

    def start(self, part: Rollouts) -> None:
        """Start every pass over a part that has just arrived."""
        session, fleet, ids = self._session, self._session.fleet, part.summary.ids
        if not len(ids):
            return
        temperature = session.config.rollout.temperature
        self._parts.append(part)
        if self._rewards:
            self._clock("reward")
            self._scores.append(fleet.reward.score(part, self._of(part)))
        else:
            zeros = np.zeros(len(ids), np.float32)
            self._scored.append(Scores(ids, zeros, ("",) * len(ids)))
        if not self.of_engine:
            policy = shared(session, part, ids, fleet.policy)
            self._add("logprobs", fleet.policy.logprobs(policy, part, temperature))
        if self._reference:
            reference = shared(session, part, ids, fleet.reference)
            self._add("reference", fleet.reference.logprobs(reference, part, temperature))
        if self._values:
            critic = shared(session, part, ids, fleet.critic)
            self._add("values", fleet.critic.values(critic, part))

    def _of(self, part: Rollouts) -> list[Asked]:
        prompts = set(part.summary.prompt_ids.tolist())
        return [asked for asked in self._asked if asked.prompt_id in prompts]

    @property
    def parts(self) -> Sequence[Rollouts]:
        """The parts for which passes were started, in order of arrival."""
        return tuple(self._parts)

    def rollouts(self) -> Rollouts:
        """All sequences of these parts, in an order that does not depend on arrival."""
        return joined(sorted(self._parts, key=lambda part: int(part.summary.ids.min())))

    def scores(self) -> Scores:
        """Their rewards, in the order of `rollouts`."""
        while self._scores:
            self._scored.append(self._scores.pop(0).result())
        self._end("reward")
        return combined(gather_scores(self._scored, self.rollouts().summary.ids))

    def old_logprobs(self) -> Fields:
        """Under the current policy, nats; no shards if those of the rollouts are used instead."""
        return self._all("logprobs")

    def reference_logprobs(self) -> Fields:
        """Under the frozen model, nats."""
        return self._all("reference")

    def values(self) -> Fields:
        """Value of the state before each response token; no shards without a critic."""
        return self._all("values")

    def finish(self) -> None:
        """Wait for the passes whose results are not needed."""
        for phase in self._fields:
            self._all(phase)

    def _clock(self, phase: str) -> None:
        if phase not in self._ends:
            self._ends[phase] = self._begin(phase)

    def _end(self, phase: str) -> None:
        if phase in self._ends:
            self._ends.pop(phase)()

    def _add(self, phase: str, answer: Answer[Fields]) -> None:
        self._clock(phase)
        self._fields.setdefault(phase, []).append(answer)

    def _all(self, phase: str) -> Fields:
        if phase not in self._fields:
            return Fields((), ())
        found: Sequence[Fields] = [answer.result() for answer in self._fields[phase]]
        self._end(phase)
        shards = tuple(shard for fields in found for shard in fields.shards)
        return Fields(shards, tuple(ids for fields in found for ids in fields.held))
