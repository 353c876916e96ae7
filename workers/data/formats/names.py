"""Formats of data files, by the suffixes of their names."""

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
    """The format by the suffix of a file; "" if the suffix does not decide, as for ".json"."""
    return _SUFFIXES.get(_suffix(path), "")


def family_by_suffix(path: str) -> str:
    """JSON, Parquet, CSV or text; "" for a file that is not a data file."""
    return "JSON" if _suffix(path) == ".json" else _FAMILIES.get(format_by_suffix(path), "")


def _suffix(path: str) -> str:
    return Path(path.lower().removesuffix(".gz")).suffix
