"""report.html: one file that needs no network, with tables, plots, samples and configuration."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path

from orchestrator.report.page_assets import SCRIPT, STYLE
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
    """The page as HTML. Everything from the run is escaped: sampled text may look like markup."""
    sections = [
        ("damage", "Damaged parts, not shown", _damage(page.damage)),
        ("results", "Results", _results(page.summary)),
        ("plots", "Plots", _plots(page.plots)),
        ("samples", "Samples side by side", _comparisons(page.comparisons)),
        ("rollouts", "Rollouts", _rollouts(page.rollouts)),
        ("data", "Data", _data(page.summary)),
        ("time", "Time of a PPO step", _times(page.times)),
        ("roles", "Roles", _roles(page.summary)),
        ("config", "Configuration", _config(page.config)),
    ]
    filled = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{key}">{title}</a>' for key, title, _ in filled)
    body = "\n".join(
        f'<section id="{key}"><h2>{title}</h2>{content}</section>' for key, title, content in filled
    )
    text = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_policy()}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Rehearsal: {escape(page.title)}</title><style>{STYLE}</style></head><body>"
        f"<header><div><h1>Rehearsal <span>{escape(page.title)}</span></h1>"
        f"<nav>{links}</nav></div></header><main>\n{body}\n</main>"
        f"<script>{SCRIPT}</script></body></html>\n"
    )
    # a file's name may hold bytes that are no character
    return text.encode("utf-8", errors="backslashreplace").decode("utf-8")


def _policy() -> str:
    """What a browser may do: our own style and script, embedded plots, nothing from elsewhere.

    A second guard behind the escaping: sampled text that got into the page as markup would neither
    run nor load anything.
    """
    style, script = (
        base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
        for text in (STYLE, SCRIPT)
    )
    return (
        f"default-src 'none'; img-src data:; style-src 'sha256-{style}'; "
        f"script-src 'sha256-{script}'; base-uri 'none'; form-action 'none'"
    )


def _damage(notes: Sequence[str]) -> str:
    items = "".join(f"<li>{escape(note)}</li>" for note in notes)
    return f"<ul>{items}</ul>" if items else ""


def _results(summary: Summary) -> str:
    cards = "".join(
        f'<div class="card"><b>{escape(figure)}</b><span>{escape(what)}</span></div>'
        for what, figure in facts(summary)
        if what != "roles"
    )
    table = _evaluation(summary) if summary.models else ""
    if rows := reward_model_rows(summary):
        cells = [[escape(cell) for cell in row] for row in rows]
        table += _table(REWARD_MODEL_HEADS, cells, "figures")
    return table + (f'<div class="cards">{cards}</div>' if cards else "")


def _evaluation(summary: Summary) -> str:
    columns = evaluation_columns(summary)
    rows = [
        [_chip(name), *(escape(cells[i]) for _, cells in columns)]
        for i, name in enumerate(summary.ordered_models())
    ]
    note = (
        '<p class="note">Held-out prompts. Brackets: 95 % interval of a win rate; ties count half.'
        " tokens: mean length of a response. cloze: facts completed in pretraining style.</p>"
    )
    return _table(["model", *(title for title, _ in columns)], rows, "figures") + note


def _plots(plots: Sequence[tuple[str, Path]]) -> str:
    figures = "".join(_figure(caption, path.read_bytes()) for caption, path in plots)
    return f'<div class="plots">{figures}</div>' if figures else ""


def _figure(caption: str, png: bytes) -> str:
    # Width and height stand at bytes 16 to 24 of a PNG file; single charts share a row.
    width, height = struct.unpack(">II", png[16:24])
    kind = "wide" if width > 1000 else "single"
    data = base64.b64encode(png).decode("ascii")
    return (
        f'<figure class="{kind}"><img alt="{escape(caption)}" width="{width}" height="{height}" '
        f'src="data:image/png;base64,{data}"></figure>'
    )


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    blocks: list[str] = []
    for comparison in comparisons:
        rows = [
            [_chip(model), _text(response), _gold(comparison.gold.get(model))]
            for model, response in comparison.responses.items()
        ]
        heads = ["model", "response", "gold" if comparison.gold else ""]
        blocks.append(
            f"<article><h3>{escape(comparison.prompt)}</h3>{_table(heads, rows, 'texts')}</article>"
        )
    return "".join(blocks)


def _rollouts(rollouts: Sequence[RolloutSample]) -> str:
    if not rollouts:
        return ""
    labels = json.dumps({**MODEL_LABELS})
    data = json.dumps([_plain(sample) for sample in rollouts[-_MOST_ROLLOUTS:]])
    return (
        '<div class="controls"><select id="stage" aria-label="stage"></select>'
        '<label>iteration <input id="step" type="range" min="0"><output id="at"></output></label>'
        '<input id="find" type="search" placeholder="find in prompt or response">'
        '<select id="order" aria-label="order"><option value="id">as generated</option>'
        '<option value="-score">best score first</option>'
        '<option value="score">worst score first</option>'
        '<option value="-kl">largest KL first</option></select></div>'
        '<p class="note" id="count"></p><div id="browser"></div>'
        f'<script type="application/json" id="labels">{_in_script(labels)}</script>'
        f'<script type="application/json" id="data">{_in_script(data)}</script>'
    )


def _plain(sample: RolloutSample) -> dict[str, object]:
    """JSON holds no NaN: a score that is none, since the reward failed, becomes null."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in asdict(sample).items()
    }


def _in_script(text: str) -> str:
    """JSON that cannot close the script element it stands in."""
    return text.replace("<", "\\u003c").replace("&", "\\u0026")


def _roles(summary: Summary) -> str:
    rows = [
        [escape(r.role), str(r.rank), str(r.pid), escape(r.node), escape(r.device)]
        for r in summary.roles
    ]
    return _table(["role", "rank", "process", "node", "device"], rows, "plain") if rows else ""


def _times(times: Sequence[Sequence[str]]) -> str:
    rows = [[escape(cell) for cell in row] for row in times]
    note = (
        '<p class="note">Mean over steps and workers; the first step of a stage, which loads and '
        "warms up, is left out. The trace shows every call.</p>"
    )
    return _table(TIME_HEADS, rows, "figures") + note if rows else ""


def _data(summary: Summary) -> str:
    rows = [
        [
            escape(each.name),
            escape(each.kind),
            f"{each.weight:g}",
            *(f"{n:,}" for n in (each.read, each.train, each.heldout, each.tokens, each.cut)),
            "<br>".join(f"{n:,} {escape(reason)}" for reason, n in each.dropped.items()),
        ]
        for each in summary.data
    ]
    heads = ["set", "kind", "weight", "rows", "training", "held out", "tokens", "cut", "left out"]
    return _table(heads, rows, "plain") if rows else ""


def _config(config: str) -> str:
    if not config:
        return ""
    return f"<details><summary>resolved config.yaml</summary><pre>{escape(config)}</pre></details>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]], kind: str) -> str:
    """A table of cells that are HTML already."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _chip(model: str) -> str:
    return f'<span class="chip {escape(model)}">{escape(model_label(model))}</span>'


def _text(response: str) -> str:
    return escape(response) if response else "<i>empty</i>"


def _gold(score: float | None) -> str:
    return MISSING if score is None else f"{score:+.2f}"
