"""Every command of docs/deploy.md is read by the program that it calls, or by its stand-in."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from click.exceptions import ClickException
from deployed import DEPLOY, ROOT, configured, configured_by, ray_command
from hydra.errors import HydraException

from benchmarks.gpu.command import options as gpu_options

PAGE = (ROOT / "docs" / "deploy.md").read_text()
BLOCKS = re.findall(r"^```\n(.*?)^```", PAGE, flags=re.M | re.S)
COMMANDS = [line for block in BLOCKS for line in block.splitlines()]
IMAGES = {"rehearsal:cpu": "cpu", "rehearsal:gpu": "gpu"}
# Makes the Secret that `kubectl create secret generic NAME --from-file=KEY=FILE` would make.
KUBECTL = """#!/usr/bin/env python3
import base64, json, sys
create, secret, generic, name, source = sys.argv[1:]
assert (create, secret, generic) == ("create", "secret", "generic"), sys.argv
flag, key, path = source.split("=")
assert flag == "--from-file", source
data = {key: base64.b64encode(open(path, "rb").read()).decode()}
print(json.dumps({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": data}))
"""


def ray(words: list[str]) -> None:
    options = ray_command(words)
    if "cluster_config_file" in options:
        assert (ROOT / options["cluster_config_file"]).is_file()
    if words[0] == "exec":
        configured_by(options["cmd"])


def make(words: list[str]) -> None:
    [target] = words
    assert f"\n{target}:" in (ROOT / "Makefile").read_text()


def sbatch(words: list[str]) -> None:
    options = [word for word in words if word.startswith("--")]
    script, *overrides = words[len(options) :]
    assert script == "deploy/slurm/train.sbatch"
    assert configured(*overrides).cluster.nodes == int(options[0].removeprefix("--nodes="))


def kubectl(words: list[str]) -> None:
    verb, *rest = words
    if verb in ("apply", "delete"):
        flag, file = rest
        assert flag == "-f"
        assert (ROOT / file).is_file()
    elif verb == "logs":
        [job] = yaml.safe_load_all((DEPLOY / "kuberay" / "rayjob.yaml").read_text())
        assert rest == ["--follow", f"job/{job['metadata']['name']}"]
    else:
        assert verb == "exec"
        [cluster] = yaml.safe_load_all((DEPLOY / "kuberay" / "raycluster.yaml").read_text())
        assert f"service/{cluster['metadata']['name']}-head-svc" in rest
        [container] = cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
        assert f"--container={container['name']}" in rest
        configured_by(shlex.join(rest[rest.index("--") + 1 :]))


def docker(words: list[str]) -> None:
    verb, *rest = words
    if verb == "build":
        file, tag, context = rest[1], rest[3], rest[4]
        assert rest[0::2] == ["-f", "-t", "."]
        assert (ROOT / context / file).is_file()
        assert IMAGES[tag] == file.rpartition(".")[2]
        return
    assert verb == "run"
    image = next(index for index, word in enumerate(rest) if word in IMAGES)
    assert any(word.startswith("--shm-size=") for word in rest[:image])
    assert ("--gpus=all" in rest) == (IMAGES[rest[image]] == "gpu")
    if rest[image + 1 :]:
        configured_by(shlex.join(rest[image + 1 :]))


def python(words: list[str]) -> None:
    if words[1].startswith("benchmarks.gpu_"):
        assert importlib.util.find_spec(words[1]) is not None
        gpu_options("", 1.0).parse_args(words[2:])
        return
    assert words[0] == "-m"
    assert words[1] in ("orchestrator.doctor", "orchestrator.run")
    configured(*words[2:])


def chmod(words: list[str]) -> None:
    mode, file = words
    assert int(mode, 8) & 0o077 == 0, "a run refuses a token that other users may read"
    assert file == "~/.ray/auth_token", "where Ray writes and looks for it"


READERS: dict[str, Callable[[list[str]], None]] = {
    "ray": ray, "make": make, "sbatch": sbatch, "kubectl": kubectl, "docker": docker,
    "python": python, "chmod": chmod,
}  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_is_read(command: str, tmp_path: Path) -> None:
    if "|" in command:
        made = secret_made_by(command, tmp_path)
        kubernetes_validate.validate(made, "1.33", strict=True)
        return
    words = shlex.split(command)
    while "=" in words[0]:
        words.pop(0)
    READERS[Path(words[0]).name](words[1:])


def secret_made_by(command: str, folder: Path) -> dict[str, object]:
    """Run the command with a stand-in for kubectl on PATH; returns the Secret that it makes."""
    program = folder / "kubectl"
    program.write_text(KUBECTL)
    program.chmod(0o755)
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_the_secret_is_the_one_that_the_clusters_read(tmp_path):
    [command] = [each for each in COMMANDS if "create secret" in each]
    secret = secret_made_by(command, tmp_path)
    data = secret["data"]
    assert isinstance(data, dict)
    assert list(data) == ["auth_token"]
    token = subprocess.run(
        ["base64", "-d"], input=data["auth_token"], capture_output=True, text=True, check=True
    ).stdout
    assert re.fullmatch(r"[0-9a-f]{64}", token)
    for name in ("rayjob.yaml", "raycluster.yaml"):
        assert (
            f"secretName: {secret['metadata']['name']}}}"
            in (  # type: ignore[index]
                DEPLOY / "kuberay" / name
            ).read_text()
        )


def test_the_page_and_the_folder_name_the_same_files():
    named = set(re.findall(r"\]\(\.\./deploy/([\w./]+\.\w+)\)", PAGE))
    files = {
        str(path.relative_to(DEPLOY))
        for folder in ("ray", "kuberay", "slurm")
        for path in (DEPLOY / folder).iterdir()
    }
    assert files - named == {"kuberay/storage_and_network.yaml"}
    assert "deploy/kuberay/storage_and_network.yaml" in PAGE


def test_readme_names_the_page():
    assert "[docs/deploy.md](docs/deploy.md)" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize(
    "command",
    ["ray up --yse deploy/ray/aws.yaml", "ray up deploy/ray/asw.yaml", "make setup-gup",
     "sbatch --nodes=4 deploy/slurm/train.sbatch +experiment=instructgpt_70b run.dri=x",
     "docker build -f deploy/docker/Dockerfile.gpu -t rehearsal:cpu .",
     "kubectl apply -f deploy/kuberay/ray_job.yaml"],
)  # fmt: skip
def test_a_misspelt_word_in_a_command_is_refused(command: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, ClickException, HydraException)):
        test_each_command_is_read(command, tmp_path)
