"""Find the files of a split in a folder, without access to anything outside the folder.

A folder may be from an untrusted source. Its README may name only files of the folder, no link may
lead out of it, and none of its code runs.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, cast

import yaml

from workers.data.formats.kinds import family_by_suffix
from workers.errors import DataError
from workers.process.regular_files import open_regular

_CARDS = ("README.md", ".huggingface.yaml")  # the later one takes precedence
_CARD_BYTES = 2**20
_MOST_ENTRIES = 100_000
_FIX_CARD = "correct the `configs` of the card, or name the data file itself"


def check_folder(folder: str) -> None:
    """Refuse a folder whose links lead out of it.

    Raises:
        DataError: A link of the folder leads out of it or nowhere, or it has too many entries.
    """
    roots = _roots(Path(folder))
    entries = 0
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in (*folders, *files):
            entries += 1
            if entries > _MOST_ENTRIES:
                raise DataError(
                    f"over {_MOST_ENTRIES:,} files and folders within",
                    where=folder,
                    fix="name a folder of data files alone",
                )
            path = Path(place, name)
            if path.is_symlink() and not name.startswith("."):
                _check_inside(path, roots)


def split_files(folder: str, split: str, subset: str) -> list[str]:
    """The files that hold a split of a folder of data files.

    Files are assigned to splits as on the hub: by the `configs` of a README.md, else by "train",
    "test" and similar words in their names or folders. Nothing is downloaded.

    Raises:
        DataError: If there are no data files, or none for this split or subset; if the README names
            a place outside the folder, or a link leads there.
    """
    folder = str(Path(folder).resolve())
    check_folder(folder)
    parts = _card_files(folder, subset) or _default_files(folder)
    if split not in parts:
        raise DataError(
            f"no split {split!r}",
            where=folder,
            fix=f"set data.split to one of: {', '.join(parts) or 'none found'}",
        )
    return parts[split]


def _roots(folder: Path) -> list[Path]:
    """Where links may lead: the folder and, in the cache of the hub client, its blobs."""
    real = folder.resolve()
    shared = real.parent.parent / "blobs"
    return [real, shared] if real.parent.name == "snapshots" else [real]


def _check_inside(path: Path, roots: list[Path]) -> None:
    try:
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:  # a link to nothing, or to itself
        raise DataError(
            f"a link of the data folder leads nowhere: {error}",
            where=str(path),
            fix="delete the link",
        ) from error
    if not any(real.is_relative_to(root) for root in roots):
        raise DataError(
            f"a link of the data folder leads out of it, to {real}",
            where=str(path),
            fix="name the file that is meant as the data set, or copy it into the folder",
        )


def _default_files(folder: str) -> dict[str, list[str]]:
    """The files of each split, by the names of files and folders."""
    from datasets.data_files import get_data_patterns

    escaped = glob.escape(folder)
    try:
        patterns = get_data_patterns(escaped)
    except (FileNotFoundError, ValueError) as error:  # no files, or a forbidden name of a split
        raise _none(folder) from error
    parts = {str(split): _found(folder, patterns[split]) for split in patterns}
    family = _family(folder, [file for files in parts.values() for file in files])
    kept = {
        split: [file for file in files if family_by_suffix(file) == family]
        for split, files in parts.items()
    }
    return {split: files for split, files in kept.items() if files}


def _family(folder: str, files: list[str]) -> str:
    """The one format of the data files; text files next to others are notes and licences."""
    found = {family_by_suffix(file) for file in files} - {""}
    data = sorted(found - {"text"} or found)
    if not data:
        raise _none(folder)
    if len(data) > 1:
        raise DataError(
            f"data files of several formats: {', '.join(data)}",
            where=folder,
            fix="name the file that is meant, or the `configs` of the folder in a README.md",
        )
    return data[0]


def _card_files(folder: str, subset: str) -> dict[str, list[str]]:
    """The files of each split, by the `configs` of the card; {} if there are none."""
    from datasets.data_files import sanitize_patterns

    configs = _configs(folder)
    if not configs:
        if subset:
            raise DataError(
                f"no subset {subset!r}: the folder's card has no `configs`",
                where=folder,
                fix="leave data.subset empty",
            )
        return {}
    config = _chosen_config(configs, folder, subset)
    base = _inner(config.get("data_dir") or "", folder)
    given = config.get("data_files")
    if given is None:
        return _default_files(str(Path(folder, base))) if base else {}
    try:
        patterns = sanitize_patterns(cast("Any", given))
    except (ValueError, TypeError, KeyError) as error:
        raise _bad_card(f"`data_files` of the card cannot be read: {error}", folder) from error
    parts: dict[str, list[str]] = {}
    for split, each_split in patterns.items():
        inner = [_inner(each, folder) for each in each_split]
        parts[split] = _found(str(Path(folder, base)), inner)
        if not parts[split]:
            raise _bad_card(f"no data files match {', '.join(inner)!r} of the card", folder)
    return parts


def _configs(folder: str) -> list[Mapping[str, object]]:
    card: dict[object, object] = {}
    for name in _CARDS:
        card |= _front_matter(Path(folder, name))
    configs = card.get("configs") or []
    if not isinstance(configs, list) or not all(isinstance(each, dict) for each in configs):
        raise _bad_card("`configs` of the card is no list of configurations", folder)
    return configs


def _front_matter(path: Path) -> dict[object, object]:
    """The YAML at the beginning of a card; {} where there is none."""
    if not path.is_file():
        return {}
    with open_regular(path) as file:
        text = file.read(_CARD_BYTES).decode("utf-8-sig", errors="replace")
    text = text.replace("\r\n", "\n")
    if path.suffix == ".md":
        if not text.startswith("---\n"):
            return {}
        text = text[4:].partition("\n---")[0]
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise _bad_card(f"the YAML of the card cannot be read: {error}", str(path)) from error
    return value if isinstance(value, dict) else {}


def _chosen_config(
    configs: list[Mapping[str, object]], folder: str, subset: str
) -> Mapping[str, object]:
    names = [str(each.get("config_name", "default")) for each in configs]
    if subset:
        wanted = [i for i, name in enumerate(names) if name == subset]
    else:
        wanted = [i for i, each in enumerate(configs) if each.get("default") is True]
        wanted = wanted or [i for i, name in enumerate(names) if name == "default"]
        wanted = wanted or ([0] if len(configs) == 1 else [])
    if len(wanted) != 1:
        raise DataError(
            f"no subset {subset!r}" if subset else "several subsets, and none is the default",
            where=folder,
            fix=f"set data.subset to one of: {', '.join(names)}",
        )
    return configs[wanted[0]]


def _inner(pattern: object, folder: str) -> str:
    """A path or pattern of the card, checked not to lead out of the folder."""
    if not isinstance(pattern, str) or "\0" in pattern:
        raise _bad_card(f"{pattern!r} in the card is no path", folder)
    path = PurePosixPath(pattern)
    if path.is_absolute() or ".." in path.parts or ":" in pattern or "~" in path.parts[:1]:
        raise DataError(
            f"the card names a place outside the folder: {pattern!r}", where=folder, fix=_FIX_CARD
        )
    return pattern


def _found(folder: str, patterns: list[str]) -> list[str]:
    from datasets.data_files import resolve_pattern

    files: dict[str, None] = {}
    for pattern in patterns:
        try:
            found = resolve_pattern(pattern, glob.escape(folder))
        except FileNotFoundError:
            continue  # another pattern may find some
        files |= dict.fromkeys(str(file) for file in found if Path(file).is_file())
    return list(files)


def _bad_card(what: str, where: str) -> DataError:
    return DataError(what, where=where, fix=_FIX_CARD)


def _none(folder: str) -> DataError:
    return DataError(
        "the folder holds no data files",
        where=folder,
        fix="add files of rows (JSONL, JSON, Parquet, CSV, TSV, text), or correct the path; data "
        "sets that need a loading script are not supported: convert them to Parquet",
    )
