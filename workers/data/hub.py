"""Data-set folders, and data sets of the Hugging Face hub, through the `datasets` library.

Loading scripts never run: the library refuses them, and nothing here asks it to trust any code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from workers.data.jsonl import Line
from workers.data.lines import Meter
from workers.errors import DataError

_SAVED = ("state.json", "dataset_dict.json")  # what save_to_disk leaves


def is_saved(folder: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return any((folder / name).is_file() for name in _SAVED)


def scan_saved(path: str, split: str, meter: Meter | None = None) -> Iterator[Line]:
    """Yield the rows of a folder that `save_to_disk` wrote.

    Raises:
        DataError: If it cannot be read, or has several splits and not this one.
    """
    import datasets

    with _refusals(path, split):
        found = datasets.load_from_disk(path)
    if isinstance(found, datasets.DatasetDict):
        found = _chosen({str(name): part for name, part in found.items()}, path, split)
    if meter is not None:
        meter.total, meter.unit = len(found), "rows"
    yield from _rows(found, path, path, split, meter)


def split_files(path: str, split: str, subset: str) -> list[str]:
    """The files that hold a split of a folder of data files.

    Files are told apart as on the hub: by "train", "test" and the like in their names or folders,
    or by the `configs` of a README.md.

    Raises:
        DataError: If there are no data files, or none for this split or subset.
    """
    import datasets

    with _refusals(path, split):
        builder = datasets.load_dataset_builder(path, name=subset or None)
        files = {str(name): list(part) for name, part in (builder.config.data_files or {}).items()}
    return [str(file) for file in _chosen(files, path, split)]


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
            mend=f"set data.split to one of: {', '.join(parts) or 'none found'}",
        )
    return parts[split]


@contextmanager
def _refusals(path: str, split: str) -> Iterator[None]:
    """Turn what `datasets` raises on data that it cannot read into a `DataError`."""
    import pyarrow as pa
    from datasets.exceptions import DatasetsError

    try:
        yield
    except ConnectionError as error:
        raise DataError(
            f"no such file or folder, and the hub is out of reach: {error}",
            where=path,
            mend="correct the path; or go online; or save the data set where it can be reached "
            "(datasets.load_dataset(...).save_to_disk(FOLDER)) and name the folder",
        ) from error
    except (
        *(DatasetsError, pa.ArrowException, OSError, ValueError, LookupError, RuntimeError),
        OverflowError,  # a date of no calendar
    ) as error:
        raise DataError(
            f"cannot read the data set: {error}",
            where=f"{path}, split {split!r}",
            mend="correct the name, data.split or data.subset; data sets that need a loading "
            "script are not supported: convert them to Parquet",
        ) from error
