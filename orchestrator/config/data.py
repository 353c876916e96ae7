"""Settings of the data: where rows come from, and how they are filtered and rendered."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, cast

from orchestrator.config.data_sets import data_set
from orchestrator.config.ranges import any_seed, at_least, between, path, positive
from workers.errors import ConfigError


class DataSourceKind(Enum):
    """Where examples come from."""

    pocket = "pocket"
    files = "files"


class TrainOn(Enum):
    """Which turns of a dialogue are targets."""

    last = "last"  # the last assistant turn
    all = "all"  # every assistant turn


class AddBosToken(Enum):
    """Whether bare text begins with the beginning-of-sequence token; goes into the tokenizer."""

    auto = "auto"  # as the given tokenizer does by itself
    always = "always"
    never = "never"


class OnBadLine(Enum):
    """What a line that does not parse does to a run."""

    fail = "fail"
    drop = "drop"  # counted


class PersonalData(Enum):
    """What happens to training rows with e-mail addresses, phone or card numbers and the like."""

    keep = "keep"
    drop = "drop"  # counted by kind


class RowOrder(Enum):
    """The order in which demonstrations are trained on; rows of other kinds are always shuffled."""

    shuffled = "shuffled"  # each set permuted anew in each of its passes
    # `length_group_batches` batches at a time, sorted by length and cut anew; then these shuffled
    length_grouped = "length_grouped"


@dataclass(slots=True, kw_only=True)
class FilesConfig:
    """One data set of weight 1 a key, and the token limits of all sets."""

    demonstrations: str = path("")
    rankings: str = path("")  # comparisons
    prompts: str = path("")
    evaluation_prompts: str = path("")
    pretraining: str = path("")
    max_prompt_tokens: int = positive(1024)  # longer prompts are dropped and counted
    max_completion_tokens: int = positive(1024)  # longer completions are cut and counted


@dataclass(slots=True, kw_only=True)
class PocketWorldConfig:
    """The miniature world: its seed and the labeler's noise."""

    seed: int = any_seed(0)
    # standard deviation added to the hidden score, per completion
    label_noise: float = at_least(0, 0.5)
    # completions whose noisy scores differ by less are ranked equal
    tie_width: float = at_least(0, 0.25)


def _check_date(date: str) -> None:
    try:
        datetime.fromisoformat(date or "2026-01-01")
    except ValueError as error:
        raise ConfigError(
            f"date={date!r} is no date", where="data.date", fix="write it as 2026-01-31"
        ) from error


@dataclass(slots=True, kw_only=True)
class DataConfig:
    """Where examples come from."""

    source: DataSourceKind = DataSourceKind.pocket
    pocket: PocketWorldConfig = field(default_factory=PocketWorldConfig)
    files: FilesConfig = field(default_factory=FilesConfig)
    # name -> DataSetConfig. Declared as Any because Hydra cannot add to a dictionary of dataclasses
    # from the command line; __post_init__ leaves DataSetConfig in it.
    sets: dict[str, Any] = field(default_factory=dict)
    # auto = the tokenizer's | default = the built-in one | a Jinja file
    chat_template: str = path("auto", needed=True)
    date: str = ""  # what chat templates are told; "" = the day of the run's start, kept with it
    add_bos_token: AddBosToken = AddBosToken.auto  # before bare text; auto = as the tokenizer does
    train_on: TrainOn = TrainOn.last
    on_bad_line: OnBadLine = OnBadLine.fail
    heldout_fraction: float = between(0, 0.1, 1)  # of users, or of prompts where no user is named
    # which part of that size; the folds of a cross-validation are disjoint
    heldout_fold: int = at_least(0, 0)
    # prompts that share so long a beginning are one; 0 = off
    dedup_prefix_characters: int = at_least(0, 0)
    max_rows_per_user: int = at_least(0, 0)  # of one kind; 0 = no limit (InstructGPT: 200)
    pii: PersonalData = PersonalData.keep  # training rows only
    order: RowOrder = RowOrder.shuffled
    length_group_batches: int = positive(50)  # batches sorted together when length_grouped
    # of tokenised rows that are kept for later commands; 0 = none are. Changes no result
    cache_mib: int = at_least(0, 2048)
    # processes that render and tokenise; 1 = the run's own. Changes no result
    workers: int = positive(1, 1024)

    def __post_init__(self) -> None:
        given = cast("object", self.sets)
        if not isinstance(given, dict):  # an interpolation may give anything
            raise ConfigError(
                f"data.sets={given!r} is no section of data sets",
                where="data.sets",
                fix="set data.sets.NAME.kind=demonstrations data.sets.NAME.path=FILE",
            )
        self.sets = {str(name): data_set(str(name), each) for name, each in self.sets.items()}

    def check(self, key: str) -> None:
        """Whether the date is one, and the fold exists."""
        _check_date(self.date)
        folds = int(1.0 / self.heldout_fraction + 1e-9)
        if not 0 <= self.heldout_fold < folds:
            raise ConfigError(
                f"heldout_fold={self.heldout_fold}: there are {folds} parts of "
                f"{self.heldout_fraction:g} of the rows",
                where=f"{key}.heldout_fold",
                fix=f"choose a fold from 0 to {folds - 1}",
            )
