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
    """Whether plain text starts with the BOS token; stored in the tokenizer's configuration."""

    auto = "auto"  # the given tokenizer's own behaviour
    always = "always"
    never = "never"


class OnBadLine(Enum):
    """What happens when a line of a data file does not parse."""

    fail = "fail"  # the run stops
    drop = "drop"  # the line is dropped and counted


class PersonalData(Enum):
    """What happens to training rows with e-mail addresses, phone or card numbers and the like."""

    keep = "keep"
    drop = "drop"  # rows are dropped, and counted per kind of personal data


class RowOrder(Enum):
    """Order of the demonstrations in training; rows of other kinds are always shuffled."""

    shuffled = "shuffled"  # each data set is shuffled again for each pass over it
    # the rows of `length_group_batches` batches are sorted by length and split into new batches,
    # whose order is then shuffled
    length_grouped = "length_grouped"


@dataclass(slots=True, kw_only=True)
class FilesConfig:
    """One data set of weight 1 per key, and the token limits of all data sets."""

    demonstrations: str = path("")
    rankings: str = path("")  # a data set of kind comparisons
    prompts: str = path("")
    evaluation_prompts: str = path("")
    pretraining: str = path("")
    max_prompt_tokens: int = positive(1024)  # longer prompts are dropped and counted
    max_completion_tokens: int = positive(1024)  # longer completions are truncated and counted


@dataclass(slots=True, kw_only=True)
class PocketWorldConfig:
    """The synthetic pocket world: its seed and the labeler's noise."""

    seed: int = any_seed(0)
    # standard deviation of the noise added to the hidden score of each completion
    label_noise: float = at_least(0, 0.5)
    # completions whose noisy scores differ by less than this are ranked equal
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
    # from the command line; __post_init__ converts each entry to DataSetConfig.
    sets: dict[str, Any] = field(default_factory=dict)
    # auto = the tokenizer's template | default = the built-in template | path of a Jinja file
    chat_template: str = path("auto", needed=True)
    date: str = ""  # date given to chat templates; "" = the day the run started, saved with the run
    add_bos_token: AddBosToken = AddBosToken.auto  # BOS before plain text; auto = the tokenizer's
    train_on: TrainOn = TrainOn.last  # assistant turns of a dialogue that are targets: last | all
    on_bad_line: OnBadLine = OnBadLine.fail  # a line that does not parse: fail | drop
    heldout_fraction: float = between(0, 0.1, 1)  # of users, or of prompts without a user
    # index of the held-out part, 0 <= fold < 1 / heldout_fraction; the parts are disjoint, for
    # cross-validation
    heldout_fold: int = at_least(0, 0)
    # prompts whose first characters (this many) are equal count as duplicates; 0 = off
    dedup_prefix_characters: int = at_least(0, 0)
    max_rows_per_user: int = at_least(0, 0)  # per kind of row; 0 = no limit (InstructGPT: 200)
    pii: PersonalData = PersonalData.keep  # training rows with personal data: keep | drop
    order: RowOrder = RowOrder.shuffled  # of demonstrations: shuffled | length_grouped
    length_group_batches: int = positive(50)  # batches sorted together when length_grouped
    # size of the cache of tokenised rows for later commands; 0 = off. Does not change results
    cache_mib: int = at_least(0, 2048)
    # processes that render and tokenise; 1 = the main process only. Does not change results
    workers: int = positive(1, 1024)

    def __post_init__(self) -> None:
        given = cast("object", self.sets)
        if not isinstance(given, dict):  # an interpolation can resolve to any type
            raise ConfigError(
                f"data.sets={given!r} is no section of data sets",
                where="data.sets",
                fix="set data.sets.NAME.kind=demonstrations data.sets.NAME.path=FILE",
            )
        self.sets = {str(name): data_set(str(name), each) for name, each in self.sets.items()}

    def check(self, key: str) -> None:
        """Check that the date is valid and that the fold exists."""
        _check_date(self.date)
        folds = int(1.0 / self.heldout_fraction + 1e-9)
        if not 0 <= self.heldout_fold < folds:
            raise ConfigError(
                f"heldout_fold={self.heldout_fold}: there are {folds} parts of "
                f"{self.heldout_fraction:g} of the rows",
                where=f"{key}.heldout_fold",
                fix=f"choose a fold from 0 to {folds - 1}",
            )
