"""The batch script under stand-ins for Slurm: what it starts, when the job is queued again, and a
run that is stopped by its time limit and ends as an undisturbed one.
"""

from __future__ import annotations

import hashlib
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployed import DEPLOY, ROOT, configured, ray_command

from orchestrator.telemetry.metrics import comparable, read_metrics

SCRIPT = DEPLOY / "slurm" / "train.sbatch"
JOB = 100_000 + os.getpid()  # the port follows from it: not that of another test run
PORT = 20_000 + JOB % 10_000
# Starts the tasks of all nodes on this machine, and passes TERM on as srun does.
SRUN = f"""#!{sys.executable}
import os, signal, subprocess, sys
words = sys.argv[1:]
count = next(int(w.split("=")[1]) for w in words if w.startswith("--ntasks="))
command = words[words.index("bash"):]
tasks = []
signal.signal(signal.SIGTERM, lambda *_: [task.terminate() for task in tasks])
for rank in range(count):
    task = {{**os.environ, "SLURM_PROCID": str(rank), "SLURM_CPUS_ON_NODE": "2"}}
    tasks.append(subprocess.Popen(command, env=task))
sys.exit(max(abs(task.wait()) for task in tasks))
"""
SCONTROL = '#!/bin/bash\necho "$*" >>"$LOGS/scontrol"\n'
# What .venv/bin holds where only the script is looked at.
RAY = f"""#!{sys.executable}
import os, pathlib, signal, socket, sys
logs, rank = pathlib.Path(os.environ["LOGS"]), os.environ["SLURM_PROCID"]
token = pathlib.Path(os.environ["RAY_AUTH_TOKEN_PATH"])
(logs / f"token-{{rank}}").write_text(f"{{os.environ['RAY_AUTH_MODE']}} {{token.read_text()}}")
(logs / f"mode-{{rank}}").write_text(f"{{token.stat().st_mode & 0o777:o}}")
def end(*_):
    (logs / f"ended-{{rank}}").touch()
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
head = socket.create_server(("127.0.0.1", int(os.environ["PORT"]))) if rank == "0" else None
(logs / f"ray-{{rank}}").write_text(" ".join(sys.argv[1:]))
while True:
    signal.pause()
"""
PYTHON = """#!/bin/bash
printf '%s\\n' "$*" >"$LOGS/driver"
trap 'echo >"$LOGS/stopped"; exit 8' TERM
until [ -e "$LOGS/ray-1" ]; do sleep 0.05; done
echo >"$LOGS/driving"
[ -z "$ENDS_WITH" ] || exit "$ENDS_WITH"
while :; do sleep 0.05; done
"""
OPTIONS = {
    "--job-name", "--ntasks-per-node", "--exclusive", "--mem", "--gpus-per-node", "--time",
    "--signal", "--requeue", "--open-mode",
}  # fmt: skip


