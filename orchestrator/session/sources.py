"""The data source of a run: the pocket world or the configured files."""

from __future__ import annotations

from pathlib import Path

from orchestrator.batching.batch_sizes import sft_rows
from orchestrator.config.by_name import from_sections
from orchestrator.config.data import DataSourceKind, PersonalData, RowOrder, all_sets
from orchestrator.config.schema import Config
from workers.data.files import FileSource
from workers.data.source import DataSource
from workers.data.tables.accounts import SetAccount, with_key
from workers.data.tokenize.data_sets import Feeding, Rendering, SetKind
from workers.data.tokenize.tokenizers import load_tokenizer
from workers.errors import ConfigError, TokenizerMismatchError
from workers.model_folders.shape import read_shape
from workers.pocket.source import COLUMNS, PocketSource


def make_source(config: Config, checkpoints: dict[str, str]) -> DataSource:
    """Build the data source of the run."""
    if config.data.source is DataSourceKind.pocket:
        pocket = config.data.pocket
        keep = config.data.keep_columns
        if unknown := sorted({*keep} - {*COLUMNS}):
            raise ConfigError(
                f"the pocket world's prompts have no column {unknown[0]!r}",
                where="data.keep_columns",
                fix=f"choose of {', '.join(COLUMNS)}",
            )
        return PocketSource(
            pocket.seed, pocket.label_noise, pocket.tie_width, keep, arithmetic=pocket.arithmetic,
            lookup=pocket.lookup,
        )  # fmt: skip
    return FileSource(all_sets(config.data), _rendering(config, checkpoints), _feeding(config))


def _rendering(config: Config, checkpoints: dict[str, str]) -> Rendering:
    data = config.data
    models = _language_models(checkpoints)
    return from_sections(
        Rendering,
        data,
        data.files,
        checkpoint=_tokenizer_folder(models),
        embeddings=min(read_shape(Path(folder)).vocabulary for folder in models.values()),
        prefix_characters=data.dedup_prefix_characters,
        find_pii=data.pii is PersonalData.drop,
    )


def _feeding(config: Config) -> Feeding:
    data = config.data
    return from_sections(
        Feeding,
        data,
        config.run,
        seed=config.seed,
        drop_pii=data.pii is PersonalData.drop,
        length_grouped=data.order is RowOrder.length_grouped,
        batch_rows={SetKind.demonstrations: sft_rows(config)[0]},
    )


def _language_models(checkpoints: dict[str, str]) -> dict[str, str]:
    # A reward model may have another tokenizer (reward.bridge=text).
    scoring = ("reward_model", "gold")
    return {name: path for name, path in checkpoints.items() if name not in scoring}


def _tokenizer_folder(models: dict[str, str]) -> str:
    """Folder of the given language model whose tokenizer tokenizes the files.

    Raises:
        TokenizerMismatchError: an id or the end token differs in another given model's tokenizer.
    """
    first, *others = models
    reader = load_tokenizer(models[first])
    words = {number: word for word, number in reader.get_vocab().items()}
    for name in others:
        tokenizer = load_tokenizer(models[name])  # may have additional tokens
        same = all(words.get(n, word) == word for word, n in tokenizer.get_vocab().items())
        if not same or tokenizer.eos_token_id != reader.eos_token_id:
            raise TokenizerMismatchError(
                f"the checkpoints {first} and {name} do not share a tokenizer",
                where=f"{models[first]} and {models[name]}",
                fix="compare models that were tuned from the same base model",
            )
    return models[first]


def left_out(source: DataSource) -> list[str]:
    """What a file source read, kept, cut and dropped: one sentence per data set and reason."""
    notes: list[str] = []
    if isinstance(source, FileSource):
        notes += source.notes
    if isinstance(source, FileSource) and source.date:
        notes.append(f"the chat template writes the date: {source.date} (data.date)")
    for each in accounts(source):
        notes.append(
            f"{each.name}: {each.read:,} rows, {each.train:,} to train on, {each.heldout:,} held "
            f"out, {each.tokens:,} tokens"
        )
        notes += [
            f"left out {n:,} row{'s' if n != 1 else ''} of {each.name}: {with_key(why)}"
            for why, n in each.dropped.items()
        ]
        if each.unread:
            notes.append(f"{each.name}: columns that nothing reads: {_some(each.unread)}")
        if each.labels:
            notes.append(f"{each.name}: labels in {each.labels}")
        if each.cut:
            notes.append(
                f"cut {each.cut:,} completions of {each.name} at data.files.max_completion_tokens"
            )
        if each.train_pairs or each.heldout_pairs:
            notes.append(
                f"{each.name}: {each.train_pairs:,} pairs to train on, {each.heldout_pairs:,} held "
                f"out, {each.tied_pairs:,} tied"
            )
    return notes


def accounts(source: DataSource) -> tuple[SetAccount, ...]:
    """Counts of the rows of each data set; () in the pocket world."""
    return tuple(source.accounts) if isinstance(source, FileSource) else ()


def _some(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
