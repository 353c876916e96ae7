"""Sequences of several turns: the policy speaks, its environment answers, and so on.

All sequences take a turn together: engines sample a turn of each, then the environment answers
those that ended theirs. So what is sampled beside what does not depend on how long an environment
takes, and equal runs stay equal bit for bit. Token ids are only ever appended: the next turn is
sampled after the ids of all turns before it and of the observations between them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from orchestrator.config.environment import EnvironmentConfig
from orchestrator.planning.worker_specs import environment_spec
from orchestrator.roles.interfaces import Generation, Rollouts, joined
from orchestrator.session.session import Session
from workers.data.records import Prompt
from workers.data.rows.asked import plain_text
from workers.environments.turn import PROMPT
from workers.errors import EnvironmentFailedError
from workers.records.arrays import Ragged
from workers.records.environment import Ask, Told
from workers.records.generation import (
    Finish,
    GenerationRequest,
    RolloutBatch,
    Sampling,
    turns_of,
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a sequence is lost."""

    reason: str  # one of few texts
    words: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.words}" if self.words else self.reason


@dataclass(slots=True)
class _Talk:
    """One sequence so far."""

    request: GenerationRequest
    seed: int
    row: str
    turns: list[list[int]] = field(default_factory=list[list[int]])
    observations: list[tuple[int, ...]] = field(default_factory=list[tuple[int, ...]])
    logprobs: list[float] = field(default_factory=list[float])
    finish: Finish = Finish.STOP
    versions: tuple[int, int] = (-1, -1)
    earned: float = 0.0

    @property
    def response(self) -> list[int]:
        """Ids of all turns and observations."""
        return [i for part in self._parts() for i in part[0]]

    @property
    def sampled(self) -> list[bool]:
        """Which of these ids the policy sampled."""
        return [own for ids, own in self._parts() for _ in ids]

    def _parts(self) -> Iterator[tuple[Sequence[int], bool]]:
        for n, turn in enumerate(self.turns):
            yield turn, True
            if n < len(self.observations):
                yield self.observations[n], False


class Conversations(Generation):
    """The sequences of one batch; the first turn is sampled from the start, the rest on demand."""

    def __init__(
        self,
        session: Session,
        environment: EnvironmentConfig,
        prompts: Sequence[Prompt],
        requests: Sequence[GenerationRequest],
        version: int,
        *,
        keeps_lost: bool,
    ) -> None:
        """Start the first turn; see `conversations`."""
        self._session, self._settings, self._version = session, environment, version
        self._keeps_lost = keeps_lost
        sampling = session.sampling()
        self._room = sampling.max_tokens  # of a response, observations included
        self._turn = Sampling(sampling.temperature, self._longest(self._room))
        rows = {prompt.id: _row(prompt) for prompt in prompts}
        self._talks = {
            i: _Talk(request, seed, rows[request.prompt_id])
            for request in requests
            for i, seed in zip(request.ids, request.seeds, strict=True)
        }
        self._failures: dict[int, Failure] = {}
        self._first = session.fleet.rollout.generate(requests, self._turn, version)
        self._played: Rollouts | None = None

    @property
    def lost(self) -> dict[int, Failure]:
        """The sequences whose environment failed, which are not among the parts; waits for all."""
        self.result()
        return {} if self._keeps_lost else self._failures

    @property
    def failures(self) -> dict[int, Failure]:
        """The sequences whose environment failed; waits for all."""
        self.result()
        return self._failures

    def parts(self) -> Iterator[Rollouts]:
        """All sequences in one part."""
        yield self.result()

    def result(self) -> Rollouts:
        """All sequences that were not lost, in the order of the requests.

        Raises:
            EnvironmentFailedError: every sequence is lost.
        """
        if self._played is None:
            self._play()
            kept = [i for i in self._talks if self._keeps_lost or i not in self._failures]
            if len(self._failures) == len(self._talks):
                raise EnvironmentFailedError(
                    f"the environment failed in all {len(self._talks)} sequences of a batch, "
                    f"first: {next(iter(self._failures.values()))}",
                    where=str(self._session.position),
                    fix="call the environment by hand on a row and a text; then resume the run",
                )
            self._played = self._held(kept)
        return self._played

    def _play(self) -> None:
        generation, number = self._first, 1
        rollout, environment = self._session.fleet.rollout, self._session.fleet.environment
        while True:
            self._hear(rollout.fetch(generation.result()).result())
            going = self._answered(number)
            if not going:
                break
            number += 1
            requests = [self._request(i, number) for i in going]
            generation = rollout.generate(requests, self._turn, self._version)
        environment.forget()

    def _hear(self, batch: RolloutBatch) -> None:
        """Append a turn of each sequence."""
        for row, i in enumerate(batch.ids.tolist()):
            talk, version = self._talks[i], batch.versions[row].tolist()
            talk.turns.append(batch.response(row))
            talk.logprobs += batch.logprobs.row(row).tolist()
            talk.finish = Finish(int(batch.finish[row]))
            talk.versions = (talk.versions[0] if talk.versions[0] >= 0 else version[0], version[1])

    def _answered(self, number: int) -> list[int]:
        """Have the environment answer the turns that just ended; the sequences that go on."""
        asks = [
            Ask(i, talk.row, talk.seed, tuple(map(tuple, talk.turns)), tuple(talk.observations))
            for i, talk in self._talks.items()
            if i not in self._failures
            and len(talk.turns) == number
            and talk.finish is Finish.STOP
        ]  # fmt: skip
        told = self._session.fleet.environment.step(asks) if asks else []
        return sorted(each.id for each in told if self._goes_on(each, number))

    def _goes_on(self, told: Told, number: int) -> bool:
        """Enter what the environment said; whether the policy speaks again."""
        talk = self._talks[told.id]
        if told.failure:
            self._failures[told.id] = Failure(told.failure, told.words)
            talk.finish = Finish.LENGTH
            return False
        talk.earned += told.reward
        if told.done:
            return False
        fits = len(talk.response) + len(told.observation) < self._room
        if number >= self._settings.max_turns or not fits:
            talk.finish = Finish.LENGTH  # cut, as by the token limit: it never came to an end
            return False
        talk.observations.append(told.observation)
        return True

    def _request(self, i: int, number: int) -> GenerationRequest:
        talk = self._talks[i]
        response = talk.response
        # A random stream cannot be resumed: each turn has a seed of its own.
        state = np.random.SeedSequence([talk.seed, number]).generate_state(1, np.uint32)
        return GenerationRequest(
            talk.request.prompt_id,
            (*talk.request.prompt_tokens, *response),
            (i,),
            (int(state[0] >> 1),),
            self._longest(self._room - len(response)),
        )

    def _longest(self, left: int) -> int:
        return min(self._settings.turn_tokens or left, left)

    def _held(self, ids: Sequence[int]) -> Rollouts:
        """The sequences as if engines had just sampled them, in as many shards as engines."""
        rollout = self._session.fleet.rollout
        batch = _packed({i: self._talks[i] for i in ids})
        parts = np.array_split(np.arange(len(batch)), min(len(batch), rollout.size))
        return joined([rollout.hold(batch.select(rows)) for rows in parts])


