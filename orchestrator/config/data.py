"""Settings of the data: where rows come from, and how they are filtered and rendered."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from typing import Any, cast

from orchestrator.config.data_sets import data_set
from orchestrator.config.ranges import any_seed, at_least, between, path, positive
from workers.data.tokenize.data_sets import SHORTHANDS, DataSet, SetKind
from workers.errors import ConfigError


class DataSourceKind(Enum):
    """Where examples come from."""

    pocket = "pocket"
    files = "files"


class TrainOn(Enum):
    """Which turns of a dialogue are targets."""

    last = "last"
    """The last assistant turn."""
    all = "all"
    """Every assistant turn."""


class AddBosToken(Enum):
    """Whether plain text starts with the BOS token; stored in the tokenizer's configuration."""

    auto = "auto"
    """The given tokenizer's own behaviour."""
    always = "always"
    never = "never"


class OnBadLine(Enum):
    """What happens when a line of a data file does not parse."""

    fail = "fail"
    """The run stops."""
    drop = "drop"
    """The line is dropped and counted."""


class PersonalData(Enum):
    """What happens to training rows with e-mail addresses, phone or card numbers and the like."""

    keep = "keep"
    drop = "drop"
    """Rows are dropped, and counted per kind of personal data."""


class RowOrder(Enum):
    """Order of the demonstrations in training; rows of other kinds are always shuffled."""

    shuffled = "shuffled"
    """Each data set is shuffled again for each pass over it."""
    length_grouped = "length_grouped"
    """The rows of `length_group_batches` batches are sorted by length and split into new batches,
    whose order is then shuffled."""


@dataclass(slots=True, kw_only=True)
class FilesConfig:
    """One data set of weight 1 per key, and the token limits of all data sets."""

    demonstrations: str = path("")
    """A data set of kind demonstrations: prompts with the response to imitate."""
    rankings: str = path("")
    """A data set of kind comparisons."""
    prompts: str = path("")
    """A data set of kind prompts, for PPO."""
    evaluation_prompts: str = path("")
    """A data set of kind evaluation_prompts; "" = held-out prompts are used."""
    pretraining: str = path("")
    """A data set of kind pretraining: plain text for pretraining and PPO-ptx."""
    max_prompt_tokens: int = positive(1024)
    """Longer prompts are dropped and counted."""
    max_completion_tokens: int = positive(1024)
    """Longer completions are truncated and counted."""


@dataclass(slots=True, kw_only=True)
class PocketWorldConfig:
    """The synthetic pocket world: its seed and the labeler's noise."""

    seed: int = any_seed(0)
    """Seed of the world: its facts, texts, prompts and labelers."""
    label_noise: float = at_least(0, 0.5)
    """Standard deviation of the noise added to the hidden score of each completion."""
    tie_width: float = at_least(0, 0.25)
    """Completions whose noisy scores differ by less than this are ranked equal."""
    arithmetic: bool = False
    """Every question and every fact is a sum of two numbers, in place of animals and word lists."""
    lookup: bool = False
    """The internet leaves out the facts of half of the animals, which the tool lookup tells
    (docs/environments.md); prompts ask for facts alone."""

    def check(self, key: str) -> None:
        """Check that the world is of one kind."""
        if self.arithmetic and self.lookup:
            raise ConfigError(
                "a world of sums has no animals to look up",
                where=f"{key}.lookup",
                fix=f"set it or {key}.arithmetic to false",
            )


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
    """Where rows come from: the simulated pocket world, or files."""
    pocket: PocketWorldConfig = field(default_factory=PocketWorldConfig)
    """The simulated world (source: pocket)."""
    files: FilesConfig = field(default_factory=FilesConfig)
    """One data set per kind (source: files); data.sets.NAME adds more."""
    # Any, because Hydra cannot add to a dictionary of dataclasses from the command line;
    # __post_init__ converts each entry to DataSetConfig.
    sets: dict[str, Any] = field(default_factory=dict)
    """Further data sets by name: data.sets.NAME.kind, path, format, columns, split, subset."""
    chat_template: str = path("auto", needed=True)
    """auto = the tokenizer's template | default = the built-in template | path of a Jinja file."""
    date: str = ""
    """Date given to chat templates; "" = the day the run started, saved with the run."""
    add_bos_token: AddBosToken = AddBosToken.auto
    """BOS before plain text; auto = the tokenizer's."""
    train_on: TrainOn = TrainOn.last
    """Assistant turns of a dialogue that are targets."""
    on_bad_line: OnBadLine = OnBadLine.fail
    """What happens to a line that does not parse."""
    keep_columns: list[str] = field(default_factory=list)
    """Columns of each prompt's row that reach reward functions, verifiers and servers."""
    heldout_fraction: float = between(0, 0.1, 1)
    """Fraction of users, or of prompts without a user, that is held out."""
    heldout_fold: int = at_least(0, 0)
    """Index of the held-out part, 0 <= fold < 1 / heldout_fraction; the parts are disjoint, for
    cross-validation."""
    dedup_prefix_characters: int = at_least(0, 0)
    """Prompts whose first characters (this many) are equal count as duplicates; 0 = off."""
    max_rows_per_user: int = at_least(0, 0)
    """Most rows of one user per kind of row; 0 = no limit (InstructGPT: 200)."""
    pii: PersonalData = PersonalData.keep
    """What happens to training rows with personal data."""
    order: RowOrder = RowOrder.shuffled
    """Order of demonstrations."""
    length_group_batches: int = positive(50)
    """Batches sorted together when length_grouped."""
    cache_mib: int = at_least(0, 2048)
    """Size of the cache of tokenised rows for later commands; 0 = off. Does not change results."""
    workers: int = positive(1, 1024)
    """Processes that render and tokenise; 1 = the main process only. Does not change results."""

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
        if "" in self.keep_columns:
            raise ConfigError(
                "a column without a name", where=f"{key}.keep_columns", fix="name its column"
            )
        folds = int(1.0 / self.heldout_fraction + 1e-9)
        if not 0 <= self.heldout_fold < folds:
            raise ConfigError(
                f"heldout_fold={self.heldout_fold}: there are {folds} parts of "
                f"{self.heldout_fraction:g} of the rows",
                where=f"{key}.heldout_fold",
                fix=f"choose a fold from 0 to {folds - 1}",
            )


def all_sets(data: DataConfig) -> tuple[DataSet, ...]:
    """The data sets of `data.files`, each of weight 1, and those of `data.sets`.

    Raises:
        ConfigError: an entry of `data.sets` has the name of a key of `data.files`.
    """
    found = {
        name: DataSet(name, kind, getattr(data.files, name), keep=_kept(data, kind))
        for name, kind in SHORTHANDS.items()
        if getattr(data.files, name)
    }
    for name, each in data.sets.items():
        if name in SHORTHANDS:
            raise ConfigError(
                f"{name!r} is the name of a set of data.files",
                where=f"data.sets.{name}",
                fix="give it another name",
            )
        found[name] = DataSet(
            name, each.kind, each.path, each.format, each.columns, each.split, each.subset,
            each.weight, _kept(data, each.kind),
        )  # fmt: skip
    return tuple(found.values())


def _kept(data: DataConfig, kind: SetKind) -> tuple[str, ...]:
    asks = kind in (SetKind.prompts, SetKind.evaluation_prompts)
    return tuple(data.keep_columns) if asks else ()


def kinds(data: DataConfig) -> set[SetKind]:
    """The kinds of the configured data sets."""
    return {each.kind for each in all_sets(data)}
