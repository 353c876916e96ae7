"""The reward role: scores sequences by reward sources, one per term of the reward."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np

from workers.data.rows.asked import Asked
from workers.data.tokenize.tokenizers import detokenize, load_tokenizer
from workers.errors import LedgerError, RoleError
from workers.records.arrays import FloatArray, IntArray, Ragged
from workers.records.combining import combined
from workers.records.gather import gather_rollouts
from workers.records.generation import Finish, RolloutBatch, turns_of
from workers.records.processes import RoleInfo
from workers.records.specs import RewardSpec, TermSpec
from workers.records.training import Scores, TermScores
from workers.scorers.source import Batch, Scored, Scorer, make_scorer, scores_of
from workers.scorers.steps import COUNT, place_steps
from workers.user_functions.reward_function import Exchange

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class _Term:
    spec: TermSpec
    scorer: Scorer
    turns: AbstractContextManager[object]  # entered while it scores


@dataclass(frozen=True, slots=True)
class _Loaded:
    terms: tuple[_Term, ...]
    normalised: bool
    separator: str  # between steps; "" = no process rewards
    tokenizer: PreTrainedTokenizerBase | None  # the policy's, for a source that needs text


class RewardWorker:
    """One replica of the reward; replicas share no state."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self._loaded: _Loaded | None = None

    def load(self, spec: RewardSpec) -> RoleInfo:
        """Set up the sources of rewards; replaces the previous ones.

        Raises:
            RehearsalError: A source cannot be found or set up, e.g. TokenizerMismatchError or
                BrokenCheckpointError of a reward model, ConfigError of a function.
        """
        self._loaded = None
        made = [(term, *make_scorer(spec, term)) for term in spec.terms]
        text = any(needs.text for _, _, needs in made)
        tokenizer = load_tokenizer(spec.policy_checkpoint) if text else None
        terms = tuple(
            _Term(term, scorer, nullcontext() if needs.waits else Lock())
            for term, scorer, needs in made
        )
        self._loaded = _Loaded(terms, spec.normalised, spec.step_separator, tokenizer)
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
        found = _scored(loaded.terms, Batch(rollouts, texts))
        steps = None
        if loaded.separator and loaded.tokenizer is not None:
            placed = [_placed(loaded, rollouts, texts, each) for each in found]
            found = [scored for scored, _ in placed]
            steps = _weighted(rollouts, loaded.terms, [rows for _, rows in placed])
        own = np.asarray(ids, np.int64)
        if [term.spec.name for term in loaded.terms] == [""]:
            (only,) = found
            return Scores(own, only.values, tuple(only.reasons), tuple(only.words), steps=steps)
        return replace(combined(_together(own, loaded, found)), steps=steps)


def _scored(terms: Sequence[_Term], batch: Batch) -> list[Scored]:
    """What each term gives; several work at the same time, as some wait for others' servers."""
    if len(terms) == 1:
        return [_by_term(terms[0], batch)]
    with ThreadPoolExecutor(len(terms)) as threads:
        calls = [threads.submit(_by_term, term, batch) for term in terms]
        return [call.result() for call in calls]


def _by_term(term: _Term, batch: Batch) -> Scored:
    with term.turns:
        return scores_of(term.scorer, batch, term.spec.source)


_Rows = list[FloatArray]  # (B,) rewards of each response's tokens, (T,) per row


def _placed(
    loaded: _Loaded, rollouts: RolloutBatch, texts: Sequence[Exchange], scored: Scored
) -> tuple[Scored, _Rows]:
    """The scores of a term, and its rewards of steps at their tokens; a wrong count fails."""
    assert loaded.tokenizer is not None
    decode = partial(detokenize, loaded.tokenizer)
    rows = [np.zeros(int(length), np.float32) for length in rollouts.response_lengths]
    values, reasons = scored.values.copy(), [*scored.reasons]
    for row, parts in enumerate(scored.steps):
        if not parts or reasons[row]:
            continue
        text, ids = texts[row].response, rollouts.response(row)
        found = place_steps(ids, text, parts, loaded.separator, decode)
        if found is None:
            reasons[row], values[row] = COUNT, np.nan
        else:
            rows[row] = found
    return replace(scored, values=values, reasons=reasons), rows


def _weighted(rollouts: RolloutBatch, terms: Sequence[_Term], rows: Sequence[_Rows]) -> Ragged:
    """The rewards of steps of all terms together."""
    total = [np.zeros(int(length), np.float32) for length in rollouts.response_lengths]
    for term, own in zip(terms, rows, strict=True):
        for row, each in enumerate(own):
            total[row] += np.float32(term.spec.weight) * each
    return Ragged.from_rows(total, np.float32)


def _together(ids: IntArray, loaded: _Loaded, found: Sequence[Scored]) -> Scores:
    """One record of all terms; a sequence fails by the first term with a weight that failed."""
    specs = [term.spec for term in loaded.terms]
    reasons, words = [""] * len(ids), [""] * len(ids)
    for spec, scored in zip(specs, found, strict=True):
        for row, reason in enumerate(scored.reasons if spec.weight else ()):
            if reason and not reasons[row]:
                reasons[row], words[row] = f"{spec.name}: {reason}", scored.words[row]
    terms = TermScores(
        tuple(spec.name for spec in specs),
        tuple(spec.weight for spec in specs),
        loaded.normalised,
        np.stack([scored.values for scored in found], axis=1),
    )
    none = np.full(len(ids), np.nan, np.float32)
    return Scores(ids, none, tuple(reasons), tuple(words), terms)


def _texts(
    tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, words: Mapping[int, Asked]
) -> list[Exchange]:
    exchanges: list[Exchange] = []
    for row, prompt in enumerate(batch.prompt_ids.tolist()):
        if prompt not in words:
            raise LedgerError(f"no text was given for prompt {prompt}", where="reward")
        finished = bool(batch.finish[row] == Finish.STOP)
        turns = _turns(tokenizer, batch, row)
        response = turns[-1][1] if turns else detokenize(tokenizer, batch.response(row))
        exchanges.append(Exchange(words[prompt], response, finished, turns))
    return exchanges


def _turns(
    tokenizer: PreTrainedTokenizerBase, batch: RolloutBatch, row: int
) -> tuple[tuple[str, str], ...]:
    """Role and text of each turn of a conversation; () where there is no environment."""
    if batch.sampled is None:
        return ()
    ids, found, before = batch.response(row), list[tuple[str, str]](), 0
    for first, end in turns_of(batch.sampled.row(row)):
        if first > before:
            found.append(("environment", detokenize(tokenizer, ids[before:first]).strip()))
        found.append(("assistant", detokenize(tokenizer, ids[first:end])))
        before = end
    return tuple(found)
