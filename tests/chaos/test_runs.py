"""Whole runs whose processes are killed and stopped: real Ray, vLLM and DeepSpeed."""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import pytest

from benchmarks import chaos

pytestmark = [pytest.mark.chaos, pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def models(home: Path) -> list[str]:
    return chaos.prepare(home)


def arguments(work: Path, zero: int = 1, ranks: int = 1) -> argparse.Namespace:
    return argparse.Namespace(
        work=work, iterations=6, every_steps=1, probe_seconds=3.0, zero=zero, ranks=ranks,
        engines=1, seed=0, kills=3,
    )  # fmt: skip


@pytest.fixture(scope="module")
def calm(home: Path, models: list[str]) -> tuple[Path, float]:
    return chaos.undisturbed(arguments(home), models)


def unharmed(found: dict[str, object]) -> None:
    assert found["exit_code"] == 0
    assert (found["lost"], found["duplicates"], found["mixed_versions"]) == (0, 0, 0)
    assert found["same_metrics"]
    assert found["same_weights"]


@pytest.mark.parametrize("name", chaos.SIGNALS)
@pytest.mark.parametrize("role", chaos.ROLES)
def test_a_worker_lost_in_a_run_leaves_no_trace(
    home: Path, models: list[str], calm: tuple[Path, float], role: str, name: str
) -> None:
    found = chaos.one_fault(arguments(home), models, calm[0], role, name, random.Random(role))
    unharmed(found)
    assert found["losses"] == 1


@pytest.mark.parametrize("zero", [2, 3])
@pytest.mark.parametrize("name", chaos.SIGNALS)
def test_a_lost_rank_takes_its_group_along(
    home: Path, models: list[str], zero: int, name: str
) -> None:
    args = arguments(home / f"zero-{zero}", zero, 2)
    calm = args.work / "calm"
    if not calm.exists():
        chaos.undisturbed(args, models)
    found = chaos.one_fault(args, models, calm, "policy", name, random.Random(zero))
    unharmed(found)


def test_a_driver_killed_again_and_again(
    home: Path, models: list[str], calm: tuple[Path, float]
) -> None:
    found = chaos.driver(arguments(home), models, *calm)
    unharmed(found)
    assert (found["kills"], found["torn_loads"]) == (3, 0)