class Job:
    """One start of the batch script, in a process group of its own."""

    def __init__(self, folder: Path, checkout: Path, *overrides: str, **settings: str) -> None:
        self.logs = folder / "logs"
        self.bin = folder / "bin"
        for each in (self.logs, self.bin):
            each.mkdir(exist_ok=True)
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            write_program(self.bin / name, text)
        self.process = subprocess.Popen(
            [SCRIPT, *overrides],
            cwd=checkout,
            env={
                **os.environ, "PATH": f"{self.bin}:{os.environ['PATH']}", "LOGS": str(self.logs),
                "SLURM_JOB_ID": str(JOB), "SLURM_SUBMIT_DIR": str(checkout),
                "SLURM_JOB_NUM_NODES": "2", "HEAD_ADDRESS": "127.0.0.1", "ENDS_WITH": "",
                **settings,
            },
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def log(self, name: str) -> str:
        path = self.logs / name
        return path.read_text().strip() if path.exists() else ""

    def wait_for(self, folder: Path, pattern: str, seconds: float = 60) -> None:
        until = time.monotonic() + seconds
        while not list(folder.glob(pattern)):
            assert self.process.poll() is None, self.output(5)
            assert time.monotonic() < until, f"no {pattern} in {folder}"
            time.sleep(0.05)

    def output(self, seconds: float = 60) -> str:
        return self.process.communicate(timeout=seconds)[0]

    def end(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(10)


def write_program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout whose Ray and Python write down how they are called."""
    programs = tmp_path / "checkout" / ".venv" / "bin"
    programs.mkdir(parents=True)
    write_program(programs / "ray", RAY)
    write_program(programs / "python", PYTHON)
    return tmp_path / "checkout"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[object]:
    jobs: list[Job] = []

    def make(checkout: Path, *overrides: str, **settings: str) -> Job:
        jobs.append(Job(tmp_path, checkout, *overrides, **settings))
        return jobs[-1]

    yield make
    for job in jobs:
        job.end()
    shutil.rmtree(f"/tmp/ray-{JOB}", ignore_errors=True)


def sbatch_options(text: str) -> dict[str, str]:
    """The options in the script's head, which have to come before its first command."""
    head = text.partition("\nset -e")[0]
    assert text.count("\n#SBATCH") == head.count("\n#SBATCH")
    found = dict(line.partition("=")[::2] for line in re.findall(r"^#SBATCH (.*)", head, re.M))
    assert found.keys() <= OPTIONS
    return found


def test_the_options_of_the_job_and_no_misspelt_one():
    text = SCRIPT.read_text()
    options = sbatch_options(text)
    assert "--requeue" in options
    assert options["--ntasks-per-node"] == "1"
    for option in options:
        with pytest.raises(AssertionError):
            sbatch_options(text.replace(f"#SBATCH {option}", f"#SBATCH {option}x"))


def test_ray_runs_on_every_node_with_the_token_of_the_job(start, checkout):
    job = start(checkout, "+experiment=pocket_tiny", "run.dir=runs/a")
    job.wait_for(job.logs, "driving")
    head, worker = (ray_command(shlex.split(job.log(f"ray-{rank}"))) for rank in (0, 1))
    assert (head["head"], head["node_ip_address"], worker["address"]) == (
        True, "127.0.0.1", f"127.0.0.1:{PORT}",
    )  # fmt: skip
    assert head["dashboard_host"] == "127.0.0.1"
    assert (head["block"], worker["block"], worker["num_cpus"]) == (True, True, 2)
    assert job.log("mode-0") == job.log("mode-1") == "600"
    mode, token = job.log("token-1").split()
    assert (mode, len(token)) == ("token", 64)
    assert job.log("token-0") == job.log("token-1")
    words = shlex.split(job.log("driver"))
    assert words[:2] == ["-m", "orchestrator.run"]
    config = configured(*words[2:])
    assert (config.cluster.address, config.cluster.nodes) == (f"127.0.0.1:{PORT}", 2)
    assert (config.resume, config.run.dir) == ("auto", "runs/a")
    warned = int(sbatch_options(SCRIPT.read_text())["--signal"].removeprefix("B:TERM@"))
    assert config.run.grace_seconds is not None
    assert config.run.grace_seconds + 30 <= warned


def test_a_job_at_its_time_limit_saves_itself_and_is_queued_again(start, checkout):
    job = start(checkout, "+experiment=pocket_tiny")
    job.wait_for(job.logs, "driving")
    job.process.send_signal(signal.SIGTERM)  # to the script alone, as --signal=B: does
    job.output()
    assert job.process.returncode == 8
    assert (job.logs / "stopped").exists()
    assert job.log("scontrol") == f"requeue {JOB}"
    assert {p.name for p in job.logs.glob("ended-*")} == {"ended-0", "ended-1"}
    assert list((checkout / "outputs").iterdir()) == []  # the token is gone


@pytest.mark.parametrize("code", [0, 2, 7, 143])
def test_a_job_that_ended_is_not_queued_again(start, checkout, code: int) -> None:
    job = start(checkout, "+experiment=pocket_tiny", ENDS_WITH=str(code))
    job.output()
    assert job.process.returncode == code
    assert job.log("scontrol") == ""
    assert list((checkout / "outputs").iterdir()) == []


def test_a_job_whose_ray_does_not_start_ends(start, checkout):
    write_program(checkout / ".venv" / "bin" / "ray", "#!/bin/bash\nexit 1\n")
    job = start(checkout, "+experiment=pocket_tiny", SLURM_JOB_NUM_NODES="1")
    assert f"Ray's head does not answer at 127.0.0.1:{PORT}" in job.output()
    assert job.process.returncode == 7
    assert job.log("driver") == ""


def test_a_job_whose_time_is_over_before_ray_answers_is_queued_again(start, checkout):
    slow = checkout / ".venv" / "bin" / "ray"
    slow.rename(slow.with_name("real_ray"))
    write_program(
        slow, '#!/bin/bash\ntouch "$LOGS/asked"\nuntil [ -e "$LOGS/go" ]; do sleep 0.05; done\n'
        'exec "$BIN/real_ray" "$@"\n',
    )  # fmt: skip
    job = start(checkout, "+experiment=pocket_tiny", SLURM_JOB_NUM_NODES="1")
    job.wait_for(job.logs, "asked")
    job.process.send_signal(signal.SIGTERM)
    (job.logs / "go").touch()
    job.output()
    assert job.process.returncode == 8
    assert job.log("scontrol") == f"requeue {JOB}"
    assert job.log("driver") == ""


def test_a_checkout_without_an_environment_is_refused(start, checkout):
    (checkout / ".venv" / "bin" / "ray").unlink()
    job = start(checkout)
    assert "fix: run make setup-gpu there, or set REHEARSAL" in job.output()
    assert job.process.returncode == 2


def test_a_first_node_that_others_cannot_reach_is_refused(start, checkout, tmp_path):
    (tmp_path / "bin").mkdir()
    write_program(tmp_path / "bin" / "getent", "#!/bin/bash\necho '127.0.1.1  STREAM node1'\n")
    job = start(checkout, HEAD_ADDRESS="")
    assert "'127.0.1.1', which other nodes cannot reach; fix: set HEAD_ADDRESS" in job.output()
    assert job.process.returncode == 2
    assert job.log("ray-0") == ""


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_a_run_stopped_by_the_time_limit_ends_as_an_undisturbed_one(start, tmp_path):
    """Two real Ray nodes on this machine, with the roles apart on them."""
    tiny = [
        "+experiment=pocket_tiny",
        "stages=[pretrain,sft,reward_model,ppo]",
        "algorithm.iterations=5",
        "cluster.placement=apart",
        "rollout.transport=gloo",
        "run.checkpoint.every_steps=1",
        "run.checkpoint.keep_last=100",
    ]
    once, stopped = tmp_path / "once", tmp_path / "stopped"
    undisturbed = start(ROOT, *tiny, f"run.dir={once}")
    said = undisturbed.output(600)
    assert undisturbed.process.returncode == 0, said
    assert undisturbed.log("scontrol") == ""

    job = start(ROOT, *tiny, f"run.dir={stopped}")
    job.wait_for(stopped / "state", "*-ppo-1", 600)
    job.process.send_signal(signal.SIGTERM)
    said = job.output(300)
    assert job.process.returncode == 8, said
    assert job.log("scontrol") == f"requeue {JOB}"
    assert not (stopped / "checkpoints" / "ppo").exists()

    again = start(ROOT, *tiny, f"run.dir={stopped}")  # the same number, the same arguments
    said = again.output(600)
    assert again.process.returncode == 0, said
    assert again.log("scontrol") == f"requeue {JOB}"  # not once more
    assert results(stopped) == results(once)


def results(folder: Path) -> tuple[object, dict[str, str]]:
    """Metrics, timings apart, and hashes of the published weights."""
    weights = {
        path.parent.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.glob("checkpoints/*/model.safetensors")
    }
    assert weights.keys() >= {"base", "sft", "reward_model", "ppo"}
    return comparable(read_metrics(folder / "metrics.jsonl")), weights
