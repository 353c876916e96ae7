"""Win rates by size, as a plot of the report."""

from __future__ import annotations

from dataclasses import replace

import pytest
from rich.console import Console

from orchestrator.report.charts.plots import _figure, _style
from orchestrator.report.charts.scale_plot import _families, draw_scale
from orchestrator.report.tables import render_table
from orchestrator.results.few_shot import prompted_name, prompted_parts
from orchestrator.results.summary import EvaluationRow, Preference, Summary, model_label

SIZES = {"base": 800, "base+2": 800, "large": 6400, "large+2": 6400, "sft": 800, "sft_8x": 6400,
         "ppo": 800}  # fmt: skip
SUMMARY = Summary(
    models={name: EvaluationRow(parameters=size) for name, size in SIZES.items()},
    preferred=(
        Preference("sft", "base", 0.75, 0.7, 0.8, 100),
        Preference("sft", "base+2", 0.6, 0.55, 0.65, 100),
        Preference("sft", "large", 0.7, 0.6, 0.8, 100),
        Preference("sft", "large+2", 0.5, 0.4, 0.6, 100),
        Preference("sft_8x", "sft", 0.6, 0.5, 0.7, 100),
        Preference("ppo", "sft", 0.8, 0.7, 0.9, 100),
    ),
)


def test_models_are_grouped_and_rates_turned_to_the_same_side() -> None:
    found = _families(SUMMARY)
    assert set(found) == {"base", "base, prompted", "SFT", "ppo"}
    assert found["base"] == [
        pytest.approx((800, 0.25, 0.2, 0.3)),
        pytest.approx((6400, 0.3, 0.2, 0.4)),
    ]
    assert found["SFT"] == [(800, 0.5, 0.5, 0.5), (6400, 0.6, 0.5, 0.7)]
    assert found["base, prompted"][1] == pytest.approx((6400, 0.5, 0.4, 0.6))


def test_it_is_drawn_where_base_models_differ_in_size() -> None:
    made = draw_scale(SUMMARY, _figure, _style)
    assert made is not None
    assert [line.get_label() for line in made.axes[0].lines if line.get_label()[0] != "_"] == [
        "base", "base, prompted", "SFT", "PPO",
    ]  # fmt: skip
    few = replace(SUMMARY, models={n: SUMMARY.models[n] for n in ("base", "sft", "ppo")})
    assert draw_scale(few, _figure, _style) is None
    assert draw_scale(Summary(), _figure, _style) is None


def test_names_of_prompted_models() -> None:
    assert prompted_parts(prompted_name("base_2x", 3)) == ("base_2x", 3)
    assert prompted_parts("sft@4") == ("sft@4", 0)
    assert model_label("large+2") == "large base, 2 shots"


def test_the_tables_of_many_models_fit_a_terminal() -> None:
    names = [f"base_{n}x" for n in range(1, 9)]
    names = [each for name in names for each in (name, f"{name}+2")]
    rows = {n: EvaluationRow(gold_mean=-0.5, truthful_rate=0.5) for n in [*names, "sft", "ppo"]}
    over = tuple(Preference("ppo", name, 0.8, 0.7, 0.9, 100) for name in [*names, "sft"])
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render_table(Summary(models=rows, preferred=over)))
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= 80
    assert not any("\N{HORIZONTAL ELLIPSIS}" in line for line in lines)
    assert sum("held-out" in line for line in lines) > 1
    assert sum("80 %" in line for line in lines) == 17
