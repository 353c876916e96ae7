"""A chat model behind a URL, asked about pairs of answers in both orders."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.config.chat_model import check_chat_model
from orchestrator.config.rounds.ai_labels import AILabelConfig, LabelKind
from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import chat_spec
from orchestrator.stages.labels.constitution_files import principles_of
from orchestrator.stages.labels.judged import Answered, AskedPair, asked, verdicts_of
from orchestrator.stages.labels.labeler import Labeler, Verdicts
from workers.errors import ConfigError
from workers.judging.interview import Asked, EndpointSpec, interview
from workers.judging.questions import (
    IN_A_LETTER,
    IN_WORDS,
    TOP_LOGPROBS,
    Probabilities,
    first_wins,
    read_probability,
    read_words,
)
from workers.scorers.http_address import check_address
from workers.scorers.http_answer import Answer
from workers.scorers.judge_cache import VerdictCache, question_key

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task

_BATCH = 64  # tasks per call: what one deadline is for
_FORMAT = "label 1"  # version of what is read; changing it invalidates cached answers


def _rank(session: Session, stage: str, tasks: Sequence[Task]) -> Verdicts:
    settings = session.config.label.ai
    soft = settings.labels is LabelKind.soft
    pairs = asked(session, stage, tasks, settings, IN_A_LETTER if soft else IN_WORDS)
    spec = _spec(settings)
    folder = Path(settings.cache) if settings.cache else session.folder.answers_of(stage)
    cache = VerdictCache(folder, *([Probabilities()] if soft else []), where="label.ai.cache")
    answers: dict[str, Answered] = {}
    try:
        for first in range(0, len(tasks), _BATCH):
            session.stop_if_asked()
            own = [each for each in pairs if first <= each.task < first + _BATCH]
            answers |= _answers(spec, cache, own, soft=soft)
            session.live.note(f"{stage}: {min(first + _BATCH, len(tasks)):,} prompts labeled")
    finally:
        cache.close()
    return verdicts_of(tasks, pairs, answers, settings, settings.endpoint.model)


def _spec(settings: AILabelConfig) -> EndpointSpec:
    spec = chat_spec(settings.endpoint, "label.ai.endpoint", "labeler")
    if settings.labels is LabelKind.hard:
        return spec
    more = {"max_tokens": 1, "logprobs": True, "top_logprobs": TOP_LOGPROBS}
    return replace(spec, request=json.dumps({**json.loads(spec.request), **more}))


def _answers(
    spec: EndpointSpec, cache: VerdictCache, pairs: Sequence[AskedPair], *, soft: bool
) -> Mapping[str, Answered]:
    """Question -> the outcome for the answer shown first, from the cache or the endpoint."""

    def key(question: str) -> str:
        return question_key(_FORMAT, spec.url.rstrip("/"), spec.model, spec.request, question)

    uses: dict[str, list[int]] = defaultdict(list)
    keys: dict[str, str] = {}
    for each in pairs:
        for question in (each.forward, each.swapped):
            keys[question] = key(question)
            uses[keys[question]].append(each.task)
    unknown = {k: question for question, k in keys.items() if cache.get(k) is None}
    items = len({each.task for each in pairs})
    read = _read_soft if soft else read_words
    why = interview(spec, cache, Asked(unknown, uses, items, read, "prompts", "answer"))
    known = {question: cache.get(k) for question, k in keys.items()}
    return {
        question: why.get(keys[question], "no answer") if found is None else first_wins(found)
        for question, found in known.items()
    }


def _read_soft(answer: Answer) -> str:
    found = read_probability(answer)
    if found is None:
        raise ConfigError(
            "the labeler's endpoint returns no probabilities of its first token (top_logprobs), "
            "from which soft labels are made",
            where="label.ai.labels=soft",
            fix="set label.ai.labels=hard, or choose an endpoint and model that return them",
        )
    return found


def _check(config: Config, where: str) -> None:
    settings, key = config.label.ai, f"{where}.ai"
    principles_of(settings.principles, ("preference",), f"{key}.principles")
    check_chat_model(settings.endpoint, f"{key}.endpoint", "labeler")
    check_address(settings.endpoint.url, "the labeler's", f"{key}.endpoint.url", "https://HOST/v1")
    chat_spec(settings.endpoint, f"{key}.endpoint", "labeler")  # the key is in the environment


LABELER = Labeler(_rank, _check)
