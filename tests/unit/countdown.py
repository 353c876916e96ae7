"""An engine that counts, for tests of what steps engines."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from workers.generation.engine import Generated, Sample
from workers.records.generation import Finish, GenerationRequest, Sampling
from workers.records.weights import GroupAddress, WeightOffer

END = 0


class Countdown:
    """Draws 1, 2, 3 ... after a prompt of one number n, and ends with the n-th token."""

    def __init__(self, room: int = 10**6) -> None:
        self.launched: list[list[Sample]] = []
        self.samplings: list[Sampling] = []
        self.dropped = 0
        self.steps = 0
        self.room = room  # samples that have their turn at the same time
        self.open: dict[int, tuple[list[int], int, int]] = {}
        self.numbers = iter(range(10**6))

    @property
    def running(self) -> bool:
        return bool(self.open)

    def add(self, samples: Sequence[Sample], sampling: Sampling) -> list[int]:
        self.launched.append(list(samples))
        self.samplings.append(sampling)
        numbers = [next(self.numbers) for _ in samples]
        for n, s in zip(numbers, samples, strict=True):
            self.open[n] = (list(s.prompt), len(s.prompt), s.max_tokens or sampling.max_tokens)
        return numbers

    def step(self) -> list[tuple[int, Generated]]:
        self.steps += 1
        finished = []
        for n, (tokens, start, limit) in list(self.open.items())[: self.room]:
            token = len(tokens)
            tokens.append(END if token == tokens[0] else token)
            drawn = tokens[start:]
            if tokens[-1] == END or len(drawn) == limit:
                finish = Finish.STOP if tokens[-1] == END else Finish.LENGTH
                finished.append((n, Generated(drawn, [-1.0] * len(drawn), finish)))
                del self.open[n]
        return finished

    def drop(self, numbers: Collection[int]) -> list[tuple[int, Generated]]:
        self.dropped += len(numbers)
        found = []
        for n in numbers:
            tokens, start, _ = self.open.pop(n)
            drawn = tokens[start:]
            found.append((n, Generated(drawn, [-1.0] * len(drawn), Finish.ABORT)))
        return found

    asleep = False

    def sleep(self) -> None:
        raise NotImplementedError

    def connect(self, address: GroupAddress, group_rank: int) -> None:
        raise AssertionError

    def receive(self, offer: WeightOffer) -> str:
        raise AssertionError

    def close(self) -> None:
        raise AssertionError


def request(length: int, first_id: int, samples: int = 1) -> GenerationRequest:
    ids = tuple(range(first_id, first_id + samples))
    return GenerationRequest(length, (length,), ids, tuple(1000 + i for i in ids))
