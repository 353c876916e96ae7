"""The reward role: scores sequences by a reward source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from workers.data.rows.asked import Asked
from workers.data.tokenize.tokenizers import detokenize, load_tokenizer
from workers.errors import LedgerError, RoleError
from workers.records.arrays import IntArray
from workers.records.gather import gather_rollouts
from workers.records.generation import Finish, RolloutBatch
from workers.records.processes import RoleInfo
from workers.records.specs import RewardSpec
from workers.records.training import Scores
from workers.scorers.source import Batch, Scorer, make_scorer, scores_of
from workers.user_functions.reward_function import Exchange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Loaded:
    source: str
    scorer: Scorer
    tokenizer: PreTrainedTokenizerBase | None  # the policy's, for a source that needs text


class RewardWorker:
    """One replica of the reward; replicas share no state."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._loaded: _Loaded | None = None

    def load(self, spec: RewardSpec) -> RoleInfo:
        """Set up the source of rewards; replaces the previous one.

        Raises:
            RehearsalError: The source cannot be found or set up, e.g. TokenizerMismatchError or
                BrokenCheckpointError of a reward model, ConfigError of a function.
        """
        self._loaded = None
        scorer, needs = make_scorer(spec)
        tokenizer = load_tokenizer(spec.policy_checkpoint) if needs.text else None
        self._loaded = _Loaded(spec.source, scorer, tokenizer)
        device = spec.model.device if spec.model is not None else "cpu"
        return RoleInfo.here("reward", self.rank, device)

    def score(
        self, ids: IntArray, shards: list[RolloutBatch], asked: Sequence[Asked] = ()
    ) -> Scores:
        """Score the sequences `ids`, in that order.

        If a reward is NaN or infinite, or its computation failed, the sequence gets NaN and the
        reason. The caller must drop it; it never counts as 0.

        Args:
            ids: (B,) sequences to score.
            shards: Rollouts that together hold them.
            asked: Their prompts as text; required if the source needs text.

        Raises:
            LedgerError: a sequence is missing from `shards`, or its prompt from `asked`.
            RewardError: a user's source raised, or returned something else than scores.
        """
        loaded = self._loaded
        if loaded is None:
            raise RoleError("no reward is loaded", where=f"reward rank {self.rank}")
        rollouts = gather_rollouts(shards, ids)
        words = {each.prompt_id: each for each in asked}
        texts = _texts(loaded.tokenizer, rollouts, words) if loaded.tokenizer is not None else []
        scored = scores_of(loaded.scorer, Batch(rollouts, texts), loaded.source)
        return Scores(
            np.asarray(ids, np.int64), scored.values, tuple(scored.reasons), tuple(scored.words)
        )


def _texts(
    tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, words: Mapping[int, Asked]
) -> list[Exchange]:
    exchanges: list[Exchange] = []
    for row, prompt in enumerate(batch.prompt_ids.tolist()):
        if prompt not in words:
            raise LedgerError(f"no text was given for prompt {prompt}", where="reward")
        response = detokenize(tokenizer, batch.response(row))
        finished = bool(batch.finish[row] == Finish.STOP)
        exchanges.append(Exchange(words[prompt], response, finished))
    return exchanges
