"""The response is the answer, apart from white space and the way that Unicode composes letters."""

from __future__ import annotations

import unicodedata
from typing import Any

from workers.verifiers.patterns import cutter
from workers.verifiers.verifier import Check, Options, UnverifiableError, Verifier, any_of


def normal(text: str) -> str:
    """A text with single spaces, without outer ones, in Unicode's composed form."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _make(options: Options) -> Check:
    cut = cutter(options.pattern)

    def check(response: str, reference: Any) -> bool:
        answers = any_of(reference)
        if any(isinstance(each, list | dict) for each in answers):
            raise UnverifiableError("the answer in the prompt's row is neither text nor a number")
        answer = cut(response)
        return answer is not None and normal(answer) in {normal(str(each)) for each in answers}

    return check


VERIFIER = Verifier(_make, frozenset({"pattern"}))
