"""The check of the verifier math, as a reward function that runs in a process of its own.

math-verify stops itself by a signal, which only the main thread of a process gets, and sympy may
take minutes; the process is killed after `reward.function_seconds`.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_SECONDS = 5  # for parsing a text, and for comparing two formulas


def score(responses: list[str], rows: list[dict[str, Any]]) -> list[float | None]:
    """1 where a response equals its row's answer, 0 where not, None where that is no formula."""
    library = import_module("math_verify")  # optional
    parse, verify = library.parse, library.verify
    found: list[float | None] = []
    for response, row in zip(responses, rows, strict=True):
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        golds = [gold for each in answers if (gold := _gold(parse, each))]
        if not golds:
            found.append(None)
            continue
        given = parse(response, parsing_timeout=_SECONDS)
        right = any(verify(gold, given, timeout_seconds=_SECONDS) for gold in golds)
        found.append(float(right))
    return found


def _gold(parse: Any, answer: Any) -> Any:
    """The parsed answer; bare formulas are read as if they stood between dollar signs."""
    text = str(answer)
    marked = "$" in text or "\\boxed" in text or "\\(" in text
    return parse(text if marked else f"${text}$", parsing_timeout=_SECONDS)