def conversations(
    session: Session,
    environment: EnvironmentConfig,
    prompts: Sequence[Prompt],
    requests: Sequence[GenerationRequest],
    version: int,
    *,
    keeps_lost: bool = False,
) -> Conversations:
    """Start sampling conversations.

    Args:
        session: The run.
        environment: What answers; the role must be loaded with it before the result is asked for.
        prompts: Of the requests.
        requests: As for one turn.
        version: Of the weights that the engines serve.
        keeps_lost: Keep a sequence whose environment failed, cut there: for an evaluation, where
            each prompt needs an answer.
    """
    return Conversations(session, environment, prompts, requests, version, keeps_lost=keeps_lost)


def talk_with(session: Session, environment: EnvironmentConfig, policy_checkpoint: str) -> None:
    """Load an environment into its role, for a policy that is not trained now."""
    spec = environment_spec(session.config, environment, policy_checkpoint)
    session.fleet.environment.load(spec).result()


def lost_of(generation: Generation) -> Mapping[int, Failure]:
    """The sequences that a generation lost, with the reasons; waits for all of it."""
    lost: Mapping[int, Failure] = getattr(generation, "lost", {})
    return lost


def _row(prompt: Prompt) -> str:
    columns = prompt.asked.columns()
    columns.setdefault(PROMPT, plain_text(prompt.context))
    return json.dumps(columns)


def _packed(talks: Mapping[int, _Talk]) -> RolloutBatch:
    every = list(talks.values())
    prompts = [talk.request.prompt_tokens for talk in every]
    rows = [[*p, *t.response] for p, t in zip(prompts, every, strict=True)]
    return RolloutBatch(
        ids=np.array(list(talks), np.int64),
        prompt_ids=np.array([talk.request.prompt_id for talk in every], np.int64),
        tokens=Ragged.from_rows(rows, np.int32),
        prompt_lengths=np.array([len(p) for p in prompts], np.int64),
        logprobs=Ragged.from_rows([talk.logprobs for talk in every], np.float32),
        finish=np.array([talk.finish for talk in every], np.int64),
        versions=np.array([talk.versions for talk in every], np.int64).reshape(-1, 2),
        sampled=Ragged.from_rows([talk.sampled for talk in every], np.bool_),
        earned=np.array([talk.earned for talk in every], np.float32),
    )


def sampled_answers(
    session: Session,
    environment: EnvironmentConfig,
    version: int,
    prompts: Sequence[Prompt],
    *path: str | int,
) -> tuple[list[str], RolloutBatch]:
    """One answer per prompt, in the order of the prompts, and their sequences.

    Of a conversation, the answer is the last turn of the policy. One whose environment fails ends
    there, and that is said.

    Args:
        session: The run.
        environment: What answers; its role must be loaded.
        version: Of the weights that the engines serve.
        prompts: The prompts.
        path: Names the seeds.
    """
    rollout = session.fleet.rollout
    if not environment.on:
        return session.sample_texts(rollout, version, prompts, *path)
    requests = session.requests(prompts, 1, *path)
    talk = conversations(session, environment, prompts, requests, version, keeps_lost=True)
    batch = rollout.fetch(talk.result()).result()
    if talk.failures:
        first = next(iter(talk.failures.values()))
        session.live.note(
            f"{len(talk.failures)} of {len(prompts)} held-out conversations were cut: {first}"
        )
    return [session.source.detokenize(_last_turn(batch, n)) for n in range(len(batch))], batch


def _last_turn(batch: RolloutBatch, row: int) -> list[int]:
    assert batch.sampled is not None, "conversations have masks"
    first, end = turns_of(batch.sampled.row(row))[-1]
    return batch.response(row)[first:end]
