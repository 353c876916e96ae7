"""Formats of data files, by their names."""

from __future__ import annotations

from pathlib import Path

FORMATS = ("auto", "jsonl", "json", "parquet", "csv", "text", "datasets")

_SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
}
# Files of one family may make up a data set together.
_FAMILIES = {"jsonl": "JSON", "parquet": "Parquet", "csv": "CSV", "tsv": "CSV", "text": "text"}


def format_by_suffix(path: str) -> str:
    """The format that the name of a file tells; "" where it tells none, as ".json" does not."""
    return _SUFFIXES.get(_suffix(path), "")


def family_by_suffix(path: str) -> str:
    """JSON, Parquet, CSV or text; "" for a file of no data."""
    return "JSON" if _suffix(path) == ".json" else _FAMILIES.get(format_by_suffix(path), "")


def _suffix(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix
