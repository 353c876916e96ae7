"""Interpret labels that say which completion of a row is better.

`columns.better` names the column of the labels. The meaning of a word is fixed. The meaning of a
number depends on all labels of the data set, which are therefore read before the first one is used;
ambiguous numbers are refused. A mapping with the keys of `KEYS` gives any label a meaning.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

from workers.data.formats.line import Line, kind_of
from workers.errors import ConfigError, DataError, DataLineError

KEYS = ("column", "first", "second", "tie", "none")
TIE = -1  # no completion is better
NO_LABEL = -2
_UNREAD = -3
_ORDINALS = ("the first", "the second", "the third", "the fourth")
_MOST_LABELS = 10_000  # most distinct labels that are counted

_TIES = {
    *("tie", "ties", "tied", "equal", "same", "draw", "both", "neither", "bothbad", "bothgood"),
    *("tie (bothbad)", "tie (both bad)", "tie (both good)", "tie (bothgood)", "tie_bothbad"),
    *("both bad", "both good", "both_bad", "both_good", "tie_both_bad", "tie_both_good"),
    *("about the same", "no preference"),
}
_FIRST, _SECOND = {"first", "left"}, {"second", "right"}
_NAMED = re.compile(
    r"(?:(?:model|response|answer|assistant|completion|output|candidate|conversation|option"
    r"|summary|text|choice)[ _-]?)?(?:(?P<letter>[a-z])|(?P<number>\d+))"
)
_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:e-?\d+)?")
_SAY = (
    "say what the labels mean: columns.better.column={0} columns.better.first=LABEL "
    "columns.better.second=LABEL (and columns.better.tie, columns.better.none)"
)


def check_better(source: Mapping[object, object], where: str) -> None:
    """Check the mapping form of `columns.better`.

    Raises:
        ConfigError: If a key is unknown or missing, a value is neither a label nor a list of
            labels, or one label is given twice.
    """
    fix = f"keys: {', '.join(KEYS)}; first, second, tie and none are labels or lists of labels"
    for key in source:
        if key not in KEYS:
            raise ConfigError(f"no key {key!r} to say what labels mean", where=where, fix=fix)
    column = source.get("column")
    if not isinstance(column, str) or not column:
        raise ConfigError(f"{column!r} names no column", where=f"{where}.column", fix=fix)
    if ("first" in source) != ("second" in source):
        raise ConfigError("first and second go together", where=where, fix=fix)
    seen: set[str] = set()
    for key in KEYS[1:]:
        for label in _as_list(source.get(key, [])):
            text = _normal(label)
            if text is None or text in seen:
                what = f"{label!r} is no label" if text is None else f"{label!r} is given twice"
                raise ConfigError(what, where=f"{where}.{key}", fix=fix)
            seen.add(text)


class Verdicts:
    """Reads the labels of one data set.

    Args:
        source: `columns.better`: the name of a column, or a checked mapping.
        completions: The columns of the completions, as labels may name them; may be empty.
        where: The data set, for messages.
    """

    def __init__(
        self, source: str | Mapping[str, object], completions: Sequence[str], where: str
    ) -> None:
        given: Mapping[str, object] = {"column": source} if isinstance(source, str) else source
        self._column = str(given["column"])
        self._where = where
        self._numbers: dict[float, int] = {}
        self._labels: Counter[tuple[str, int]] = Counter()  # (label, completions) -> how many
        self._most = 2  # completions of a row
        self._base: int | None = None  # the number of the first completion, if numbers count them
        self._signed = False
        self._said: dict[str, int] = {}
        for key, verdict in zip(KEYS[1:], (0, 1, TIE, NO_LABEL), strict=True):
            self._said |= {str(_normal(label)): verdict for label in _as_list(given.get(key, []))}
        self._explicit = "first" in given
        self._names = _names(completions)

    def note(self, label: object, count: int) -> None:
        """Count a label of a row of `count` completions, in the first pass."""
        for each in label if isinstance(label, list) else [label]:
            text = _normal(each)
            if len(self._labels) < _MOST_LABELS or (text or "", count) in self._labels:
                self._labels[text or "", count] += 1
            if text is not None and (number := self._number(text)) is not None:
                self._numbers[number] = self._numbers.get(number, 0) + 1
                self._most = max(self._most, count)

    def settle(self) -> str:
        """Decide what numbers mean, after the first pass over all labels.

        Returns:
            How labels are interpreted, and how many name which completion; "" where there are none.

        Raises:
            DataError: If numbers are ambiguous.
        """
        how = self._settle_numbers()
        if not self._labels:
            return ""
        counts: Counter[int] = Counter()
        for (text, count), rows in self._labels.items():
            counts[self._peek(text, count)] += rows
        places = max(2, min(self._most, len(_ORDINALS)))
        named = [f"{counts[i]:,} for {_ORDINALS[i]}" for i in range(places)]
        rest = sum(n for i, n in counts.items() if i >= len(named))
        named += [f"{rest:,} for later ones"] if rest else []
        named += [f"{counts[TIE]:,} ties"] if counts[TIE] else []
        named += [f"{counts[NO_LABEL]:,} without a label"] if counts[NO_LABEL] else []
        named += [f"{counts[_UNREAD]:,} not understood"] if counts[_UNREAD] else []
        return f'"{self._column}": {how}{", ".join(named)}'

    def _peek(self, text: str, count: int) -> int:
        try:
            return self.read(Line({}, ""), text, count)
        except DataLineError:
            return _UNREAD

    def _settle_numbers(self) -> str:
        """Decide what numbers mean; returns it as text, "" where there are none."""
        if not self._numbers:
            return ""
        low, high = min(self._numbers), max(self._numbers)
        whole = all(number.is_integer() for number in self._numbers)
        if low < 0 and self._most == 2:
            self._signed = True
            return "below 0 = the first is better, above 0 = the second, 0 = tie: "
        if whole and low == 0 and 1 <= high < self._most:
            self._base = 0
        elif whole and low >= 1 and high == self._most:
            self._base = 1
        else:
            raise self._ambiguous()
        first, second = self._base, self._base + 1
        return (
            f"{first} = the first completion is better, {second} = the second (if they mean "
            "otherwise set better.first and better.second): "
        )

    def read(self, line: Line, label: object, count: int) -> int:
        """The index of the best completion from 0, `TIE`, or `NO_LABEL`.

        Raises:
            DataLineError: If the label is not understood.
        """
        text = _normal(label)
        if text is None:
            if label is None or isinstance(label, str):
                return NO_LABEL
            line.fail(f'"{self._column}" must be a label, not {kind_of(label)}')
        if text in self._said:
            found = self._said[text]
        elif (number := self._number(text)) is not None:
            found = self._by_number(number)
            if found < TIE:  # a number that did not occur in the first pass
                self._unknown(line, text)
        else:
            found = self._by_word(line, text)
        if found >= count:
            line.fail(f'"{self._column}" is {text!r}, which none of {count} completions is')
        return found

    def _number(self, text: str) -> float | None:
        """The number that a label is or ends in, unless the label has an explicit meaning."""
        if self._explicit or text in self._said or text in self._names:
            return None
        if _NUMBER.fullmatch(text):
            return float(text)
        found = _NAMED.fullmatch(text)
        return float(found["number"]) if found and found["number"] else None

    def _by_number(self, number: float) -> int:
        if self._signed:
            return 0 if number < 0 else 1 if number > 0 else TIE
        return int(number) - self._base if self._base is not None else -9

    def _by_word(self, line: Line, text: str) -> int:
        if text in self._names:
            return self._names[text]
        if text in _TIES:
            return TIE
        if self._explicit:
            self._unknown(line, text)
        if text in _FIRST:
            return 0
        if text in _SECOND:
            return 1
        found = _NAMED.fullmatch(text)
        if not found or not found["letter"]:
            self._unknown(line, text)
        return ord(found["letter"]) - ord("a")

    def _unknown(self, line: Line, text: str) -> NoReturn:
        line.fail(
            f'"{self._column}" is {text!r}, which says of no completion that it is better',
            fix=_SAY.format(self._column),
        )

    def _ambiguous(self) -> DataError:
        numbers = ", ".join(f"{number:g}" for number in sorted(self._numbers)[:6])
        more = " ..." if len(self._numbers) > 6 else ""
        return DataError(
            f'the labels in "{self._column}" are {numbers}{more}: what they mean for '
            f"{self._most} completions is not certain (known: 0 and 1, 1 and 2, or strengths with "
            "both signs)",
            where=self._where,
            fix=_SAY.format(self._column),
        )


def _names(completions: Sequence[str]) -> dict[str, int]:
    """The names by which labels may refer to completions: their paths, and unique path suffixes.

    A number is not a name: with "answers.0" and "answers.1", the label 1 may mean either one.
    """
    paths = [path.lower().split(".") for path in completions]
    ends = [{".".join(parts[n:]) for n in range(len(parts))} for parts in paths]
    many = Counter(end for own in ends for end in own)
    return {
        end: i
        for i, own in enumerate(ends)
        for end in own
        if many[end] == 1 and not _NUMBER.fullmatch(end)
    }


def ranks_of(verdict: int, count: int) -> list[int]:
    """Ranks: 1 for the best completion and 2 for all others; for a tie 1 for all."""
    return [1 if verdict in (TIE, i) else 2 for i in range(count)]


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else [value]


def _normal(label: object) -> str | None:
    """A label as lower-case text without outer spaces; None where it is not a label."""
    if isinstance(label, bool):
        return str(label).lower()
    if isinstance(label, str):
        text = label.strip().lower()
        return text.removesuffix(".0") if re.fullmatch(r"-?\d+\.0", text) else text or None
    if isinstance(label, int | float):
        try:
            number = float(label)
        except OverflowError:
            return None
        if number != number or number in (float("inf"), -float("inf")):
            return None
        return str(int(number)) if number.is_integer() else repr(number)
    return None
