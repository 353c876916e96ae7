"""report.html: one file that needs no network, with tables, charts, samples and configuration.

`assets/` has its template, style and scripts. The template escapes everything from the run: sampled
text may look like markup.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.pages.visible import parts
from orchestrator.report.charts import chart
from orchestrator.report.charts.bars import TICK, all_bars
from orchestrator.report.charts.chart import Chart
from orchestrator.report.costs import COST_HEADS, TIME_HEADS
from orchestrator.report.glossary import glossary
from orchestrator.report.losses import LOSS_HEADS
from orchestrator.report.overoptimization import overoptimization_tables
from orchestrator.report.round_table import ROUND_HEADS, round_rows
from orchestrator.report.tables import (
    MISSING,
    REWARD_MODEL_HEADS,
    evaluation_columns,
    facts,
    model_label,
    reward_model_rows,
)
from orchestrator.results.summary import MODEL_LABELS, Summary
from orchestrator.run_files.samples import Comparison, RolloutSample

_MOST_ROLLOUTS = 5000  # samples embedded in the page, the newest; all stay in samples/
_ASSETS = "assets"


@dataclass(frozen=True, slots=True)
class Page:
    """What the page shows."""

    title: str
    summary: Summary
    charts: Sequence[Chart]
    comparisons: Sequence[Comparison]
    rollouts: Sequence[RolloutSample]
    config: str  # YAML
    times: Sequence[Sequence[str]] = ()  # by TIME_HEADS
    costs: Sequence[Sequence[str]] = ()  # by COST_HEADS
    damage: Sequence[str] = ()  # what of the run folder is not shown, and why
    heading: Sequence[tuple[str, str]] = ()  # what was run, from what, where
    losses: Sequence[Sequence[str]] = ()  # by LOSS_HEADS
    drawings: Sequence[tuple[str, bytes]] = ()  # caption, SVG


def render_page(page: Page) -> str:
    """The page as HTML."""
    style, script = _asset("page.css"), _asset("page.js") + _asset("charts.js")
    summary = page.summary
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(__package__ or "", _ASSETS), PackageLoader("orchestrator.pages")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    text = environment.get_template("page.html").render(
        page=page,
        policy=Markup(_policy(style, script)),
        style=Markup(style),
        script=Markup(script),
        models=summary.ordered_models() if summary.models else [],
        columns=evaluation_columns(summary),
        round_heads=ROUND_HEADS,
        round_rows=round_rows(summary),
        reward_model_heads=REWARD_MODEL_HEADS,
        reward_model_rows=reward_model_rows(summary),
        overoptimization=overoptimization_tables(summary),
        drawings=[_drawing(caption, svg) for caption, svg in page.drawings],
        facts=[fact for fact in facts(summary) if fact[0] != "roles"],
        bars=all_bars(summary),
        tick=TICK,
        chart=chart,
        parts=parts,
        loss_heads=LOSS_HEADS,
        glossary=glossary(_names(page)),
        rollouts=[_plain(sample) for sample in page.rollouts[-_MOST_ROLLOUTS:]],
        labels={**MODEL_LABELS},
        time_heads=TIME_HEADS,
        cost_heads=COST_HEADS,
        data_heads=DATA_HEADS,
        role_heads=ROLE_HEADS,
        missing=MISSING,
        model_label=model_label,
    )
    # a file's name may hold bytes that are no character
    return text.lstrip().encode("utf-8", errors="backslashreplace").decode("utf-8")


def _asset(name: str) -> str:
    return files(__package__ or "").joinpath(_ASSETS, name).read_text(encoding="utf-8")


def _policy(*texts: str) -> str:
    """What a browser may do: our own style and script, embedded plots, nothing from elsewhere.

    A second guard behind the escaping: sampled text that got into the page as markup would neither
    run nor load anything.
    """
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii") for text in texts
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )


def _drawing(caption: str, svg: bytes) -> dict[str, object]:
    """An SVG as an image, in the pixels of its points at 96 per inch."""
    found = re.search(rb'<svg [^>]*?viewBox="0 0 ([0-9.]+) ([0-9.]+)"', svg)
    assert found is not None, "matplotlib writes the view box of an SVG"
    width, height = (round(float(points) * 96 / 72) for points in found.groups())
    data = base64.b64encode(svg).decode("ascii")
    return {"caption": caption, "width": width, "height": height, "data": data}


def _names(page: Page) -> list[str]:
    """Every heading and fact that the page shows."""
    summary = page.summary
    names = (
        ["model", *(title for title, _ in evaluation_columns(summary))] if summary.models else []
    )
    names += REWARD_MODEL_HEADS if reward_model_rows(summary) else ()
    names += ROUND_HEADS if round_rows(summary) else ()
    names += LOSS_HEADS if page.losses else ()
    names += [what for what, _ in facts(summary) if what != "roles"]
    for each in overoptimization_tables(summary):
        names += [head.replace("\n", " ") for head in each.heads if not head.isdecimal()]
    names += ["model", "response"] if page.comparisons else []
    names += ["gold"] if any(each.gold for each in page.comparisons) else []
    names += ["score"] if any(each.scores for each in page.comparisons) else []
    names += ["score", "KL", "version", "stop, length, abort"] if page.rollouts else []
    names += DATA_HEADS if summary.data else ()
    names += TIME_HEADS if page.times else ()
    names += COST_HEADS if page.costs else ()
    return [*names, *(ROLE_HEADS if summary.roles else ())]


DATA_HEADS = (
    "set", "kind", "weight", "rows", "training", "held out", "tokens", "cut", "left out",
)  # fmt: skip
ROLE_HEADS = ("role", "rank", "process", "node", "device")


def _plain(sample: RolloutSample) -> dict[str, object]:
    """JSON holds no NaN: a score that is none, since the reward failed, becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(sample).items()
    }
