"""A model in the run's own engines, asked about pairs of answers in both orders.

The engine may draw only the tokens with which the answers A and B begin, so the probability of the
token that it draws is P(A) / (P(A) + P(B)), or the rest of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checkpoints import model_folder
from orchestrator.config.schema import Config
from orchestrator.stages.asked_engines import Said, ask_engines, letters_of, model_of
from orchestrator.stages.labels.constitution_files import principles_of
from orchestrator.stages.labels.judged import Answered, asked, verdicts_of
from orchestrator.stages.labels.labeler import Labeler, Verdicts
from workers.errors import ConfigError
from workers.judging.questions import FORM, IN_A_LETTER, LETTERS
from workers.records.generation import Sampling

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task

_KEY = "label.ai.checkpoint"


def _rank(session: Session, stage: str, tasks: Sequence[Task]) -> Verdicts:
    settings = session.config.label.ai
    model = model_of(settings.checkpoint, settings.question_tokens, 1, _KEY)
    pairs = asked(session, stage, tasks, settings, IN_A_LETTER)
    questions = list(dict.fromkeys(q for each in pairs for q in (each.forward, each.swapped)))
    letters = letters_of(model, questions[0], LETTERS, _KEY)
    sampling = Sampling(1.0, 1, letters)
    session.live.note(f"{stage}: {settings.checkpoint} answers {len(questions):,} questions")
    tokens = [model.tokens(question) for question in questions]
    said = ask_engines(session, model, tokens, sampling, stage, "judge")
    session.fleet.rollout.sleep().result()
    answers: dict[str, Answered] = {
        question: each if isinstance(each, str) else _first_wins(each, letters)
        for question, each in zip(questions, said, strict=True)
    }
    return verdicts_of(tasks, pairs, answers, settings, Path(settings.checkpoint).name)


def _first_wins(said: Said, letters: tuple[int, ...]) -> float:
    """P(A) / (P(A) + P(B)), from the one token that was drawn of the two."""
    drawn = math.exp(said.logprobs[0])
    return min(max(drawn if said.tokens[0] == letters[0] else 1.0 - drawn, 0.0), 1.0)


def _check(config: Config, where: str) -> None:
    settings, key = config.label.ai, f"{where}.ai"
    principles_of(settings.principles, ("preference",), f"{key}.principles")
    if not settings.checkpoint:
        raise ConfigError("no judging model is given", where=f"{key}.checkpoint",
                          fix="name the folder of a model")  # fmt: skip
    model_folder.require(settings.checkpoint, "judge", f"{key}.checkpoint")
    model = model_of(settings.checkpoint, settings.question_tokens, 1, f"{key}.checkpoint")
    letters_of(model, settings.form or FORM + IN_A_LETTER, LETTERS, f"{key}.checkpoint")


LABELER = Labeler(_rank, _check)
