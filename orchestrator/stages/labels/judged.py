"""Questions to a judging model about the answers of tasks, and the verdicts that follow."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.config.rounds.ai_labels import (
    AILabelConfig,
    AskedPairs,
    ChosenPrinciple,
    LabelKind,
)
from orchestrator.results.label_figures import AILabelFigures
from orchestrator.stages.labels.constitution_files import principles_of
from orchestrator.stages.labels.labeler import Verdict, Verdicts, ranks_of
from orchestrator.stages.labels.pairwise import (
    Pair,
    asked_pairs,
    copeland_scores,
    decided,
    has_cycle,
    matrix,
    of_both_orders,
)
from workers.data.rows.asked import plain_text
from workers.judging.questions import FORM, comparison, joined
from workers.scorers.rubric import order_bias

if TYPE_CHECKING:
    from orchestrator.session.session import Session
    from orchestrator.stages.labels.tasks import Task


@dataclass(frozen=True, slots=True)
class AskedPair:
    """One pair of a task's answers, as the two questions of its orders."""

    task: int  # place in the list of tasks
    pair: Pair
    forward: str  # the pair's first answer is A
    swapped: str


# The outcome of a question for the answer that is shown first, 0 to 1, or why there is none.
Answered = float | str


def asked(
    session: Session, stage: str, tasks: Sequence[Task], settings: AILabelConfig, ending: str
) -> list[AskedPair]:
    """The questions about all tasks.

    Args:
        session: The run; its seed draws the principles.
        stage: Names the seeds.
        tasks: What is labeled.
        settings: Pairs, principles and form.
        ending: How the model is to answer; a form of the user's says that itself.
    """
    principles = principles_of(settings.principles, ("preference",), "label.ai.principles")
    form = settings.form or FORM + ending

    def drawn(task: Task) -> Iterator[str]:
        rng = random.Random(session.seed(stage, "principles", task.prompt.id))
        while True:
            chosen = [rng.choice(principles)]
            whole = settings.principle is ChosenPrinciple.all
            yield joined(principles if whole else chosen, "preference")

    found: list[AskedPair] = []
    for number, task in enumerate(tasks):
        prompt = plain_text(task.prompt.context)
        pairs = asked_pairs(len(task.texts), settings.pairs)
        for pair, principle in zip(pairs, drawn(task), strict=False):
            first, second = (task.texts[i] for i in pair)
            found.append(
                AskedPair(
                    number, pair,
                    comparison(form, principle, prompt, first, second),
                    comparison(form, principle, prompt, second, first),
                )
            )  # fmt: skip
    return found


def verdicts_of(
    tasks: Sequence[Task],
    pairs: Sequence[AskedPair],
    answers: Mapping[str, Answered],
    settings: AILabelConfig,
    annotator: str,
) -> Verdicts:
    """Verdicts on tasks whose every question has an answer; the others fail by the first reason.

    Args:
        tasks: What was labeled.
        pairs: The questions.
        answers: Question -> its answer.
        settings: What becomes of the answers.
        annotator: The name of the model.
    """
    of_task: list[dict[Pair, float]] = [{} for _ in tasks]
    failed: dict[int, str] = {}
    both: list[tuple[int, float, float]] = []
    for each in pairs:
        forward, swapped = answers[each.forward], answers[each.swapped]
        if isinstance(forward, str) or isinstance(swapped, str):
            reason = forward if isinstance(forward, str) else str(swapped)
            failed.setdefault(each.task, f"labeler: {reason}")
            continue
        of_task[each.task][each.pair] = of_both_orders(forward, swapped)
        both.append((each.task, forward, swapped))
    given = [
        _verdict(n, len(task.texts), of_task[n], settings, annotator)
        for n, task in enumerate(tasks)
        if n not in failed
    ]
    cycles = sum(has_cycle(len(tasks[v.task].texts), of_task[v.task]) for v in given)
    judged = [(n, forward, swapped) for n, forward, swapped in both if n not in failed]
    bias = order_bias([(a, b) for _, a, b in judged], [n for n, _, _ in judged])
    figures = AILabelFigures(
        questions=len(answers),
        unanswered=sum(isinstance(each, str) for each in answers.values()),
        cycles=cycles,
        bias_pairs=len(judged),
        bias=bias.share if bias else None,
        bias_low=bias.low if bias else None,
        bias_high=bias.high if bias else None,
    )
    return Verdicts(given, failed, figures)


def _verdict(
    task: int,
    count: int,
    probabilities: Mapping[Pair, float],
    settings: AILabelConfig,
    annotator: str,
) -> Verdict:
    ranks = ranks_of(copeland_scores(count, probabilities))
    soft = None
    if settings.labels is LabelKind.soft:
        soft = matrix(count, probabilities)
    elif settings.pairs is AskedPairs.adjacent:  # ranks would order pairs that nobody compared
        soft = matrix(count, decided(probabilities))
    return Verdict(task, ranks, annotator, probabilities=soft)
