"""Rewards of whole sequences, from a reward model or from a user's function."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from workers.data.beginnings import beginning
from workers.data.fingerprint import tokenizer_fingerprint
from workers.data.tokenizers import detokenize, load_tokenizer
from workers.errors import RoleError, TokenizerMismatchError
from workers.experience import gather_rollouts
from workers.frozen import FrozenModel, identity
from workers.messages import Finish, IntArray, Ragged, RoleInfo, RolloutBatch, Scores
from workers.model_shape import read_shape
from workers.models import load_scalar
from workers.reward_function import Patience, ScoredTexts, load_function, score_texts
from workers.scoring import sequence_scores
from workers.specs import FrozenModelSpec, RewardSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Bridge = Callable[[RolloutBatch], Ragged]  # sequences -> token rows of the reward model


class _Scorer(Protocol):
    def __call__(self, batch: RolloutBatch) -> ScoredTexts: ...


class RewardWorker:
    """One replica of the reward; replicas share nothing."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._score: _Scorer | None = None

    def load(self, spec: RewardSpec) -> RoleInfo:
        """Load the reward model or the function; replaces what was there before.

        Raises:
            TokenizerMismatchError: token ids do not mean the same to policy and reward model, and
                the bridge passes them on as they are.
            MissingCheckpointError: no such folder.
            BrokenCheckpointError: the folder does not hold a whole scalar-head model.
            ConfigError: the function cannot be imported.
        """
        self._score = None
        if spec.model is None:
            self._score = _FunctionScorer(spec)
            return identity("reward", self.rank, "cpu")
        self._score = _ModelScorer(spec, spec.model)
        return identity("reward", self.rank, spec.model.device)

    def score(self, ids: IntArray, shards: list[RolloutBatch]) -> Scores:
        """Score the named sequences, in the order of `ids`.

        A sequence whose reward is NaN, infinite or raised an exception carries the reason and NaN:
        it is for the caller to drop, and is never worth 0.

        Args:
            ids: (B,) sequences to score.
            shards: Rollouts that together hold them.
        """
        if self._score is None:
            raise RoleError("no reward is loaded", where=f"reward rank {self.rank}")
        values, reasons = self._score(gather_rollouts(shards, ids))
        return Scores(np.asarray(ids, np.int64), values, tuple(reasons))


class _ModelScorer:
    """The scalar at the last token of each sequence.

    Re-encoded for the reward model a sequence can be longer than its positions, or empty: it then
    has no reward, and the reason is on record.
    """

    def __init__(self, spec: RewardSpec, model: FrozenModelSpec) -> None:
        self._bridge = _make_bridge(spec, model)
        loaded = load_scalar(
            model.checkpoint, dtype=model.dtype, attention=model.attention, packed=model.packed
        )
        self._model = FrozenModel(loaded, model)
        self._positions = read_shape(Path(model.checkpoint)).positions

    def __call__(self, batch: RolloutBatch) -> ScoredTexts:
        rows, model = self._bridge(batch), self._model
        fits = rows.lengths > 0
        if self._positions is not None:
            fits &= rows.lengths <= self._positions
        fitting = rows.select(np.flatnonzero(fits))
        values = np.full(len(rows), np.nan, np.float32)
        values[fits] = sequence_scores(model.passes, fitting, model.budget, model.device)
        reasons = ["" if np.isfinite(v) else "reward model: not finite" for v in values]
        for row in np.flatnonzero(~fits):
            reasons[row] = (
                f"reward model: more than its {self._positions} tokens"
                if rows.lengths[row]
                else "reward model: no tokens"
            )
        return np.where(np.isfinite(values), values, np.float32("nan")), reasons


class _FunctionScorer:
    """A user's function of prompt and response texts."""

    def __init__(self, spec: RewardSpec) -> None:
        self._function = load_function(spec.function)
        self._patience = Patience(spec.function_seconds, spec.function_retries)
        self._tokenizer = load_tokenizer(spec.policy_checkpoint)

    def __call__(self, batch: RolloutBatch) -> ScoredTexts:
        return score_texts(self._function, *_texts(self._tokenizer, batch), self._patience)


def _make_bridge(spec: RewardSpec, model: FrozenModelSpec) -> Bridge:
    policy = load_tokenizer(spec.policy_checkpoint)
    reward = load_tokenizer(model.checkpoint)
    if spec.bridge == "text":
        return lambda batch: _reencode(policy, reward, batch)
    if tokenizer_fingerprint(policy) != tokenizer_fingerprint(reward):
        raise TokenizerMismatchError(
            "policy and reward model do not share a tokenizer",
            where=f"{spec.policy_checkpoint} and {model.checkpoint}",
            mend="set reward.bridge=text, or give a reward model with the policy's tokenizer",
        )
    return lambda batch: batch.tokens


def _texts(tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch) -> tuple[list[str], list[str]]:
    prompts = [detokenize(tokenizer, batch.prompt(i)) for i in range(len(batch))]
    responses = [detokenize(tokenizer, batch.response(i)) for i in range(len(batch))]
    return prompts, responses


def _reencode(
    policy: PreTrainedTokenizerBase, reward: PreTrainedTokenizerBase, batch: RolloutBatch
) -> Ragged:
    """Rows as the reward model saw them in training: start token, prompt, response, end token.

    A response that was cut has no end token on either side.
    """
    prompts, responses = _texts(policy, batch)
    start, end = _ends(reward)
    rows: list[list[int]] = []
    for prompt, response, finish in zip(prompts, responses, batch.finish, strict=True):
        head = reward.encode(prompt, add_special_tokens=False)
        if head[: len(start)] == start:  # a chat template may have rendered the start token
            head = head[len(start) :]
        tail = end if finish == Finish.STOP else []
        rows.append([*start, *head, *reward.encode(response, add_special_tokens=False), *tail])
    return Ragged.from_rows(rows, np.int32)


def _ends(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer begins a text with, and the end token."""
    eos = tokenizer.eos_token_id
    assert isinstance(eos, int), "load_tokenizer refuses a tokenizer without one"
    return list(beginning(tokenizer)), [eos]
