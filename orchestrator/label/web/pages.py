"""The pages as HTML: templates, which escape everything, and what they are filled with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from orchestrator.label.records import CONSTRAINT, FLAGS, SCALE, Labeler, Prompt, Task
from orchestrator.label.web.access import COOKIE, proof
from orchestrator.label.web.forms import LETTERS, Problem, is_pair
from orchestrator.pages.environment import environment
from orchestrator.pages.visible import Shown, shown

_ENVIRONMENT = environment("orchestrator.label.web")
_ENVIRONMENT.globals.update(
    flags=FLAGS, constraint=CONSTRAINT, scale=SCALE, shown=shown, letters=LETTERS
)


@dataclass(frozen=True, slots=True)
class ShownAnswer:
    """An answer of a page."""

    letter: str
    text: Shown


@dataclass(frozen=True, slots=True)
class ShownTask:
    """A task as one labeler sees it: nothing in it tells the models."""

    number: int
    turns: tuple[tuple[str, Shown], ...]  # speaker, or "" for a bare prompt
    answers: tuple[ShownAnswer, ...]
    pair: bool


def shown_task(task: Task, order: Sequence[int]) -> ShownTask:
    """A task in the order of one labeler."""
    answers = tuple(
        ShownAnswer(letter, shown(task.answers[index].text))
        for letter, index in zip(LETTERS, order, strict=False)
    )
    return ShownTask(task.id, turns(task.prompt), answers, is_pair(task))


def turns(prompt: Prompt) -> tuple[tuple[str, Shown], ...]:
    """The prompt in turns."""
    if isinstance(prompt, str):
        return (("", shown(prompt)),)
    return tuple((turn["role"], shown(turn["content"])) for turn in prompt)


def page(
    request: Request, template: str, person: Labeler | None, status: int = 200, **filling: Any
) -> HTMLResponse:
    """A page for a person."""
    text = _ENVIRONMENT.get_template(template).render(
        person=person, proof=proof(request.cookies.get(COOKIE, "")), **filling
    )
    return HTMLResponse(text, status)


def form_page(
    request: Request,
    template: str,
    person: Labeler,
    task: ShownTask,
    values: Mapping[str, str],
    problems: Sequence[Problem] = (),
    **filling: Any,
) -> HTMLResponse:
    """A page with the form of a task, filled in, with the problems of what was sent."""
    status = 422 if problems else 200
    return page(
        request, template, person, status, task=task, values=values, problems=problems, **filling
    )
