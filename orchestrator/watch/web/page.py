"""The pages as HTML: templates, which escape everything, and what all of them show."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import HTMLResponse

from orchestrator.pages.environment import environment
from orchestrator.pages.visible import Part, Shown, parts, shown
from orchestrator.report.charts.chart import HEIGHT, WIDTH, short
from orchestrator.report.charts.curves import label_of
from orchestrator.watch.followed import Followed
from orchestrator.watch.health import state_of

_REFRESH_SECONDS = 10
_LONGEST_NAME = 100  # characters of a name of a stage, a metric or a file


def page(
    request: Request, template: str, status: int = 200, *, live: bool = False, **filling: Any
) -> HTMLResponse:
    """A page of the run.

    Args:
        request: What was asked.
        template: Of web/templates.
        status: Of HTTP.
        live: Whether the page loads itself again while the run goes on.
        **filling: What the template shows.
    """
    followed: Followed = request.app.state.followed
    state = state_of(followed.folder)
    paused = request.query_params.get("refresh") == "0"
    reading = not followed.progress.done
    going_on = live and (state.word == "running" or reading)
    text = _ENVIRONMENT.get_template(template).render(
        title=filling.pop("title", followed.folder.path.resolve().name),
        run=followed.folder.path.resolve().name,
        state=state,
        notes=followed.notes,
        progress=followed.progress,
        sequences=followed.index.count,
        going_on=going_on,
        refresh=0 if paused or not going_on else 2 if reading else _REFRESH_SECONDS,
        paused=paused,
        other=request.url.include_query_params(refresh=int(paused)).query,
        path=request.url.path,
        **filling,
    )
    # a file's name may hold bytes that are no character
    encoded = text.encode("utf-8", errors="backslashreplace")
    return HTMLResponse(encoded.decode("utf-8"), status)


def plain(value: str, most: int = _LONGEST_NAME) -> str:
    """A name or note in one line: what cannot be seen is shown, what is long is cut."""
    parts = shown(value[:most]).head
    line = "".join(f" {part.text} " if part.mark else part.text for part in parts)
    return line + (" ..." if len(value) > most else "")


def cut(text: str, most: int) -> tuple[Shown, int]:
    """The beginning of a text, and how many characters follow it."""
    return shown(text[:most]), max(0, len(text) - most)


def label(stage: str) -> str:
    """How a stage or model is called."""
    return plain(label_of(stage))


def seconds(value: float) -> str:
    """A length of time in one unit."""
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "min")):
        if value >= 2 * size:
            return f"{value / size:.0f} {unit}"
    return f"{value:.0f} s"


def moment(at: float) -> str:
    """A time as this machine's clock shows it."""
    try:
        return datetime.fromtimestamp(at).strftime("%Y-%m-%d %H:%M:%S")
    except (ValueError, OverflowError, OSError):
        return "-"


def whole(text: str) -> list[Part]:
    """A text of which nothing is folded."""
    return list(parts(text))


_ENVIRONMENT = environment("orchestrator.watch.web")
_ENVIRONMENT.globals.update(
    shown=shown, cut=cut, whole=whole, label=label, plain=plain, moment=moment, seconds=seconds,
    short=short, width=WIDTH, height=HEIGHT,
)  # fmt: skip
