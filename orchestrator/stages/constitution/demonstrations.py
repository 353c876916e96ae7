"""Demonstrations of SFT runs: those of the data, or the revisions of the stage constitution."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from orchestrator.config.constitution import ConstitutionConfig, Keep
from orchestrator.planning.runs.expand import expand
from orchestrator.planning.runs.stage_run import whole
from orchestrator.session.session import Session
from orchestrator.stages.constitution.drafts import Draft, read_drafts
from workers.data.batches import demonstration_batch
from workers.data.source import Split
from workers.data.tokenize.templates import ControlTokens
from workers.errors import EmptyDatasetError
from workers.records.training import TokenBatch

LONG = "a revision of more than rollout.max_response_tokens tokens"
CONTROL = "a revision with the text of a control token"
EMPTY = "an empty revision"


class Demonstrated(Protocol):
    """Demonstrations by cursor, as a data source has them."""

    def demonstrations(self, split: Split, start: int, count: int) -> TokenBatch:
        """Prompt and response; targets are the response and its end token."""
        ...

    def demonstration_count(self) -> int | None:
        """Rows of one epoch of the training demonstrations; None for an endless source."""
        ...


@dataclass(frozen=True, slots=True)
class _Row:
    prompt: tuple[int, ...]
    reply: tuple[int, ...]  # with the end token


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Revisions as demonstrations; each epoch has a new order."""

    train: Sequence[_Row]
    heldout: Sequence[_Row]
    seed: int
    prompts: frozenset[int]  # ids of those whose revisions are among the rows
    left_out: dict[str, int]  # the other answers, by reason

    @classmethod
    def of(cls, session: Session, names: Sequence[str]) -> Demonstrations:
        """The revisions of runs of the stage constitution.

        Raises:
            EmptyDatasetError: none can be used.
            BrokenCheckpointError: a file of theirs is missing or damaged.
        """
        runs = {str(run.name): run for run in expand(whole(session.config))}
        train, heldout = list[_Row](), list[_Row]()
        used, left_out = set[int](), Counter[str]()
        for name in names:
            run = runs[name]
            settings = run.config.constitution
            count = settings.prompts + settings.heldout_prompts
            prompts = session.source.prompts("reward_model", run.first_prompt, count)
            path = session.folder.revisions_of(name, settings.revisions)
            drafts = read_drafts(path, prompts)
            last = len(drafts) - settings.heldout_prompts
            for number, draft in enumerate(drafts):
                rows = _rows(session, draft, settings)
                if isinstance(rows, str):
                    left_out[rows] += 1
                    continue
                used.add(draft.prompt.id)
                (train if number < last else heldout).extend(rows)
        for what, rows in (("training", train), ("held-out", heldout)):
            if not rows:
                raise EmptyDatasetError(
                    f"no {what} answer has a revision that can be used: {dict(left_out)}",
                    where=", ".join(names),
                    fix="look at samples/*_revisions_*.jsonl, or raise constitution.prompts",
                )
        seed = session.seed(*names, "order")
        return cls(train, heldout, seed, frozenset(used), dict(left_out))

    def count(self, split: Split) -> int:
        """Rows of a split."""
        return len(self.train if split == "train" else self.heldout)

    def demonstrations(self, split: Split, start: int, count: int) -> TokenBatch:
        """Rows [start, start + count); each held-out row at most once."""
        if split == "heldout":
            chosen = list(self.heldout[start : start + count])
        else:
            chosen = [self._of_train(n) for n in range(start, start + count)]
        return demonstration_batch(
            [list(row.prompt) for row in chosen], [list(row.reply) for row in chosen]
        )

    def demonstration_count(self) -> int:
        """Rows of one epoch."""
        return len(self.train)

    def _of_train(self, number: int) -> _Row:
        epoch, at = divmod(number, len(self.train))
        return self.train[int(_order(self.seed, epoch, len(self.train))[at])]


@lru_cache(maxsize=2)
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """The order of `count` rows in a pass over them."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def _rows(session: Session, draft: Draft, settings: ConstitutionConfig) -> list[_Row] | str:
    """The demonstrations of one answer, or why it has none."""
    if draft.failed:
        return draft.failed
    kept = draft.revisions if settings.keep is Keep.all else draft.revisions[-1:]
    rows = [_row(session, draft, revision.text) for revision in kept]
    bad = next((row for row in rows if isinstance(row, str)), None)
    return bad or [row for row in rows if not isinstance(row, str)]


def _row(session: Session, draft: Draft, text: str) -> _Row | str:
    tokenizer, most = session.source.tokenizer, session.config.rollout.max_response_tokens
    if not text.strip():
        return EMPTY
    if ControlTokens(tokenizer).in_text(text):
        return CONTROL
    ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
    eos = tokenizer.eos_token_id
    assert isinstance(ids, list), "one text was given"
    assert isinstance(eos, int), "a data source refuses a tokenizer without an end token"
    if len(ids) + 1 > most:
        return LONG
    return _Row(draft.prompt.tokens, (*ids, eos))


def demonstrations_of(session: Session) -> Demonstrated:
    """What the current SFT run trains on."""
    if session.run and session.run.demonstrations:
        return Demonstrations.of(session, session.run.demonstrations)
    return session.source
