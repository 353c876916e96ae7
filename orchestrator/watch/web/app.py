"""The pages of a run: overview, metrics, sequences, processes and logs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from orchestrator.pages.guard import Guard
from orchestrator.report.charts.chart import Chart, Curve, chart, panels
from orchestrator.report.charts.curves import color_of, further, groups, terms_of
from orchestrator.report.measured import Series
from orchestrator.watch.followed import Followed
from orchestrator.watch.health import health_of
from orchestrator.watch.logs import end_of, names
from orchestrator.watch.web.key import Key
from orchestrator.watch.web.page import page
from orchestrator.watch.web.rollouts import routes
from workers.errors import RehearsalError

_STATIC = Path(__file__).parent / "static"
_STYLE = files("orchestrator.report").joinpath("assets", "page.css")
_MOST_CHARTS = 200


def build(followed: Followed, hosts: Sequence[str], key: str = "", *, secure: bool = False,
          follow: bool = True) -> Starlette:  # fmt: skip
    """The application.

    Args:
        followed: The run.
        hosts: Values of `Host` that are ours.
        key: What the link must hold; "" = nothing.
        secure: Whether the pages are reached by https.
        follow: Read the run in the background; tests look by hand.
    """

    @asynccontextmanager
    async def lifespan(app: Starlette):
        app.state.followed = followed
        if follow:
            followed.start()
        yield

    return Starlette(
        routes=[
            Route("/", _overview),
            Route("/metrics", _metrics),
            *routes(),
            Route("/health", _health),
            Route("/log", _log),
            Route("/static/page.css", _style),
            Mount("/static", StaticFiles(directory=_STATIC)),
        ],
        middleware=[Middleware(Guard, hosts=hosts), Middleware(Key, key=key, secure=secure)],
        exception_handlers={HTTPException: _explain, RehearsalError: _explain},
        lifespan=lifespan,
    )


# The pages are plain functions: Starlette runs them in threads, so that a search in many sequences
# does not hold up other pages.


def _overview(request: Request) -> Response:
    measured = _followed(request).measured
    found = groups(further(measured.stages()), terms_of(measured.names()))
    drawn = [(name, panels(measured, chosen)) for name, chosen in found.items()]
    return page(
        request, "overview.html", live=True,
        stages=[(stage, measured.last_step(stage)) for stage in measured.stages()],
        groups=[(name, charts) for name, charts in drawn if charts],
    )  # fmt: skip


def _metrics(request: Request) -> Response:
    """Every metric of one stage, a chart each."""
    measured = _followed(request).measured
    stages = measured.stages()
    stage = request.query_params.get("stage", "")
    if stage not in stages:
        stage = stages[-1] if stages else ""
    text = request.query_params.get("text", "").strip()[:100]
    found = [s for s in measured.of_stage(stage) if text.lower() in s.name.lower()]
    color = color_of(stage, further(stages))
    charts = [_alone(series, color) for series in found[:_MOST_CHARTS]]
    return page(
        request, "metrics.html", live=True, stages=stages, stage=stage, text=text,
        given=charts, more=len(found) - len(charts),
    )  # fmt: skip


def _alone(series: Series, color: str) -> Chart:
    name = series.name.partition("/")[2]
    return chart(name, [Curve(series, "", color)])


def _health(request: Request) -> Response:
    followed = _followed(request)
    health = health_of(followed.folder, followed.measured)
    stages = further(followed.measured.stages())
    shown = panels(followed.measured, groups(stages)["Health"])
    return page(request, "health.html", live=True, health=health, charts=shown)


def _log(request: Request) -> Response:
    folder = _followed(request).folder
    there = names(folder)
    name = request.query_params.get("name", "") or (there[0] if there else "")
    log = end_of(folder, name) if name else None
    return page(request, "log.html", live=True, names=there, log=log)


def _style(request: Request) -> Response:  # noqa: ARG001
    """The report's own style."""
    return Response(_STYLE.read_text(encoding="utf-8"), media_type="text/css")


def _explain(request: Request, error: Exception) -> Response:
    if isinstance(error, RehearsalError):
        status = 404 if error.what.startswith("there is no such") else 500
        return page(request, "message.html", status, title="Not possible", text=str(error))
    assert isinstance(error, HTTPException)
    return page(request, "message.html", error.status_code, title="Not possible",
                text=error.detail)  # fmt: skip


def _followed(request: Request) -> Followed:
    return request.app.state.followed
