"""Requests on their way through one engine: what was drawn, what is done, what goes out when.

A group is the K samples of one request. Groups leave whole, in parts of at least so many sequences;
which ones share a part depends on the engine's steps alone, so it is the same in every run. A job
that is stopped between two steps keeps what was drawn and goes on later, under other weights too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from workers.generation import Generated, GenerationEngine, Sample, pack
from workers.messages import Delivery, Finish, GenerationRequest, RolloutBatch, Sampling
from workers.pulse import beat


@dataclass(slots=True)
class _Draft:
    """One sequence so far."""

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
    """One call of `generate` on one engine."""

    def __init__(
        self, requests: Sequence[GenerationRequest], sampling: Sampling, delivery: Delivery
    ) -> None:
        """Take the requests; nothing is sampled yet.

        Args:
            requests: In the order in which they enter the engine.
            sampling: For all of them.
            delivery: How many groups are wanted, and how they leave.
        """
        self._requests = list(requests)
        self._sampling = sampling
        self._part = delivery.part_sequences or sum(len(r.ids) for r in requests)
        self._wanted = delivery.groups or len(self._requests)  # groups not yet handed out
        self._drafts = [[_Draft() for _ in r.ids] for r in requests]
        self._left = [len(r.ids) for r in requests]  # unfinished sequences of each group
        self._ready: list[int] = []  # groups that are complete and not yet handed out
        self.done = False

    def run(
        self, engine: GenerationEngine, version: int, stop: Callable[[], bool]
    ) -> Iterator[RolloutBatch]:
        """Sample until all is done, or until `stop` says so between two steps.

        Args:
            engine: Holds the weights of `version`.
            version: Stamped on every token that is drawn now.
            stop: Asked before the first step and after every step.

        Yields:
            Parts, whole groups each, rows in the order of the requests.
        """
        if stop():
            return
        places = [(g, k) for g, r in enumerate(self._requests) for k in range(len(r.ids))
                  if self._drafts[g][k].finish is Finish.ABORT]  # fmt: skip
        flight = engine.launch([self._sample(*place) for place in places], self._sampling)
        while flight.running and len(self._ready) < self._wanted:
            finished = flight.step()
            beat()
            for n, drawn in finished:
                self._finish(*places[n], drawn, version)
            if stop():
                for n, drawn in flight.land():
                    group, k = places[n]
                    self._drafts[group][k].add(drawn, version)
                return
            if self._part <= self._sequences_ready() and len(self._ready) < self._wanted:
                yield self._take()
        flight.land()
        self.done = True
        if self._ready:
            yield self._take()

    def _sample(self, group: int, k: int) -> Sample:
        request, draft = self._requests[group], self._drafts[group][k]
        seed, drawn = request.seeds[k], len(draft.tokens)
        if not drawn:
            return Sample(request.prompt_tokens, seed)
        # The stream of random numbers cannot be entered in its middle: another one goes on.
        state = np.random.SeedSequence([seed, drawn]).generate_state(1, np.uint32)
        prompt = (*request.prompt_tokens, *draft.tokens)
        return Sample(prompt, int(state[0] >> 1), self._sampling.max_tokens - drawn)

    def _finish(self, group: int, k: int, drawn: Generated, version: int) -> None:
        self._drafts[group][k].add(drawn, version)
        self._left[group] -= 1
        if not self._left[group]:
            self._ready.append(group)

    def _sequences_ready(self) -> int:
        return sum(len(self._requests[g].ids) for g in self._ready)

    def _take(self) -> RolloutBatch:
        """Hand out what is complete; of one step's surplus the first requests are taken."""
        groups = sorted(self._ready)[: self._wanted]
        self._ready = []
        self._wanted -= len(groups)
        drafts = [draft for g in groups for draft in self._drafts[g]]
        return pack(
            [self._requests[g] for g in groups],
            [Generated(d.tokens, d.logprobs, d.finish) for d in drafts],
            np.array([(d.first_version, d.last_version) for d in drafts], np.int64),
        )
