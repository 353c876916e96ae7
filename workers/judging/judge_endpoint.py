"""Pairwise verdicts of a chat model at an OpenAI-compatible URL.

Each pair is judged in both orders, because judges favour a position; a preference counts only if
both orders agree on it (L. Zheng et al., "Judging LLM-as-a-judge with MT-Bench and Chatbot Arena",
2023, section 3.4). An answer without a clear verdict is a failure, never a tie.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from workers.judging.interview import Asked, EndpointSpec, interview
from workers.scorers.http_answer import Answer, content_of
from workers.scorers.http_calls import FailedError
from workers.scorers.judge_cache import VerdictCache, question_key

_FORMAT = "1"  # version of the verdicts; changing it invalidates cached ones
_VERDICT = re.compile(r"\[\[([ABC])\]\]")
_PLACE = re.compile(r"\{(prompt|first|second)\}")


@dataclass(frozen=True, slots=True)
class AnswerPair:
    """Two answers to one prompt."""

    prompt: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class Judged:
    """Outcomes of pairs, and counts of the questions."""

    outcomes: tuple[float | None, ...]  # 1 = a is better, 0 = b, .5 = tie, None = failed
    asked: int  # questions that the endpoint answered now
    cached: int  # questions answered from the cache
    failed: int  # pairs without an outcome
    order_dependent: int  # ties because the verdict changed with the order


def judge_pairs(spec: EndpointSpec, cache: VerdictCache, pairs: Sequence[AnswerPair]) -> Judged:
    """Get the verdict on every pair in both orders, from the cache or the endpoint.

    Equal answers are a tie without a question. Every verdict is cached immediately, so a rerun
    after an error sends only the missing questions.

    Raises:
        ConfigError: the endpoint refuses the key, or does not know the model or the address.
        JudgeError: more than `failed_fraction` of the pairs, or 20 questions in a row, got no
            verdict.
        DeadlineError: not all questions were answered within `deadline_seconds`.
    """
    questions: dict[str, str] = {}
    keys: list[tuple[str, str] | None] = []
    for pair in pairs:
        both = (_question(spec, pair.prompt, pair.a, pair.b),
                _question(spec, pair.prompt, pair.b, pair.a))  # fmt: skip
        keys.append((both[0][0], both[1][0]) if pair.a != pair.b else None)
        questions |= dict(both) if pair.a != pair.b else {}
    unknown = {key: text for key, text in questions.items() if cache.get(key) is None}
    if unknown:
        uses: dict[str, list[int]] = {}
        for number, both in enumerate(keys):
            for key in both or ():
                uses.setdefault(key, []).append(number)
        interview(spec, cache, Asked(unknown, uses, len(pairs), _verdict))
    verdicts = [(cache.get(k[0]), cache.get(k[1])) if k else ("C", "C") for k in keys]
    outcomes = tuple(_outcome(*both) for both in verdicts)
    answered = sum(cache.get(key) is not None for key in unknown)
    failed = sum(outcome is None for outcome in outcomes)
    ties = sum(o == 0.5 and v != ("C", "C") for o, v in zip(outcomes, verdicts, strict=True))
    return Judged(outcomes, answered, len(questions) - len(unknown), failed, ties)


def _question(spec: EndpointSpec, prompt: str, first: str, second: str) -> tuple[str, str]:
    """Key and text of a question. Filled in a single pass: texts may contain braces too."""
    texts = {"prompt": prompt, "first": first, "second": second}
    asked = (spec.url.rstrip("/"), spec.model, spec.instruction, spec.request)
    key = question_key(_FORMAT, *asked, prompt, first, second)
    return key, _PLACE.sub(lambda place: texts[place[1]], spec.instruction)


def _outcome(forward: str | None, swapped: str | None) -> float | None:
    if forward is None or swapped is None:
        return None
    return {("A", "B"): 1.0, ("B", "A"): 0.0}.get((forward, swapped), 0.5)


def _verdict(answer: Answer) -> str:
    found = set(_VERDICT.findall(content_of(answer) or ""))
    if len(found) != 1:
        raise FailedError("several verdicts in one answer" if found else "an answer without one")
    return found.pop()
