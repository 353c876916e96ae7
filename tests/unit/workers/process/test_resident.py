"""The most memory of a process since it was last asked."""

from __future__ import annotations

from pathlib import Path

import pytest

from workers.process import resident

_BLOCK = 64 * 2**20


def test_a_peak_is_that_since_the_previous_call() -> None:
    resident.peak_resident()
    before = resident.peak_resident()
    block = bytearray(b"x") * _BLOCK
    held = resident.peak_resident()
    assert held >= before + 0.9 * _BLOCK
    del block
    assert resident.peak_resident() >= before + 0.9 * _BLOCK  # it was held when the call began
    assert resident.peak_resident() < before + 0.5 * _BLOCK


def test_a_kernel_that_tells_nothing_or_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resident, "_CLEAR", tmp_path / "none" / "clear_refs")
    assert resident.peak_resident() >= resident.peak_resident() > 0
    monkeypatch.setattr(resident, "_STATUS", tmp_path / "status")
    assert resident.peak_resident() == 0
    (tmp_path / "status").write_text("VmRSS: 12 kB\n")
    assert resident.peak_resident() == 0
    (tmp_path / "status").write_text("VmPeak: 9 kB\nVmHWM:   7 kB\nVmRSS: 5 kB\n")
    assert resident.peak_resident() == 7 * 1024
