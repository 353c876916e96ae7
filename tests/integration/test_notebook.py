"""The notebook of examples/ runs from its first to its last cell, in a kernel of its own."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FILE = ROOT / "examples" / "first_run.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[nbformat.NotebookNode]]:
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(FILE, as_version=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        patch.setenv("IPYTHONDIR", str(folder / "ipython"))
        client = NotebookClient(notebook, timeout=240, resources={"metadata": {"path": folder}})
        client.execute()
    return folder, [cell for cell in notebook.cells if cell.cell_type == "code"]


def _said(cell: nbformat.NotebookNode) -> str:
    return "".join(out.get("text") or out["data"]["text/plain"] for out in cell.outputs)


@pytest.mark.timeout(300)
def test_every_cell_says_what_the_text_above_it_promises(executed) -> None:
    folder, cells = executed
    planned, ran, curves, evaluation, rollouts, answers, sweep = map(_said, cells)
    assert planned.startswith("Plan of pocket_tiny, seed 0, results in ")
    assert "pocket_tiny, finished)" in ran
    assert {"ppo/score_mean", "ppo/kl_sequence"} <= set(curves.split())
    assert "nan" not in curves.lower()
    assert re.search(r"preferred_to_sft +.*0\.\d", evaluation)
    assert re.search(r"^[+-]\d\.\d\d  user : .* reply :", rollouts, flags=re.M)
    assert [line.split(" -> ")[0] for line in answers.splitlines()] == ["base", "sft", "ppo_ptx"]
    assert sweep == "{0.0: 0.0, 0.05: 0.05, 0.2: 0.2}"
    assert (folder / "outputs" / "notebook" / "report.html").is_file()


def test_it_is_kept_without_outputs() -> None:
    cells = nbformat.read(FILE, as_version=4).cells
    assert [cell for cell in cells if cell.cell_type == "code" and cell.outputs] == []
