"""What a report shows of the stage overoptimization."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

from fuzz.empty_figures import MEASURED
from rich.console import Console

from orchestrator.report.build import write_report
from orchestrator.report.overoptimization import overoptimization_tables
from orchestrator.report.tables import facts, render_table
from orchestrator.results.reward_model_figures import PairAccuracy, RewardModelFigures
from orchestrator.results.summary import Summary, write_summary
from orchestrator.run_files.folder import RunFolder

FOUND = MEASURED.overoptimization
assert FOUND is not None
ACCURATE = RewardModelFigures(heldout=PairAccuracy(0.71, 0.7, 0.8, 1200, 300))
SUMMARY = Summary(overoptimization=FOUND, reward_models={"few": ACCURATE})


def shown(summary: Summary) -> str:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render_table(summary))
    return capture.get()


def test_the_tables_fit_a_terminal_and_hold_every_figure() -> None:
    text = shown(SUMMARY)
    assert max(len(line) for line in text.splitlines()) <= 80
    for figure in ("few", "67", "817k", "71%", "99%", "0.69", "1.59", "0.98", "0.83", "2.91",
                   "1.23", "arm", "0.013", "2.07", "5.62", "all 3", "0.81 [0.40"):  # fmt: skip
        assert figure in text, figure
    assert not overoptimization_tables(Summary())


def test_the_accuracy_of_a_proxy_stands_in_its_row_alone() -> None:
    assert not [what for what, _ in facts(SUMMARY) if "held-out pairs" in what]
    plain = replace(SUMMARY, overoptimization=None)
    assert [what for what, _ in facts(plain)] == ["few, held-out pairs"]


def test_curves_and_fits_are_drawn_as_vectors(tmp_path: Path) -> None:
    proxies = tuple(
        replace(FOUND.proxies[0], name=f"rm_{n}", rankings=n) for n in (64, 256, 1024, 4096)
    )
    many = replace(FOUND, proxies=proxies)
    folder = RunFolder(tmp_path / "run").create()
    write_summary(folder, replace(SUMMARY, overoptimization=many))
    made = write_report(folder)
    assert not [note for note in made.damage if "metrics.jsonl" not in note]
    names = ("overoptimization.svg", "overoptimization_fits.svg")
    before = [(folder.plots / name).read_bytes() for name in names]
    for svg in before:
        root = ElementTree.fromstring(svg)
        assert root.tag.endswith("svg")
        assert len([e for e in root.iter() if e.tag.endswith("path")]) > 20
    page = made.path.read_text()
    assert page.count("data:image/svg+xml;base64,") == 2
    assert "Over-optimisation" in page
    write_report(folder)
    assert [(folder.plots / name).read_bytes() for name in names] == before
