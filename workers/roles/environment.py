"""The environment role: answers the turns of conversations, each within a deadline.

A worker has no state that a sequence could lose: every question holds the whole conversation. What
it keeps, the environments that were already made, is made again after a loss.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from workers.data.rows.unusable import Unusable
from workers.data.tokenize.tokenizers import detokenize, load_speaker
from workers.data.tokenize.turn_text import TurnText
from workers.errors import ConfigError, RoleError
from workers.process.heartbeat import beat
from workers.records.environment import Ask, Told
from workers.records.processes import RoleInfo
from workers.records.specs import EnvironmentSpec
from workers.user_functions.environment_function import tools_path
from workers.user_functions.environment_process import EnvironmentProcess, Played

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_CHANGED = "environment said something else when it was repeated"


@dataclass(frozen=True, slots=True)
class _Loaded:
    spec: EnvironmentSpec
    tokenizer: PreTrainedTokenizerBase
    written: TurnText
    process: EnvironmentProcess


class EnvironmentWorker:
    """One worker; workers share no state."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._loaded: _Loaded | None = None

    def load(self, spec: EnvironmentSpec) -> RoleInfo:
        """Import the environment; replaces the previous one.

        Raises:
            ConfigError: It cannot be imported, or the chat template rewrites earlier turns.
        """
        if self._loaded is not None:
            self._loaded.process.close()
            self._loaded = None
        tokenizer = load_speaker(spec.tokenizer, spec.chat_template, spec.add_bos_token)
        written = TurnText(
            tokenizer,
            template=spec.chat_template,
            role=spec.role,
            text=spec.turn_text,
            date=spec.date,
        )
        path = tools_path(spec.tools, spec.call) if spec.kind == "tools" else spec.factory
        process = EnvironmentProcess(path, spec.folder, spec.step_seconds)
        self._loaded = _Loaded(spec, tokenizer, written, process)
        return RoleInfo.here("environment", self.rank, "cpu")

    def step(self, asks: Sequence[Ask]) -> list[Told]:
        """Answer turns in order: all, or as many as begin within the spec's `slice_seconds`."""
        loaded = self._require()
        until = time.monotonic() + loaded.spec.slice_seconds
        told: list[Told] = []
        for ask in asks:
            if told and time.monotonic() > until:
                break
            told.append(_told(loaded, ask))
            beat()
        return told

    def forget(self) -> None:
        """Drop the environments of conversations, which have all ended."""
        self._require().process.forget()

    def _require(self) -> _Loaded:
        if self._loaded is None:
            raise RoleError("no environment is loaded", where=f"environment rank {self.rank}")
        return self._loaded


def _told(loaded: _Loaded, ask: Ask) -> Told:
    texts = [detokenize(loaded.tokenizer, turn) for turn in ask.turns]
    played = loaded.process.play(ask.id, json.loads(ask.row), ask.seed, texts)
    if played.reason:
        return Told(ask.id, failure=played.reason, words=played.words)
    try:
        if not _same(loaded, ask, played):
            return Told(ask.id, failure=_CHANGED)
        observation, reward, done = played.turns[-1]
        if reward and not loaded.spec.rewarded:
            raise ConfigError(
                f"the environment gave a reward of {reward:g}, and no reward of the run takes it",
                where="reward.kind",
                fix="set reward=environment, or add a term of this kind; or return a reward of 0",
            )
        return Told(ask.id, () if done else tuple(loaded.written(observation)), reward, done)
    except Unusable as why:
        return Told(ask.id, failure=str(why), words=repr(played.turns[-1][0])[:200])


def _same(loaded: _Loaded, ask: Ask, played: Played) -> bool:
    """Whether turns that were repeated for a new environment are those that the policy has read."""
    again = played.turns[:-1]
    if not again:
        return True
    if len(again) != len(ask.observations) or any(done for _, _, done in again):
        return False
    pairs = zip(again, ask.observations, strict=True)
    return all(tuple(loaded.written(text)) == read for (text, _, _), read in pairs)
