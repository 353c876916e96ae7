"""The reward role: scores sequences with a reward model or a user's function."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from workers.data.rows.asked import Asked
from workers.data.tokenize.fingerprint import tokenizer_fingerprint
from workers.data.tokenize.tokenizers import detokenize, load_tokenizer
from workers.errors import LedgerError, RoleError, TokenizerMismatchError
from workers.model_folders.shape import read_shape
from workers.models.load import load_scalar
from workers.records.arrays import FloatArray, IntArray, Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.processes import RoleInfo
from workers.records.specs import FrozenModelSpec, RewardSpec
from workers.records.training import Scores
from workers.roles.frozen_model import FrozenModel, identity
from workers.roles.scoring import sequence_scores
from workers.scorers.text_bridge import TextBridge
from workers.training.experience import gather_rollouts
from workers.user_functions.calls import Patience
from workers.user_functions.reward_function import Exchange, start_reward

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Words = Mapping[int, Asked]  # prompt id -> text of the prompt
# Returns the token rows for the reward model, and per row the reason why it has none.
Bridge = Callable[[RolloutBatch, Words], tuple[Ragged, list[str]]]


class _Scorer(Protocol):
    def __call__(self, batch: RolloutBatch, words: Words) -> _Scored: ...


@dataclass(frozen=True, slots=True)
class _Scored:
    values: FloatArray  # (B,) reward units, NaN where failed
    reasons: list[str]  # (B,) why it failed; "" = scored
    words: list[str]  # (B,) error message of the user's function


class RewardWorker:
    """One replica of the reward; replicas share no state."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._score: _Scorer | None = None

    def load(self, spec: RewardSpec) -> RoleInfo:
        """Load the reward model or the function; replaces the previous one.

        Raises:
            TokenizerMismatchError: policy and reward model have different tokenizers, but the
                bridge passes token ids on unchanged.
            MissingCheckpointError: no such folder.
            BrokenCheckpointError: the folder does not hold a complete scalar-head model.
            ConfigError: the function cannot be imported, or is not callable as a reward function.
            DataError: the reward model's chat template does not fit its tokenizer.
        """
        self._score = None
        if spec.model is None:
            self._score = _FunctionScorer(spec)
            return identity("reward", self.rank, "cpu")
        self._score = _ModelScorer(spec, spec.model)
        return identity("reward", self.rank, spec.model.device)

    def score(
        self, ids: IntArray, shards: list[RolloutBatch], asked: Sequence[Asked] = ()
    ) -> Scores:
        """Score the sequences `ids`, in that order.

        If a reward is NaN or infinite, or its computation failed, the sequence gets NaN and the
        reason. The caller must drop it; it never counts as 0.

        Args:
            ids: (B,) sequences to score.
            shards: Rollouts that together hold them.
            asked: Their prompts as text; required unless the reward model reads the policy's
                token ids.

        Raises:
            LedgerError: a sequence is missing from `shards`, or its prompt from `asked`.
        """
        if self._score is None:
            raise RoleError("no reward is loaded", where=f"reward rank {self.rank}")
        words = {each.prompt_id: each for each in asked}
        scored = self._score(gather_rollouts(shards, ids), words)
        return Scores(
            np.asarray(ids, np.int64), scored.values, tuple(scored.reasons), tuple(scored.words)
        )


class _ModelScorer:
    """Scores a sequence by the reward model's scalar at its last token.

    A sequence gets a failure reason in place of a score if, encoded for the reward model, it
    exceeds the model's positions or does not fit its chat template.
    """

    def __init__(self, spec: RewardSpec, model: FrozenModelSpec) -> None:
        self._bridge = _make_bridge(spec, model)
        loaded = load_scalar(
            model.checkpoint, dtype=model.dtype, attention=model.attention, packed=model.packed
        )
        self._model = FrozenModel(loaded, model)
        self._positions = read_shape(Path(model.checkpoint)).positions

    def __call__(self, batch: RolloutBatch, words: Words) -> _Scored:
        (rows, reasons), model = self._bridge(batch, words), self._model
        for row, length in enumerate(rows.lengths.tolist()):
            if self._positions is not None and length > self._positions:
                reasons[row] = f"reward model: more than its {self._positions} tokens"
            elif not length and not reasons[row]:
                reasons[row] = "reward model: no tokens"
        fits = np.array([not reason for reason in reasons], bool)
        fitting = rows.select(np.flatnonzero(fits))
        values = np.full(len(rows), np.nan, np.float32)
        values[fits] = sequence_scores(model.passes, fitting, model.budget, model.device)
        for row in np.flatnonzero(fits & ~np.isfinite(values)):
            reasons[row] = "reward model: not finite"
        values[~np.isfinite(values)] = np.nan
        return _Scored(values, reasons, [""] * len(rows))


class _FunctionScorer:
    """Scores sequences with a user's function of prompt and response texts."""

    def __init__(self, spec: RewardSpec) -> None:
        self._function = start_reward(spec.function, spec.function_folder)
        self._patience = Patience(spec.function_seconds, spec.function_retries)
        self._tokenizer = load_tokenizer(spec.policy_checkpoint)

    def __call__(self, batch: RolloutBatch, words: Words) -> _Scored:
        replies = self._function.ask(_exchanges(self._tokenizer, batch, words), self._patience)
        return _Scored(
            np.array([reply.value for reply in replies], np.float32),
            [reply.reason for reply in replies],
            [reply.words for reply in replies],
        )


def _make_bridge(spec: RewardSpec, model: FrozenModelSpec) -> Bridge:
    policy = load_tokenizer(spec.policy_checkpoint)
    reward = load_tokenizer(model.checkpoint)
    if spec.bridge == "text":
        bridge = TextBridge(reward)
        return lambda batch, words: bridge(_exchanges(policy, batch, words))
    if tokenizer_fingerprint(policy) != tokenizer_fingerprint(reward):
        raise TokenizerMismatchError(
            "policy and reward model do not share a tokenizer",
            where=f"{spec.policy_checkpoint} and {model.checkpoint}",
            fix="set reward.bridge=text, or give a reward model with the policy's tokenizer",
        )
    return lambda batch, _: (batch.tokens, [""] * len(batch))


def _exchanges(
    tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, words: Words
) -> list[Exchange]:
    exchanges: list[Exchange] = []
    for row, prompt in enumerate(batch.prompt_ids.tolist()):
        if prompt not in words:
            raise LedgerError(f"nobody said in words what prompt {prompt} asks", where="reward")
        response = detokenize(tokenizer, batch.response(row))
        finished = bool(batch.finish[row] == Finish.STOP)
        exchanges.append(Exchange(words[prompt], response, finished))
    return exchanges
