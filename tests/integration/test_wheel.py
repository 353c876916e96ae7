"""The package as users get it: a wheel, installed elsewhere, run from a folder of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]


def _run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(
        command, cwd=folder, env=kept, capture_output=True, text=True, check=False, timeout=240
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of commands of an environment that has the wheel, and the packages of this one."""
    place = tmp_path_factory.mktemp("wheel")
    built = _run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)], _ROOT
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = place.glob("rehearsal-*.whl")
    venv.create(place / "env", with_pip=False)
    (site,) = (place / "env" / "lib").glob("python*/site-packages")
    python = str(place / "env" / "bin" / "python")
    uv = str(Path(sys.executable).with_name("uv"))
    done = _run([uv, "pip", "install", "--python", python, "--no-deps", str(wheel)], place)
    assert done.returncode == 0, done.stderr
    # After the wheel on the path; `addsitedir` is not called, so this checkout is not found.
    (site / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return place / "env" / "bin"


def test_every_file_of_the_packages_is_installed(installed: Path) -> None:
    (site,) = (installed.parent / "lib").glob("python*/site-packages")
    missing = [
        str(file.relative_to(_ROOT))
        for package in ("orchestrator", "workers")
        for file in (_ROOT / package).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
        if not (site / file.relative_to(_ROOT)).is_file()
    ]
    assert missing == []
    assert (site / "orchestrator" / "report" / "assets" / "page.css").is_file()
    assert (site / "orchestrator" / "conf" / "experiment" / "pocket.yaml").is_file()
    assert not (site / "benchmarks" / "results").exists()


def test_verbs_find_their_files_outside_of_a_checkout(installed: Path, tmp_path: Path) -> None:
    where = _run(
        [str(installed / "python"), "-c", "import orchestrator; print(orchestrator.__file__)"],
        tmp_path,
    )
    assert str(installed.parent) in where.stdout
    listed = _run([str(installed / "rehearsal"), "experiments"], tmp_path)
    assert "pocket_tiny" in listed.stdout, listed.stderr
    bench = _run([str(installed / "rehearsal"), "bench", "rollout_throughput", "--help"], tmp_path)
    assert "usage: rehearsal bench rollout_throughput" in bench.stdout, bench.stderr
    planned = _run(
        [str(installed / "rehearsal"), "run", "+experiment=pocket_tiny", "run.plan_only=true"],
        tmp_path,
    )
    assert planned.returncode == 0, planned.stderr
    assert "Plan of pocket_tiny" in planned.stdout


def test_an_own_experiment_runs_from_an_own_folder(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(
        "# @package _global_\n# Two steps of pretraining.\ndefaults:\n  - pocket_tiny\n  - _self_\n"
        "experiment: short\nstages: [pretrain]\npretrain:\n  steps: 2\n"
    )
    ran = _run(
        [str(installed / "rehearsal"), "run", "--config-dir", "mine", "+experiment=short",
         "run.dir=out"],
        tmp_path,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert (tmp_path / "out" / "checkpoints" / "base" / "model.safetensors").is_file()
    listed = _run([str(installed / "rehearsal"), "runs", "."], tmp_path)
    assert "finished" in listed.stdout, listed.stderr
