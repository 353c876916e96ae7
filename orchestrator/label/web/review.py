"""The pages of reviewers: tasks on which labelers disagree, final verdicts, and figures."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from orchestrator.label.figures import disagreement, figures_of
from orchestrator.label.records import FLAGS, Judgment, Labeler, Task, Verdict
from orchestrator.label.web.access import form_of, reviewer
from orchestrator.label.web.app import site_of
from orchestrator.label.web.forms import LETTERS, Problem, filled, values_of
from orchestrator.label.web.pages import form_page, page, shown_task

_LISTED = 200  # tasks


def routes() -> list[Route]:
    """The routes of reviewers."""
    return [
        Route("/review", _list),
        Route("/review/{number:int}", _look),
        Route("/review/{number:int}", _decide, methods=["POST"]),
        Route("/figures", _figures),
        Route("/figures.json", _figures_json),
    ]


async def _list(request: Request) -> Response:
    """Tasks with several judgments, those with most disagreement first, and flagged tasks."""
    store = site_of(request).store
    found = reviewer(request, store)
    judgments: dict[int, list[Judgment]] = defaultdict(list)
    for judgment in store.judgments():
        judgments[judgment.task].append(judgment)
    comments: dict[int, list[str]] = defaultdict(list)
    for each in store.passes():
        if each.flagged:
            comments[each.task].append(each.comment)
    final = store.adjudications()
    rows = sorted(
        (
            (disagreement(judgments[number]), number)
            for number in judgments.keys() | comments.keys()
            if number in comments or number in final or len(judgments[number]) > 1
        ),
        key=lambda row: (row[1] in final, -row[0], row[1]),
    )
    listed = [
        (number, share, len(judgments[number]), comments[number], number in final)
        for share, number in rows[:_LISTED]
    ]
    return page(request, "review.html", found, rows=listed, more=len(rows) - len(listed))


async def _look(request: Request) -> Response:
    site = site_of(request)
    found = reviewer(request, site.store)
    task = _task_of(request)
    decided = site.store.adjudications().get(task.id)
    values = values_of(decided.verdict, task, site.order(task, found)) if decided else {}
    return _page(request, found, task, values)


def _page(
    request: Request,
    person: Labeler,
    task: Task,
    values: Mapping[str, str],
    problems: Sequence[Problem] = (),
) -> Response:
    site = site_of(request)
    order = site.order(task, person)
    columns = [_said(j.verdict, order) for j in _unnamed(request, task)]
    return form_page(
        request, "decide.html", person, shown_task(task, order), values, problems,
        columns=columns, decided=task.id in site.store.adjudications(),
    )  # fmt: skip


def _unnamed(request: Request, task: Task) -> list[Judgment]:
    """The judgments of a task in an order that does not tell who gave which."""
    found = site_of(request).store.judgments_of(task.id)
    random.Random(f"unnamed {site_of(request).seed} {task.id}").shuffle(found)
    return found


def _said(verdict: Verdict, order: Sequence[int]) -> dict[str, object]:
    """What one labeler said, in the order of the page."""
    return {
        "answers": [
            {
                "letter": letter,
                "rank": verdict.ranks[index],
                "likert": verdict.ratings[index].likert,
                "flags": [FLAGS[n] for n, value in verdict.ratings[index].flags.items() if value],
            }
            for letter, index in zip(LETTERS, order, strict=False)
        ],
        "strength": verdict.strength,
        "comment": verdict.comment,
        "conflict": verdict.likert_conflict,
    }


async def _decide(request: Request) -> Response:
    """Keep a final verdict: one of the judgments as it is, or another one."""
    site = site_of(request)
    found = reviewer(request, site.store)
    form = await form_of(request)
    task = _task_of(request)
    confirmed = form.get("confirm", "")
    if confirmed:
        judgments = _unnamed(request, task)
        if confirmed not in {str(i) for i in range(len(judgments))}:
            raise HTTPException(400, "There is no such judgment.")
        verdict = judgments[int(confirmed)].verdict
    else:
        read = filled(form, task, site.order(task, found))
        if read.verdict is None:
            return _page(request, found, task, form, read.problems)
        verdict = read.verdict
    await site.writer.write(lambda store: store.adjudicate(task.id, found.id, verdict))
    return RedirectResponse("/review", 303)


def _task_of(request: Request) -> Task:
    task = site_of(request).store.task(request.path_params["number"])
    if task is None:
        raise HTTPException(404, "There is no such task.")
    return task


async def _figures(request: Request) -> Response:
    store = site_of(request).store
    found = reviewer(request, store)
    return page(request, "figures.html", found, figures=figures_of(store))


async def _figures_json(request: Request) -> Response:
    store = site_of(request).store
    reviewer(request, store)
    return JSONResponse(asdict(figures_of(store)))
