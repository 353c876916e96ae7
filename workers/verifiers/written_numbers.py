r"""Numbers as people and models write them, read exactly.

Read are signs, digits grouped by commas or thin spaces, decimals, fractions (`3/4`, `1 1/2`, `½`,
`\frac{3}{4}`), powers of numbers, exponents, percent, currency, amounts in parentheses as
accountants write negative ones (`($5)`), and thousand to trillion. Digits that belong to a word
(`H2O`, `x2`, `x^2`) or to a version or date (`1.2.3`, `12/25/2024`) are no numbers.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from fractions import Fraction

_MOST_CHARACTERS = 20_000  # the end of a longer text is read
_MOST_DIGITS = 400  # of one number; longer ones are no answers
_MOST_POWER = 400
_VULGAR = {
    c: f"{f.numerator}/{f.denominator}"
    for c in "½⅓⅔¼¾⅕⅖⅗⅘⅙⅚⅐⅛⅜⅝⅞⅑⅒"
    for f in [Fraction(unicodedata.numeric(c)).limit_denominator(20)]
}
_SCALES = {
    "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
}  # fmt: skip
_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{2,3})*,[0-9]{3}|[0-9]+(?:_[0-9]+)*)"
_PLAIN = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_CURRENCY = r"(?:US)?[$€£¥₹]"
_TIMES = r"(?:x|\*|\u00d7|\u00b7|\\times|\\cdot)"
_NUMBER = re.compile(
    rf"""
    (?<![\w^./])  # not within a word, date or version
    (?P<sign>[-+])?
    (?P<open>\()? (?P<currency>{_CURRENCY}\ ?)? (?P<inner>[-+])?
    (?:
        (?P<whole>[0-9]{{1,9}})?\ ?\\[dt]?frac\{{\ ?(?P<top>-?[0-9]{{1,60}})\ ?\}}
            \{{\ ?(?P<bottom>[0-9]{{1,60}})\ ?\}}
      | (?P<mixed>[0-9]{{1,9}})[ -](?P<over>[0-9]{{1,9}})/(?P<under>[0-9]{{1,9}}) (?![/0-9])
      | (?P<upper>{_PLAIN})\ ?/\ ?(?P<lower>{_PLAIN}) (?!\ ?/) (?![0-9])
      | (?P<plain>{_PLAIN})
        (?:
            [eE](?P<exponent>[-+]?[0-9]{{1,6}}) (?!\w)
          | \ ?{_TIMES}\ ?10\ ?(?:\^|\*\*)\ ?\{{?(?P<power>[-+]?[0-9]{{1,6}})\}}?
          | (?:\^|\*\*)\{{?(?P<raised>[-+]?[0-9]{{1,6}})\}}?
        )?
    )
    (?![0-9]) (?!\.[0-9]) (?!,[0-9]{{3}}) (?!/[0-9])
    (?:\ ?(?P<percent>\\?%|percent\b))?
    (?:\ (?P<scale>(?i:{"|".join(_SCALES)}))\b)?
    (?P<close>\))?
    """,
    re.VERBOSE,
)
_GROUPS = re.compile(r"(?<=[0-9])[\u2009\u202f\u00a0\u2007'\u2019](?=[0-9]{3}(?![0-9]))")
_DASH = re.compile(r"(?<![\w)])[\u2013\u2014](?=[$€£¥₹.]?[0-9])")


@dataclass(frozen=True, slots=True)
class Written:
    """A number in a text."""

    value: Fraction
    percent: bool = False  # the text has a percent sign; `value` is the number before it

    def equals(self, other: Written, tolerance: float = 0.0) -> bool:
        """Whether both are the same number: exactly, or within a relative difference.

        50 % equals 50 and 0.5: sets of answers have it either way. Two percentages are compared
        as they are written.
        """
        if self.percent == other.percent:
            pairs = [(self.value, other.value)]
        else:
            mine = (self.value, self.value / 100) if self.percent else (self.value,)
            theirs = (other.value, other.value / 100) if other.percent else (other.value,)
            pairs = [(a, b) for a in mine for b in theirs]
        most = Fraction(tolerance)
        return any(abs(a - b) <= most * abs(b) for a, b in pairs)


def numbers_in(text: str) -> list[Written]:
    """All numbers of a text, in order; what is written like a number but is none is left out."""
    found = (_value(match) for match in _NUMBER.finditer(_prepared(text[-_MOST_CHARACTERS:])))
    return [each for each in found if each is not None]


def _prepared(text: str) -> str:
    """The text with ASCII digits and signs, and vulgar fractions written out."""
    text = _GROUPS.sub(",", _DASH.sub("-", text))
    parts: list[str] = []
    for character in text:
        if character in _VULGAR:
            before = parts[-1][-1:] if parts else ""
            parts.append(f" {_VULGAR[character]}" if before.isdecimal() else _VULGAR[character])
        elif not character.isascii() and character.isdecimal():
            parts.append(str(unicodedata.decimal(character)))
        else:
            parts.append(character)
    return "".join(parts).translate(_SIGNS)


_SIGNS = str.maketrans(
    {
        "\u2212": "-", "\u2011": "-", "\ufe63": "-", "\uff0d": "-", "\uff0b": "+",
        "\uff0e": ".", "\uff0c": ",", "\uff05": "%", "\u2044": "/", "\u2215": "/",
    }
)  # fmt: skip


def _value(match: re.Match[str]) -> Written | None:
    size = _size(match)
    if size is None:
        return None
    accounted = match["open"] and match["close"] and match["currency"] and not match["inner"]
    signs = [match["sign"], match["inner"], "-" if accounted else None]
    if signs.count("-") % 2:
        size = -size
    if match["scale"]:
        size *= _SCALES[match["scale"].lower()]
    return Written(size, bool(match["percent"]))


def _size(match: re.Match[str]) -> Fraction | None:
    """The number without its sign, percent and scale; None where it is none."""
    try:
        if match["top"]:
            part = Fraction(int(match["top"]), int(match["bottom"]))
            return int(match["whole"]) + part if match["whole"] else part
        if match["mixed"]:
            return int(match["mixed"]) + Fraction(int(match["over"]), int(match["under"]))
        if match["upper"]:
            return _plain(match["upper"]) / _plain(match["lower"])
        number = _plain(match["plain"])
        if match["raised"]:
            power = int(match["raised"])
            fits = abs(power) <= _MOST_POWER and len(match["plain"]) <= 9
            return number**power if fits else None
        ten = match["exponent"] or match["power"]
        if ten is None:
            return number
        return number * Fraction(10) ** int(ten) if abs(int(ten)) <= _MOST_POWER else None
    except (ZeroDivisionError, _TooLongError):
        return None


class _TooLongError(Exception):
    pass


def _plain(text: str) -> Fraction:
    if len(text) > _MOST_DIGITS:
        raise _TooLongError
    return Fraction(text.replace(",", "").replace("_", ""))
