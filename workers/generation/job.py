"""State of one sampling call on one engine: drawn tokens, finished groups, delivered parts.

A group is the K samples of one request. Groups are delivered whole, in parts of at least
`Delivery.part_sequences` sequences; which groups share a part depends on the engine's steps. A job
stopped between two steps keeps its tokens and can continue later, also under other weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from workers.generation.engine import Generated, Sample, pack
from workers.records.generation import Delivery, Finish, GenerationRequest, RolloutBatch, Sampling

Place = tuple[int, int]  # group and sample of a sequence in its job


@dataclass(slots=True)
class _Draft:
    """The tokens of one sequence so far."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    first_version: int = -1
    last_version: int = -1
    finish: Finish = Finish.ABORT

    def add(self, drawn: Generated, version: int) -> None:
        if drawn.tokens:
            if not self.tokens:
                self.first_version = version
            self.last_version = version
        self.tokens.extend(drawn.tokens)
        self.logprobs.extend(drawn.logprobs)
        self.finish = drawn.finish


class Job:
    """One sampling call on one engine."""

    def __init__(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, delivery: Delivery
    ) -> None:
        """Store the requests; nothing is sampled yet.

        Args:
            requests: In the order in which they enter the engine.
            sampling: For all of them.
            delivery: How many groups are wanted, and the size of the parts.
        """
        self._requests = list(requests)
        self._part = delivery.part_sequences or sum(len(r.ids) for r in requests)
        self._wanted = delivery.groups or len(self._requests)  # groups not yet delivered
        self._drafts = [[_Draft() for _ in r.ids] for r in requests]
        self._left = [len(r.ids) for r in requests]  # unfinished sequences of each group
        self._ready: list[int] = []  # complete groups that are not yet delivered
        self.sampling = sampling
        self.flying = False  # its sequences are in the engine
        self.done = False  # all wanted groups have been delivered

    @property
    def unfinished(self) -> list[Place]:
        """Sequences that need more tokens."""
        return [(g, k) for g, drafts in enumerate(self._drafts) for k, draft in enumerate(drafts)
                if draft.finish is Finish.ABORT]  # fmt: skip

    @property
    def enough(self) -> bool:
        """Whether all wanted groups are complete."""
        return len(self._ready) >= self._wanted

    @property
    def part_ready(self) -> bool:
        """Whether a part can be delivered while the rest is sampled."""
        sequences = sum(len(self._requests[g].ids) for g in self._ready)
        return self._part <= sequences and not self.enough

    def sample(self, place: Place) -> Sample:
        """The request for the rest of a sequence."""
        group, k = place
        request, draft = self._requests[group], self._drafts[group][k]
        seed, drawn = request.seeds[k], len(draft.tokens)
        if not drawn:
            return Sample(request.prompt_tokens, seed, request.max_tokens or None)
        # A random stream cannot be resumed in its middle: the rest is drawn from a derived seed.
        state = np.random.SeedSequence([seed, drawn]).generate_state(1, np.uint32)
        prompt = (*request.prompt_tokens, *draft.tokens)
        most = request.max_tokens or self.sampling.max_tokens
        return Sample(prompt, int(state[0] >> 1), most - drawn)

    def add(self, place: Place, drawn: Generated, version: int) -> None:
        """Append the tokens of a sequence drawn since the last call, all under one version."""
        group, k = place
        self._drafts[group][k].add(drawn, version)
        if drawn.finish is not Finish.ABORT:
            self._left[group] -= 1
            if not self._left[group]:
                self._ready.append(group)

    def take(self) -> RolloutBatch:
        """Deliver the complete groups; if there are more than wanted, those of the first requests.

        The surplus is discarded.
        """
        groups = sorted(self._ready)[: self._wanted]
        self._ready = []
        self._wanted -= len(groups)
        self.done = not self._wanted
        drafts = [draft for g in groups for draft in self._drafts[g]]
        return pack(
            [self._requests[g] for g in groups],
            [Generated(d.tokens, d.logprobs, d.finish) for d in drafts],
            np.array([(d.first_version, d.last_version) for d in drafts], np.int64),
        )
