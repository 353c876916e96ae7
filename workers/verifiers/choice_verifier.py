"""The response chooses the right one of several options, which are letters A to J."""

from __future__ import annotations

import re
from typing import Any

from workers.verifiers.patterns import cutter
from workers.verifiers.verifier import Check, Options, UnverifiableError, Verifier, any_of

_LETTER = r"([A-Ja-j])"
# From the most explicit form to the least: of the first that is there, the last match counts.
_FORMS = tuple(
    re.compile(form)
    for form in (
        rf"\\boxed\{{\s*(?:\\text\s*\{{)?\s*\(?{_LETTER}\)?\s*\}}",
        rf"(?i:answer|choice|option)(?i:\s+is|\s*:|\s*=)?\s*:?\s*\**\(?{_LETTER}\)?\**(?![\w'])",
        r"\(([A-J])\)",
        r"^\W*([A-J])\W*$",
        r"^\s*\**([A-J])\**\s*[.):]",
        r"(?<![\w'])([A-J])(?=[.)\s]*$)",
    )
)


def chosen(response: str) -> str:
    """The letter that a response chooses; "" if it chooses none."""
    for form in _FORMS:
        found = form.findall(response)
        if found:
            return str(found[-1]).upper()
    return ""


def _letter(answer: Any) -> str:
    text = str(answer).strip().strip("().").upper() if isinstance(answer, str) else ""
    if not re.fullmatch("[A-J]", text):
        raise UnverifiableError("the answer in the prompt's row is no letter from A to J")
    return text


def _make(options: Options) -> Check:
    cut = cutter(options.pattern)

    def check(response: str, reference: Any) -> bool:
        letters = {_letter(each) for each in any_of(reference)}
        answer = cut(response)
        return answer is not None and chosen(answer) in letters

    return check


VERIFIER = Verifier(_make, frozenset({"pattern"}))
