"""The set-up script refuses what cannot work before it creates or downloads anything."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What the script reads, and a PATH on which `uname` and a Python tell what the test wants."""
    for name in ("deploy/setup.sh", "pyproject.toml", "requirements/gpu.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "bin").mkdir()
    program(tmp_path, "python3", 'case "$*" in -m*) echo "asked for: $*" >&2; exit 1 ;; esac')
    return tmp_path


def program(checkout: Path, name: str, body: str) -> None:
    path = checkout / "bin" / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


def set_up(checkout: Path, variant: str, **environment: str) -> subprocess.CompletedProcess[str]:
    for tool in ("bash", "dirname", "cat", "cksum", "uname"):
        found = shutil.which(tool)
        assert found is not None
        if not (checkout / "bin" / tool).exists():
            (checkout / "bin" / tool).symlink_to(found)
    return subprocess.run(
        [checkout / "deploy" / "setup.sh", variant], env={"PATH": f"{checkout}/bin", **environment},
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip


def test_a_gpu_environment_needs_a_driver_or_the_word_that_an_image_is_built(checkout):
    refused = set_up(checkout, "gpu")
    assert refused.returncode == 2
    assert "no NVIDIA driver" in refused.stderr
    assert "REHEARSAL_NO_DRIVER=1" in refused.stderr
    went_on = set_up(checkout, "gpu", REHEARSAL_NO_DRIVER="1")
    assert "asked for: -m venv .venv" in went_on.stderr
    program(checkout, "nvidia-smi", "")
    assert "asked for: -m venv .venv" in set_up(checkout, "gpu").stderr


def test_a_ready_environment_is_kept_until_its_pins_or_extras_change(checkout):
    program(checkout, "nvidia-smi", "")
    inputs = [(checkout / each).read_bytes() for each in ("pyproject.toml", "requirements/gpu.txt")]
    summed = subprocess.run(["cksum"], input=b"".join(inputs), capture_output=True, check=True)
    (checkout / ".venv").mkdir()
    stamp = checkout / ".venv" / "ready-gpu"
    stamp.write_text(f"{summed.stdout.decode().strip()} test\n")
    assert set_up(checkout, "gpu").returncode == 0
    assert "asked for" in set_up(checkout, "gpu", REHEARSAL_EXTRAS="loggers").stderr
    (checkout / "requirements" / "gpu.txt").write_text("ray==1.0\n")
    assert "asked for" in set_up(checkout, "gpu").stderr


@pytest.mark.parametrize(
    ("variant", "shown", "words"),
    [
        ("tpu", "Linux x86_64", "unknown variant 'tpu'"),
        ("cpu", "Darwin arm64", "vLLM runs on Linux only"),
        ("cpu", "Linux riscv64", "no vLLM build for riscv64"),
    ],
)
def test_an_unknown_variant_or_machine_is_refused(checkout, variant, shown, words):
    system, machine = shown.split()
    program(checkout, "uname", f'[ "$1" = -s ] && echo {system} || echo {machine}')
    done = set_up(checkout, variant)
    assert done.returncode == 2
    assert words in done.stderr
    assert "fix: " in done.stderr
    assert not (checkout / ".venv").exists()
