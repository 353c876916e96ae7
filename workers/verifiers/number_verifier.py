"""The response's number is the answer: the one after `####` or in a box, or else the last one."""

from __future__ import annotations

import re
from typing import Any

from workers.verifiers.patterns import cutter
from workers.verifiers.verifier import Check, Options, UnverifiableError, Verifier, any_of
from workers.verifiers.written_numbers import Written, numbers_in

_MARK = "####"  # before the answer, as in GSM8K
_BOX = re.compile(r"\\boxed\s*\{((?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*)\}")


def answer_of(text: str) -> Written | None:
    r"""The number that a text answers with; None if it has none.

    After the last `####` the first number counts, in the last `\boxed{}` its last one, whichever
    comes last in the text; without either, the last number of the text.
    """
    mark = text.rfind(_MARK)
    box = next(reversed(list(_BOX.finditer(text))), None)
    if box is not None and box.start() > mark:
        found = numbers_in(box[1])
        return found[-1] if found else None
    if mark >= 0:
        found = numbers_in(text[mark + len(_MARK) :].lstrip(":= ").partition("\n")[0])
        return found[0] if found else None
    found = numbers_in(text)
    return found[-1] if found else None


def _reference(answer: Any) -> Written:
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise UnverifiableError("the answer in the prompt's row is no number")
    found = answer_of(answer if isinstance(answer, str) else repr(answer))
    if found is None:
        raise UnverifiableError("the answer in the prompt's row is no number")
    return found


def _make(options: Options) -> Check:
    cut = cutter(options.pattern)

    def check(response: str, reference: Any) -> bool:
        answers = [_reference(each) for each in any_of(reference)]
        text = cut(response)
        given = answer_of(text) if text is not None else None
        return given is not None and any(given.equals(a, options.tolerance) for a in answers)

    return check


VERIFIER = Verifier(_make, frozenset({"pattern", "tolerance"}))
