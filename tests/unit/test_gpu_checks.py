"""How checks of a GPU machine run: deadlines, crashes, skips; and dry runs of the workers' list."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest

from benchmarks.gpu.checks import Bench, ViolatedError, run_checks
from benchmarks.gpu.speed import step_flops

ROOT = Path(__file__).parents[2]
NAMES = (
    "good", "refuses", "wrong", "broken", "good", "ends", "good", "slow", "missing", "good"
)  # fmt: skip
MODULE = f"""
import os, time
from benchmarks.gpu.checks import CannotRunError, Check, require

def good(bench): return {{"device": bench.device, "quick": bench.quick, "process": os.getpid()}}
def slow(bench): time.sleep(60)
def ends(bench): os._exit(3)
def refuses(bench): raise CannotRunError("one GPU only")
def wrong(bench): require(False, "4 is not 5")
def broken(bench): raise RuntimeError("CUDA error: an illegal memory access")
missing = good

needs = {{"missing": ("no_such_package",)}}
late = {{"slow": 0.3}}
CHECKS = [
    Check(name, globals()[name], late.get(name, 60.0), needs.get(name, ())) for name in {NAMES}
]
"""


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "own_checks.py").write_text(MODULE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return Bench("cpu", True, tmp_path)


def test_a_hung_or_crashed_check_has_failed_and_the_others_go_on(bench: Bench):
    found = list(run_checks("own_checks", bench, 5.0))
    assert [(o.number, o.name) for o in found] == list(enumerate(NAMES, start=1))
    statuses = {"good": "passed", "refuses": "skipped", "missing": "skipped"}
    assert [o.status for o in found] == [statuses.get(name, "failed") for name in NAMES]
    reasons = {o.name: o.reason for o in found}
    assert reasons["refuses"] == "one GPU only"
    assert reasons["wrong"] == "4 is not 5"
    assert reasons["missing"] == "no_such_package is not installed"
    crash = "its process ended with exit code 1: RuntimeError: CUDA error: an illegal memory access"
    assert reasons["broken"] == crash
    assert reasons["ends"].startswith("its process ended with exit code 3")
    assert re.match(r"no answer within \d+ s", reasons["slow"])
    first, second, third, fourth = (o.figures for o in found if o.name == "good")
    assert (first["device"], first["quick"]) == ("cpu", True)
    # A new process after each crash and each hang, and the same one after a failure.
    assert len({figures["process"] for figures in (first, second, third, fourth)}) == 4


def test_what_cannot_begin_in_time_has_failed(bench: Bench):
    found = list(run_checks("own_checks", bench, 0.0))
    assert [o.status for o in found[1:]] == ["failed"] * (len(NAMES) - 1)
    assert all("--minutes" in o.reason for o in found[1:])


def test_nothing_is_tried_on_a_device_that_fails_its_own_check(bench: Bench):
    module = bench.folder / "own_checks.py"
    module.write_text(module.read_text() + "\nCHECKS = CHECKS[3:4] + CHECKS[:1]\n")
    found = list(run_checks("own_checks", bench, 5.0))
    assert [(o.status, o.reason) for o in found[1:]] == [("skipped", "check 1 failed")]


def test_a_list_that_cannot_be_imported_is_no_run_without_failures(bench: Bench):
    (bench.folder / "own_checks.py").write_text("import no_such_package")
    with pytest.raises(ViolatedError, match=r"do not start: .*No module named 'no_such_package'"):
        list(run_checks("own_checks", bench, 5.0))


def test_operations_of_a_step():
    # 2 * 10 forward and twice that backward; 3 positions see 1, 2 and 3 of 4 numbers, twice, or
    # half of 3 * 3 of them: 4 * 4 * 4.5 operations forward, three times that in all.
    assert step_flops(10, 1, 4, [3]) == 6 * 10 * 3 + 3 * 4 * 4 * 4.5
    assert step_flops(0, 2, 4, [3, 3]) == 4 * step_flops(0, 1, 4, [3])


def _of_a_bare_image() -> set[str]:
    """Import names of what `pip install torch transformers` installs."""
    wanted, known = ["torch", "transformers"], set[str]()
    while wanted:
        name = wanted.pop()
        if name in known:
            continue
        known.add(name)
        for line in distribution(name).requires or []:
            if "extra ==" not in line and "nvidia" not in line and "triton" not in line:
                required = re.split(r"[^\w.-]", line)[0]
                if installed(required):
                    wanted.append(re.sub(r"[-_.]+", "-", required).lower())
    names = packages_distributions()
    return {
        package
        for package, owners in names.items()
        if any(re.sub(r"[-_.]+", "-", owner).lower() in known for owner in owners)
    }


def installed(name: str) -> bool:
    try:
        distribution(name)
    except ImportError:
        return False
    return True


@pytest.fixture
def bare(tmp_path: Path) -> dict[str, str]:
    """An environment in which every other installed package is absent."""
    ours = {path.name for path in ROOT.iterdir()}
    hidden = set(packages_distributions()) - _of_a_bare_image() - ours
    assert {"ray", "vllm", "hydra", "omegaconf", "psutil", "deepspeed", "peft"} <= hidden
    (tmp_path / "sitecustomize.py").write_text(
        textwrap.dedent(f"""
        from importlib.machinery import PathFinder

        find = PathFinder.find_spec

        def visible(name, path=None, target=None):
            hidden = name.partition(".")[0] in {hidden}
            return None if hidden else find(name, path, target)

        PathFinder.find_spec = staticmethod(visible)
        """)
    )
    return {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}


def dry_run(folder: Path, environment: dict[str, str]) -> tuple[int, dict]:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu_workers", "--device", "cpu", "--quick",
         "--out", str(folder)],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    assert done.stderr == ""
    (path,) = folder.glob("*_gpu_workers.json")
    found = json.loads(path.read_text())
    assert done.stdout.count("\n") == len(found["checks"]) + 1
    return done.returncode, found


def test_a_machine_with_torch_and_transformers_alone_runs_what_it_can(tmp_path: Path, bare):
    code, found = dry_run(tmp_path, bare)
    passed = [o["name"] for o in found["checks"] if o["status"] == "passed"]
    assert passed == [
        "machine", "weight transfer group", "checksums", "publishing to shared memory",
        "packed attention", "speed of packed rows", "chunked log-probabilities",
        "engine against reference",
    ]  # fmt: skip
    assert all("deepspeed" in o["reason"] for o in found["checks"] if o["name"] not in passed)
    assert (code, found["passed"], found["failed"], found["skipped"]) == (0, 8, 0, 9)
    assert found["versions"].keys() >= {"torch", "transformers"}


@pytest.mark.slow  # 20 s
def test_every_check_passes_on_small_sizes_without_a_gpu(tmp_path: Path):
    code, found = dry_run(tmp_path, {**os.environ, "PYTHONPATH": str(ROOT)})
    assert [o for o in found["checks"] if o["status"] != "passed"] == []
    assert code == 0
    figures = {o["name"]: o["figures"] for o in found["checks"]}
    stages = figures["trainer against fp64"]
    assert len(stages) == 24  # in place and three stages, two precisions, three numbers
    assert all(value < 1e-5 for name, value in stages.items() if "float32" in name)
    assert all(value > 1e-7 for name, value in stages.items() if "bfloat16" in name)
    assert figures["weights to an engine"]["zero3_nats"] < 1e-4
