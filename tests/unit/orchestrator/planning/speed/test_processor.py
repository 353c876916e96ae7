"""Advice of the plan on bf16, from what the kernel says of the processor."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.command_line.composition import compose_run
from orchestrator.planning.speed import processor
from orchestrator.planning.speed.processor import amx_gain, bf16_unit, precision_notes

AMX = "processor : 0\nflags\t\t: fpu avx512_bf16 amx_bf16 amx_tile\nbugs :\n\nprocessor : 1\n"
AVX512 = "processor : 0\nflags\t\t: fpu avx2 avx512_bf16\n"
OLD = "processor : 0\nflags\t\t: fpu sse avx2\nmodel name : amx_bf16 avx512_bf16\n"
ARM = "processor : 0\nFeatures\t: fp asimd bf16 sve\n"


@pytest.mark.parametrize(
    ("text", "unit"),
    [(AMX, "AMX"), (AVX512, "AVX512-BF16"), (ARM, "BF16"), (OLD, ""), ("", ""), ("flags", "")],
)
def test_instructions_are_those_of_the_flags_alone(text: str, unit: str) -> None:
    assert bf16_unit(text) == unit


def test_the_gain_lies_between_its_neighbours_and_stays_at_the_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processor, "_AMX_GAIN", {100: 1.0, 10_000: 3.0, 40_000: 4.0})
    assert [amx_gain(n) for n in (1, 100, 1_000, 10_000, 20_000, 40_000, 10**9)] == pytest.approx(
        [1.0, 1.0, 2.0, 3.0, 3.5, 4.0, 4.0]
    )


def notes(tmp_path: Path, text: str, parameters: int | None, *overrides: str) -> str:
    path = tmp_path / "cpuinfo"
    path.write_text(text)
    config = compose_run(["+experiment=pocket", *overrides])
    return "\n".join(precision_notes(config, parameters, path))


def test_amx_is_advised_for_models_that_gain_by_it(tmp_path: Path) -> None:
    told = notes(tmp_path, AMX, 70_726_144, "trainer=zero2")
    assert "this CPU has AMX: trainer=zero2_bf16 is about 2.1 times as fast" in told
    assert notes(tmp_path, AMX, 904_576) == ""
    assert notes(tmp_path, AMX, None) == ""
    assert notes(tmp_path, AVX512, 70_726_144) == ""
    assert notes(tmp_path, AMX, 70_726_144, "trainer=zero1_bf16") == ""


def test_bf16_of_a_small_model_is_said_to_be_slower(tmp_path: Path) -> None:
    told = notes(tmp_path, AMX, 904_576, "trainer=zero1_bf16")
    assert "times as long as fp32" in told
    assert "trainer=zero1 is faster" in told


@pytest.mark.parametrize("choice", ["trainer=zero3_bf16", "rollout.precision=bf16"])
def test_emulated_bf16_is_warned_of(tmp_path: Path, choice: str) -> None:
    told = notes(tmp_path, OLD, 70_726_144, choice, "rollout.parity_tolerance=0.3")
    assert "this CPU has no bf16 instructions" in told
    assert notes(tmp_path, OLD, 70_726_144) == ""


def test_gpus_and_unknown_processors_are_left_alone(tmp_path: Path) -> None:
    assert notes(tmp_path, OLD, 70_726_144, "cluster=one_gpu") == ""
    config = compose_run(["+experiment=pocket", "trainer=zero1_bf16"])
    assert precision_notes(config, 70_726_144, tmp_path / "none") == []
