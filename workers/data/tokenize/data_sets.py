"""Settings of data sets, rendering and feeding, as records sent to data-loading processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Literal

from workers.data.tokenize.beginnings import Beginning
from workers.errors import DataError


class SetKind(Enum):
    """What the rows of a data set are for."""

    demonstrations = "demonstrations"
    comparisons = "comparisons"
    prompts = "prompts"
    evaluation_prompts = "evaluation_prompts"
    pretraining = "pretraining"


@dataclass(frozen=True, slots=True)
class DataSet:
    """One data set."""

    name: str  # unique in a run; drops and accuracies are reported per name
    kind: SetKind
    path: str  # file or folder, or the id of a Hugging Face data set
    format: str = "auto"
    columns: Mapping[str, Any] = field(default_factory=dict)  # canonical name -> column of the set
    split: str = "train"
    subset: str = ""
    weight: float = 1.0  # share among the sets of one kind
    keep: tuple[str, ...] = ()  # columns of its rows that rewards read; sets of prompts only

    @property
    def key(self) -> str:
        """The configuration key of the set, for messages."""
        return f"data.files.{self.name}" if self.name in SHORTHANDS else f"data.sets.{self.name}"


@contextmanager
def naming_key(each: DataSet) -> Iterator[None]:
    """What is wrong with a data set names the key that gave it."""
    try:
        yield
    except DataError as error:
        if each.key not in error.where:
            error.where = f"{each.key}: {error.where}"
        raise


# `data.files.KEY=FILE` is a set with name KEY and weight 1.
SHORTHANDS = {
    "demonstrations": SetKind.demonstrations,
    "rankings": SetKind.comparisons,
    "prompts": SetKind.prompts,
    "evaluation_prompts": SetKind.evaluation_prompts,
    "pretraining": SetKind.pretraining,
}


@dataclass(frozen=True, slots=True)
class Rendering:
    """How examples become token rows."""

    checkpoint: str  # Hugging Face folder whose tokenizer is used
    max_prompt_tokens: int  # rows with a longer prompt are dropped
    max_completion_tokens: int  # longer completions are truncated and get no end token
    chat_template: str = "auto"  # auto | default | path of a Jinja file
    add_bos_token: Beginning = "auto"  # auto = the tokenizer's default | always | never
    train_on: Literal["last", "all"] = "last"
    date: str = ""  # the date given to templates, in ISO format; "" = now
    prefix_characters: int = 0  # length of the beginning that deduplication compares; 0 = off
    find_pii: bool = False
    embeddings: int = 0  # number of token ids that the models have embeddings for; 0 = not checked


@dataclass(frozen=True, slots=True)
class Feeding:
    """Settings of filters, splits, order and data-loading processes."""

    seed: int = 0  # fixes every order
    on_bad_line: Literal["fail", "drop"] = "fail"
    heldout_fraction: float = 0.1
    heldout_fold: int = 0  # which slice of that size is held out, see `split_rows`
    max_rows_per_user: int = 0  # 0 = no limit
    drop_pii: bool = False  # training rows only
    length_grouped: bool = False
    length_group_batches: int = 50
    # rows per batch of a stage, by kind; used by length grouping
    batch_rows: Mapping[SetKind, int] = field(default_factory=dict)
    workers: int = 1  # processes that render and tokenise; 1 = in this process
    cache_mib: int = 0  # size limit of the cache of tokenised rows; 0 = no cache
    call_seconds: float = 1800.0  # deadline for one chunk of rows in such a process
