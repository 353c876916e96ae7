"""Rows of a data set in any usual format."""

from __future__ import annotations

from collections.abc import Iterator

from workers.data.jsonl import Line

FORMATS = ("auto", "jsonl", "json", "parquet", "csv", "text", "datasets")


def read_rows(
    path: str,
    *,
    format: str = "auto",  # noqa: A002
    split: str = "train",
    subset: str = "",
) -> Iterator[Line]:
    """Yield rows in order, a few at a time in memory; `where` names the file and line or row."""
    ...
