"""report.html: one file that needs no network, with tables, plots, samples and configuration.

`assets/` has its template, style and script. The template escapes everything from the run: sampled
text may look like markup.
"""

from __future__ import annotations

import base64
import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from orchestrator.report.tables import (
    MISSING,
    REWARD_MODEL_HEADS,
    TIME_HEADS,
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
    plots: Sequence[tuple[str, Path]]  # caption, PNG file
    comparisons: Sequence[Comparison]
    rollouts: Sequence[RolloutSample]
    config: str  # YAML
    times: Sequence[Sequence[str]] = ()  # by TIME_HEADS
    damage: Sequence[str] = ()  # what of the run folder is not shown, and why


def render_page(page: Page) -> str:
    """The page as HTML."""
    style, script = _asset("page.css"), _asset("page.js")
    summary = page.summary
    environment = Environment(
        loader=PackageLoader(__package__ or "", _ASSETS),
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
        reward_model_heads=REWARD_MODEL_HEADS,
        reward_model_rows=reward_model_rows(summary),
        facts=[fact for fact in facts(summary) if fact[0] != "roles"],
        plots=[_plot(caption, path.read_bytes()) for caption, path in page.plots],
        rollouts=[_plain(sample) for sample in page.rollouts[-_MOST_ROLLOUTS:]],
        labels={**MODEL_LABELS},
        time_heads=TIME_HEADS,
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


def _plot(caption: str, png: bytes) -> dict[str, object]:
    # Width and height stand at bytes 16 to 24 of a PNG file; single charts share a row.
    width, height = struct.unpack(">II", png[16:24])
    data = base64.b64encode(png).decode("ascii")
    return {"caption": caption, "width": width, "height": height, "data": data}


def _plain(sample: RolloutSample) -> dict[str, object]:
    """JSON holds no NaN: a score that is none, since the reward failed, becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(sample).items()
    }
