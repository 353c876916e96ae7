"""The pages of recorded sequences: a list with filters, one sequence, versions side by side."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from orchestrator.watch.followed import Followed
from orchestrator.watch.index import Found
from orchestrator.watch.sequences import ORDERS, read_filter
from orchestrator.watch.web.page import page

_MOST_OF_PROMPT = 2000  # responses to one prompt that are looked at
_MOST_COLUMNS = 4  # shown side by side unless others are chosen
_MOST_CHOICES = 12
_MOST_PER_COLUMN = 8
_BEGINNING = 600  # characters of a text in the list


@dataclass(frozen=True, slots=True)
class Column:
    """The responses of one policy version or model to a prompt."""

    key: str  # in addresses
    stage: str
    version: str
    found: list[Found]

    @property
    def reward(self) -> float | None:
        """Mean reward of those that have one."""
        known = [f.sequence.reward for f in self.found if f.sequence.reward is not None]
        return sum(known) / len(known) if known else None


def routes() -> list[Route]:
    """The routes of these pages."""
    return [
        Route("/rollouts", _list),
        Route("/rollouts/{number:int}", _one),
        Route("/prompts/{key:int}", _side_by_side),
    ]


def _list(request: Request) -> Response:
    index = _followed(request).index
    wanted, ignored = read_filter(request.query_params)
    result = index.find(wanted)
    return page(
        request, "rollouts.html", wanted=wanted, ignored=ignored, result=result,
        values=index.values, orders=ORDERS, beginning_length=_BEGINNING,
    )  # fmt: skip


def _one(request: Request) -> Response:
    number = request.path_params["number"]
    found = _followed(request).index.sequence(number) if number < 1 << 63 else None
    if found is None:
        raise HTTPException(404, "There is no such sequence.")
    return page(request, "rollout.html", found=found)


def _side_by_side(request: Request) -> Response:
    """Responses to one prompt: a column per policy version, or per model in the evaluation."""
    key = request.path_params["key"]
    found = _followed(request).index.of_prompt(key, _MOST_OF_PROMPT) if key < 1 << 63 else []
    if not found:
        raise HTTPException(404, "There is no such prompt.")
    columns = columns_of(found)
    chosen = [c for c in columns if c.key in request.query_params.getlist("show")][:_MOST_CHOICES]
    return page(
        request, "prompt.html", prompt=found[0].sequence.prompt, columns=columns,
        chosen=chosen or spread(columns), most=_MOST_PER_COLUMN, beginning_length=_BEGINNING,
    )  # fmt: skip


def columns_of(found: list[Found]) -> list[Column]:
    """Sequences by stage and version, in their order in the run."""
    by_version: dict[tuple[str, str], list[Found]] = {}
    for each in found:
        by_version.setdefault((each.sequence.stage, each.sequence.version), []).append(each)
    return [
        Column(f"{stage}:{version}", stage, version, inside)
        for (stage, version), inside in by_version.items()
    ]


def spread(columns: list[Column]) -> list[Column]:
    """The first and the last column, and some between them in equal distance."""
    if len(columns) <= _MOST_COLUMNS:
        return columns
    last = len(columns) - 1
    return [columns[round(n * last / (_MOST_COLUMNS - 1))] for n in range(_MOST_COLUMNS)]


def _followed(request: Request) -> Followed:
    return request.app.state.followed
