"""The pages of labelers: enter by a link, judge one task after the other, change what was said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from orchestrator.label.queue import Queue, shown_order
from orchestrator.label.records import Labeler, Task
from orchestrator.label.store import Store, seconds_since
from orchestrator.label.web.access import form_of, person, read_form, remember
from orchestrator.label.web.forms import Problem, filled, seconds, values_of
from orchestrator.label.web.pages import form_page, page, shown_task
from orchestrator.label.writer import Writer
from orchestrator.pages.guard import Guard

_STATIC = Path(__file__).parent / "static"
_HISTORY = 200  # judgments that a labeler can go back to


@dataclass(frozen=True, slots=True)
class Site:
    """What the pages work on."""

    store: Store  # read by the server's thread
    writer: Writer
    queue: Queue
    seed: int
    instructions: str
    secure: bool  # reached by https

    def order(self, task: Task, labeler: Labeler) -> tuple[int, ...]:
        """The order in which a labeler sees the answers of a task."""
        return shown_order(task.id, labeler.id, len(task.answers), self.seed)


def build(site: Site, hosts: Sequence[str], further: Sequence[Route] = ()) -> Starlette:
    """The application.

    Args:
        site: What it works on.
        hosts: Values of `Host` that are ours.
        further: Routes of reviewers.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette):
        app.state.site = site
        yield
        await site.writer.close()

    routes = [
        Route("/", _start),
        Route("/enter/{token}", _offer_entry),
        Route("/enter", _enter, methods=["POST"]),
        Route("/task", _next_task),
        Route("/task/{number:int}", _task),
        Route("/task/{number:int}", _judge, methods=["POST"]),
        Route("/task/{number:int}/renew", _renew, methods=["POST"]),
        Route("/mine", _history),
        *further,
        Mount("/static", StaticFiles(directory=_STATIC)),
    ]
    return Starlette(
        routes=routes,
        middleware=[Middleware(Guard, hosts=hosts)],
        exception_handlers={HTTPException: _explain},
        lifespan=lifespan,
    )


def site_of(request: Request) -> Site:
    """What the pages work on."""
    return request.app.state.site


async def _explain(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return page(request, "message.html", None, error.status_code, title="Not possible",
                text=error.detail)  # fmt: skip


async def _start(request: Request) -> Response:
    found = person(request, site_of(request).store)
    return RedirectResponse("/review" if found.role == "reviewer" else "/task", 303)


async def _offer_entry(request: Request) -> Response:
    """A page with a button: programs that look at links in messages do not press it.

    It is also what makes a strict cookie work: a browser does not send one along a redirection
    that began on another site.
    """
    token = request.path_params["token"]
    found = site_of(request).store.labeler(token)
    if found is None:
        raise HTTPException(403, "This link is not valid. Ask for a new one.")
    return page(request, "enter.html", None, name=found.name, token=token,
                instructions=site_of(request).instructions)  # fmt: skip


async def _enter(request: Request) -> Response:
    site = site_of(request)
    token = (await read_form(request)).get("token", "")
    if site.store.labeler(token) is None:
        raise HTTPException(403, "This link is not valid. Ask for a new one.")
    response = RedirectResponse("/", 303)
    remember(response, token, secure=site.secure)
    return response


async def _next_task(request: Request) -> Response:
    site = site_of(request)
    labeler = person(request, site.store)
    number = site.queue.next(labeler.id)
    if number is None:
        return page(request, "done.html", labeler, left=site.queue.left(labeler.id))
    if site.store.given_at(labeler.id, number) is None:
        await site.writer.write(lambda store: store.give(labeler.id, number))
    return _form(request, labeler, number, saved=request.query_params.get("saved", ""))


async def _task(request: Request) -> Response:
    site = site_of(request)
    labeler = person(request, site.store)
    number = request.path_params["number"]
    _require_own(site, labeler, number)
    return _form(request, labeler, number)


def _form(
    request: Request,
    labeler: Labeler,
    number: int,
    values: Mapping[str, str] | None = None,
    problems: Sequence[Problem] = (),
    saved: str = "",
) -> Response:
    site = site_of(request)
    task = site.store.task(number)
    assert task is not None
    order = site.order(task, labeler)
    earlier = site.store.judgment(number, labeler.id)
    if values is None:
        values = values_of(earlier.verdict, task, order) if earlier else {}
    return form_page(
        request, "task.html", labeler, shown_task(task, order), values, problems,
        saved=saved if saved.isascii() and saved.isdigit() else "",
        revising=earlier is not None, left=site.queue.left(labeler.id),
        instructions=site.instructions,
    )  # fmt: skip


async def _judge(request: Request) -> Response:
    """Keep what a form says, then show the next task."""
    site = site_of(request)
    labeler = person(request, site.store)
    number = request.path_params["number"]
    form = await form_of(request)
    _require_own(site, labeler, number)
    action = form.get("action", "judge")
    if action in ("skip", "flag"):
        return await _pass(request, labeler, number, form)
    if action != "judge":
        raise HTTPException(400, "There is no such action.")
    task = site.store.task(number)
    assert task is not None
    order = site.order(task, labeler)
    found = filled(form, task, order)
    verdict = found.verdict
    if verdict is None:
        return _form(request, labeler, number, form, found.problems)
    began = site.store.given_at(labeler.id, number)
    took = seconds(form, seconds_since(began) if began else 0.0)
    await site.writer.write(lambda store: store.judge(number, labeler.id, verdict, order, took))
    site.queue.judged(labeler.id, number)
    return RedirectResponse(f"/task?saved={number}", 303)


async def _pass(
    request: Request, labeler: Labeler, number: int, form: Mapping[str, str]
) -> Response:
    """Skip a task, or flag it for the reviewers."""
    site = site_of(request)
    if site.store.judgment(number, labeler.id) is not None:
        raise HTTPException(409, "You judged this task: change the judgment instead.")
    flagged = form["action"] == "flag"
    comment = form.get("comment", "").strip()[:2000]
    if flagged and not comment:
        missing = Problem("comment", "Say in the comment what is wrong with the task")
        return _form(request, labeler, number, form, [missing])
    await site.writer.write(lambda store: store.skip(number, labeler.id, comment, flagged=flagged))
    site.queue.passed(labeler.id, number)
    return RedirectResponse("/task", 303)


async def _renew(request: Request) -> Response:
    site = site_of(request)
    labeler = person(request, site.store)
    await form_of(request)
    held = site.queue.renew(labeler.id, request.path_params["number"])
    return Response(status_code=204 if held else 409)


async def _history(request: Request) -> Response:
    site = site_of(request)
    labeler = person(request, site.store)
    judgments = site.store.history(labeler.id, _HISTORY)
    tasks = {j.task: site.store.task(j.task) for j in judgments}
    rows = [(j, shown_task(task, ()).turns[-1][1]) for j in judgments if (task := tasks[j.task])]
    return page(request, "mine.html", labeler, rows=rows)


def _require_own(site: Site, labeler: Labeler, number: int) -> None:
    """A labeler sees the tasks that were given to this labeler, and no others.

    Raises:
        HTTPException: it is not one of them.
    """
    given = site.store.given_at(labeler.id, number) is not None
    if not given and site.store.judgment(number, labeler.id) is None:
        raise HTTPException(404, "This is not one of your tasks.")
