"""Read saved data-set folders and data sets on the Hugging Face hub by the `datasets` library.

Loading scripts never run: the library refuses them, and nothing here sets `trust_remote_code`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.data.formats.folders import check_folder
from workers.data.formats.line import Line
from workers.data.formats.lines import Meter
from workers.errors import DataError, RehearsalError
from workers.process.caught_errors import Caught
from workers.process.regular_files import read_bounded

_SAVED = ("state.json", "dataset_dict.json")  # written by save_to_disk
_STATE_BYTES = 2**20  # limit for the files that list the parts
_BATCH_ROWS = 256  # in memory at a time


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in _SAVED)


def scan_saved(path: str, split: str, meter: Meter | None = None) -> Iterator[Line]:
    """Yield the rows of a folder that `save_to_disk` wrote.

    Raises:
        DataError: If it cannot be read, or has several splits but not this one.
    """
    import datasets

    with _refusals(path, split):
        check_folder(path)
        _check_saved(Path(path))
        found = datasets.load_from_disk(path)
    if isinstance(found, datasets.DatasetDict):
        found = _chosen({str(name): part for name, part in found.items()}, path, split)
    if meter is not None:
        meter.total, meter.unit = len(found), "rows"
    # as Arrow tables: reading rows would load the images and audio files that they point to
    tables: Any = found.with_format("arrow").iter(_BATCH_ROWS)
    rows = (row for table in tables for row in table.to_pylist())
    yield from _rows(rows, path, path, split, meter)


def _check_saved(folder: Path) -> None:
    """Refuse a saved data set that lists a file outside its folder.

    Raises:
        DataError: There is such a file.
    """
    for place in [folder, *(each for each in folder.iterdir() if each.is_dir())]:
        for name, key in (("dataset_dict.json", "splits"), ("state.json", "_data_files")):
            if not (place / name).is_file():
                continue
            listed = json.loads(read_bounded(place / name, _STATE_BYTES)).get(key, [])
            names = [each["filename"] if isinstance(each, dict) else each for each in listed]
            for each in names:
                if not isinstance(each, str) or Path(each).name != each or not each.strip("."):
                    raise DataError(
                        f"{name} names a file outside the folder: {each!r}",
                        where=str(place),
                        fix="write the data set again by save_to_disk",
                    )


def scan_hub(name: str, split: str, subset: str, meter: Meter | None = None) -> Iterator[Line]:
    """Yield the rows of a data set on the hub as they arrive.

    Raises:
        DataError: If the hub cannot be reached, or has no such data set, subset or split.
    """
    import datasets

    with _refusals(name, split):
        found = datasets.load_dataset(name, name=subset or None, split=split, streaming=True)
    if meter is not None:
        meter.unit = "rows"
        # images and audio are not decoded: their paths may point anywhere
        found = found.decode(False) if found.features else found
    yield from _rows(found, name, f"{name} ({split})", split, meter)


def _rows(found: Any, path: str, label: str, split: str, meter: Meter | None) -> Iterator[Line]:
    rows = iter(found)
    number = 0
    while True:
        with _refusals(path, split):
            row = next(rows, None)
        if row is None:
            return
        number += 1
        if meter is not None:
            meter.done = number
        yield Line(row, f"{label} row {number}")


def _chosen(parts: Mapping[str, Any], path: str, split: str) -> Any:
    if split not in parts:
        raise DataError(
            f"no split {split!r}",
            where=path,
            fix=f"set data.split to one of: {', '.join(parts) or 'none found'}",
        )
    return parts[split]


@contextmanager
def _refusals(path: str, split: str) -> Iterator[None]:
    """Turn what `datasets` raises on data that it cannot read into a `DataError`."""
    caught = Caught(Exception)  # its readers and parsers raise errors of any type
    with caught:
        yield
    error = caught.error
    if error is None:
        return
    if isinstance(error, RehearsalError):
        raise error
    if isinstance(error, ConnectionError):
        raise DataError(
            f"no such file or folder, and the hub is out of reach: {error}",
            where=path,
            fix="correct the path; or go online; or save the data set where it can be reached "
            "(datasets.load_dataset(...).save_to_disk(FOLDER)) and name the folder",
        ) from error
    raise DataError(
        f"cannot read the data set: {str(error) or type(error).__name__}",
        where=f"{path}, split {split!r}",
        fix="correct the name, data.split or data.subset; data sets that need a loading "
        "script are not supported: convert them to Parquet",
    ) from error
