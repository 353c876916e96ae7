"""From a file of any usual shape to examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from workers.data.examples import Example, Rejected

Kind = Literal["demonstrations", "comparisons", "prompts", "pretraining"]
OnBadLine = Literal["fail", "drop"]


def read_examples(
    path: str,
    kind: Kind,
    *,
    format: str = "auto",  # noqa: A002
    columns: Mapping[str, str | Sequence[str]] | None = None,
    split: str = "train",
    subset: str = "",
    name: str = "",
    on_bad_line: OnBadLine = "fail",
) -> Iterator[Example | Rejected]:
    """Yield the examples of a data set in order; a row that cannot be used is a `Rejected`."""
    ...
