"""The Dockerfiles are clean, copy what a run needs, and send nothing else to the builder."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from deployed import DEPLOY, ROOT, configured

VARIANTS = ("cpu", "gpu")


def steps(variant: str) -> list[tuple[str, str]]:
    """(instruction, rest) of each step of a Dockerfile."""
    text = (DEPLOY / "docker" / f"Dockerfile.{variant}").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    found = [step.partition(" ") for step in "\n".join(lines).replace("\\\n", " ").splitlines()]
    return [(name, rest) for name, _, rest in found if name]


def copied(variant: str) -> list[str]:
    words = [shlex.split(rest) for name, rest in steps(variant) if name == "COPY"]
    return [word for step in words for word in step[:-1] if not word.startswith("--")]


def step(variant: str, name: str) -> str:
    [rest] = [rest for each, rest in steps(variant) if each == name]
    return rest


def lint(text: str) -> subprocess.CompletedProcess[str]:
    tool = Path(sys.executable).with_name("hadolint")
    return subprocess.run([tool, "-"], input=text, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("variant", VARIANTS)
def test_hadolint_takes_the_file_and_no_misspelt_instruction(variant: str) -> None:
    text = (DEPLOY / "docker" / f"Dockerfile.{variant}").read_text()
    assert lint(text).stdout == ""
    broken = text.replace("\nUSER ", "\nUSRE ")
    assert broken != text
    assert lint(broken).returncode != 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_builder_gets_what_is_copied_and_nothing_else(variant: str) -> None:
    rules = (ROOT / ".dockerignore").read_text().split("\n")
    assert rules[1] == "*"
    assert [rule[1:] for rule in rules if rule.startswith("!")] == copied(variant)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_environment_is_made_as_for_a_run(variant: str) -> None:
    [made] = [rest for name, rest in steps(variant) if name == "RUN" and "setup.sh" in rest]
    *settings, script, chosen = shlex.split(made)
    assert (script, chosen) == ("deploy/setup.sh", variant)
    names = {each.partition("=")[0] for each in settings}
    assert names <= set(re.findall(r"REHEARSAL_\w+", (DEPLOY / "setup.sh").read_text()))
    assert ("REHEARSAL_NO_DRIVER" in names) == (variant == "gpu")
    assert f"requirements/{variant}.txt" in (DEPLOY / "setup.sh").read_text().replace(
        "$variant", variant
    )
    [home] = [rest for name, rest in steps(variant) if name == "WORKDIR"]
    places = step(variant, "ENV") + "".join(r for n, r in steps(variant) if n == "RUN")
    assert places.count(f"{home}/.venv/bin:$PATH") == 2  # for login shells and all others


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_command_of_the_image_composes(variant: str) -> None:
    python, dash_m, module, *overrides = json.loads(step(variant, "CMD"))
    assert (python, dash_m, module) == ("python", "-m", "orchestrator.run")
    expected = {"cpu": "cpu", "gpu": "cuda"}[variant]
    assert configured(*overrides).cluster.accelerator.value == expected


def test_the_copied_files_are_enough_to_compose_a_run(tmp_path: Path) -> None:
    for name in copied("gpu"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            shutil.copy(ROOT / name, tmp_path / name)
    done = subprocess.run(
        [sys.executable, "-m", "orchestrator.run", *json.loads(step("gpu", "CMD"))[3:],
         "--cfg", "job"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "accelerator: cuda" in done.stdout
