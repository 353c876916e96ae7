"""Cores that a process may use, by its affinity and the quotas of its control groups."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.process import cores


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the control groups of a process that may run on eight cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(8)))
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr(cores, "_OWN", tmp_path / "own")
    return tmp_path


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_control_groups_affinity_alone_counts(groups: Path) -> None:
    assert cores.usable_cores() == 8


@pytest.mark.parametrize(
    ("quota", "expected"), [("max 100000\n", 8), ("150000 100000\n", 1.5), ("900000 50000\n", 8)]
)
def test_a_container_sees_its_quota_at_the_top(groups: Path, quota: str, expected: float) -> None:
    put(groups / "own", "0::/\n")
    put(groups / "cpu.max", quota)
    assert cores.usable_cores() == expected


def test_the_tightest_quota_of_all_levels_counts(groups: Path) -> None:
    put(groups / "own", "0::/user.slice/job\n")
    put(groups / "user.slice" / "cpu.max", "300000 100000\n")
    put(groups / "user.slice" / "job" / "cpu.max", "400000 100000\n")
    assert cores.usable_cores() == 3
    put(groups / "user.slice" / "job" / "cpu.max", "200000 100000\n")
    assert cores.usable_cores() == 2


def test_version_one_has_two_files_and_minus_one_for_no_limit(groups: Path) -> None:
    put(groups / "own", "4:cpu,cpuacct:/job\n3:cpuset:/\n0::/\n")
    put(groups / "cpu" / "job" / "cpu.cfs_period_us", "100000\n")
    for quota, expected in (("-1\n", 8), ("250000\n", 2.5)):
        put(groups / "cpu" / "job" / "cpu.cfs_quota_us", quota)
        assert cores.usable_cores() == expected


def test_a_group_outside_of_the_container_is_passed_over(groups: Path) -> None:
    put(groups / "own", "0::/../../other\n")
    put(groups / "cpu.max", "500000 100000\n")
    assert cores.usable_cores() == 5
