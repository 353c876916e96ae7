"""The final tables of a run, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.live import duration
from orchestrator.run_folder import RunFolder
from orchestrator.samples import Comparison
from orchestrator.summary import MODEL_LABELS, Preference, Summary

MISSING = "-"


def model_label(name: str) -> str:
    """How a model is called in tables."""
    return MODEL_LABELS.get(name, name)


def evaluation_columns(summary: Summary) -> list[tuple[str, list[str]]]:
    """Columns (heading, one cell a model) of the final table; unmeasured columns are left out."""
    names = summary.ordered_models()
    rows = [summary.models[name] for name in names]
    columns = [
        ("gold score", [_cell(row.gold_mean, "{:.2f}") for row in rows]),
        *(
            (f"preferred to {model_label(over)}", _wins(summary, names, over))
            for over in _rivals(summary)
        ),
        ("truthful", [_percent(row.truthful_rate) for row in rows]),
        ("rude", [_percent(row.rude_rate) for row in rows]),
        ("correct", [_percent(row.correct_rate) for row in rows]),
        ("tokens", [_cell(row.length_mean, "{:.1f}") for row in rows]),
        ("web perplexity", [_cell(row.web_perplexity, "{:.2f}") for row in rows]),
        ("cloze", [_percent(row.cloze_accuracy) for row in rows]),
    ]
    return [(title, cells) for title, cells in columns if any(cell != MISSING for cell in cells)]


def facts(summary: Summary) -> list[tuple[str, str]]:
    """What else is worth knowing, as (what, figure)."""
    ledger, sync, timing = summary.ledger, summary.weight_sync, summary.timing
    found: list[tuple[str, str]] = []
    if summary.heldout_pair_accuracy is not None:
        found.append(("reward model, held-out pairs", _percent(summary.heldout_pair_accuracy)))
    if ledger.generated:
        text = f"{ledger.generated:,} generated = {ledger.trained:,} trained"
        found.append(("sequences", f"{text} + {ledger.dropped:,} dropped"))
    if sync.count:
        parity = sync.parity_max_abs_logprob_diff
        text = f"{sync.count}, median {_cell(sync.seconds_median, '{:.3f}')} s"
        found.append(("weight syncs", f"{text}, worst difference {_cell(parity, '{:.1e}')} nats"))
    if timing.first_optimizer_step_seconds is not None:
        first = duration(timing.first_optimizer_step_seconds)
        found.append(("first optimizer step after", first))
    if timing.total_seconds:
        found.append(("total time", duration(timing.total_seconds)))
    if summary.roles:
        found.append(("roles", ", ".join(_role_counts(summary))))
    return found


def render_table(summary: Summary) -> RenderableType:
    """The evaluation table and the facts under it."""
    parts: list[RenderableType] = []
    if summary.models:
        parts.append(_evaluation_table(summary))
    grid = Table.grid(padding=(0, 2, 0, 1))
    for what, figure in facts(summary):
        grid.add_row(Text(what, style="dim"), figure)
    return Group(*parts, grid)


def render_samples(comparisons: Sequence[Comparison], shown: int = 3) -> RenderableType:
    """Responses of the models to the same prompts, one block a prompt."""
    blocks: list[RenderableType] = []
    for comparison in comparisons[:shown]:
        grid = Table.grid(padding=(0, 2, 0, 1))
        grid.add_column(no_wrap=True, style="dim")
        grid.add_column()
        for model, response in comparison.responses.items():
            grid.add_row(model_label(model), Text(response or "(empty)"))
        blocks += [Text(f" {comparison.prompt}", style="bold"), grid, Text("")]
    return Group(*blocks)


def render_result(
    folder: RunFolder, summary: Summary, comparisons: Sequence[Comparison] = ()
) -> RenderableType:
    """All that a run prints at its end: tables, samples, and where everything is."""
    places = Table.grid(padding=(0, 2, 0, 1))
    for what, path in (
        ("report", folder.report),
        ("summary", folder.summary),
        ("metrics", folder.metrics),
        ("plots", folder.plots),
        ("checkpoints", folder.checkpoints),
    ):
        if path.exists():
            places.add_row(Text(what, style="dim"), Text(str(path), overflow="fold"))
    return Group(render_table(summary), Text(""), render_samples(comparisons), places)


def _evaluation_table(summary: Summary) -> Table:
    # Models side by side: with ten measures this fits 80 columns, the other way round it does not.
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), header_style="bold")
    table.add_column("held-out prompts", no_wrap=True)
    for name in summary.ordered_models():
        table.add_column(model_label(name), justify="right", no_wrap=True)
    for title, cells in evaluation_columns(summary):
        table.add_row(title, *cells)
    return table


def _rivals(summary: Summary) -> list[str]:
    """Models that others were compared with: SFT first, then in recipe order."""
    over = {preference.over for preference in summary.preferred}
    names = [name for name in ("sft", *summary.ordered_models()) if name in over]
    return list(dict.fromkeys(names))


def _wins(summary: Summary, names: Sequence[str], over: str) -> list[str]:
    return [_win(summary.preference(name, over)) for name in names]


def _win(preference: Preference | None) -> str:
    if preference is None:
        return MISSING
    interval = f"{100 * preference.low:.0f}-{100 * preference.high:.0f}"
    return f"{100 * preference.rate:.0f} % [{interval}]"


def _cell(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def _percent(value: float | None) -> str:
    return MISSING if value is None else f"{100 * value:.1f} %"


def _role_counts(summary: Summary) -> list[str]:
    names = [role.role for role in summary.roles]
    return [f"{names.count(name)} {name}" for name in dict.fromkeys(names)]
