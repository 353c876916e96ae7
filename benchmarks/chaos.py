"""What does a run lose when its processes are killed or stopped?

Runs PPO on the pocket world for some iterations, strikes processes of the run (SIGKILL, SIGSTOP)
and compares what comes out with an undisturbed run: sequences lost or trained on twice, sequences
of mixed policy versions, the final weights, and the seconds until the run had got further.

  faults   each role once by each signal
  driver   the driver itself at random moments; the same command goes on with resume=auto
  random   workers, or all processes (Ray's servers and the driver, too), at random moments for some
           minutes; the same command goes on; how much of the time was worth something
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.common import RESULTS, ROOT, first_line, machine, write_result
from orchestrator.supervision.ray_servers import server_name
from orchestrator.telemetry.metrics import comparable, read_metrics

ROLES = ("rollout", "reward", "reference", "policy", "critic")
SIGNALS = ("SIGKILL", "SIGSTOP")
DRIVER_SIGNALS = ("SIGKILL", "SIGTERM")  # nobody looks after the driver: stopped, it stays so
RECORDED = ("exit_code", "losses", "lost", "duplicates", "mixed_versions")
CLUSTER_LOST, STOPPED = 7, 8  # exit codes
MANY = 100_000  # iterations: more than there is time for
SILENT_SECONDS = 300.0  # without a new metric a run hangs


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--part", choices=("faults", "driver", "random"), default="faults",
                        help="which question")  # fmt: skip
    parser.add_argument("--roles", nargs="+", default=list(ROLES), choices=ROLES,
                        help="faults: whom to strike")  # fmt: skip
    parser.add_argument("--signals", nargs="+", default=list(SIGNALS), choices=SIGNALS,
                        help="faults: how")  # fmt: skip
    parser.add_argument("--kills", type=int, default=20, help="driver: how often it is killed")
    parser.add_argument("--minutes", type=float, default=10.0, help="random: how long")
    parser.add_argument("--mean-seconds", type=float, default=60.0, help="random: between strikes")
    parser.add_argument("--who", choices=("workers", "all"), default="workers",
                        help="random: whom to strike")  # fmt: skip
    parser.add_argument("--iterations", type=int, default=24, help="of PPO; random: until the end")
    parser.add_argument("--every-steps", type=int, default=1, help="iterations between checkpoints")
    parser.add_argument("--probe-seconds", type=float, default=3.0, help="between signs of life")
    parser.add_argument("--zero", type=int, default=1, choices=(1, 2, 3), help="ZeRO stage")
    parser.add_argument("--ranks", type=int, default=1, help="of policy and critic")
    parser.add_argument("--engines", type=int, default=1, help="rollout engines")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--work", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


class Run:
    """One run as a process of its own, and the strikes on it."""

    before: tuple[str, ...] = ()  # words that the command begins with

    def __init__(self, folder: Path, overrides: list[str]) -> None:
        self.folder, self.overrides = folder, overrides
        self.said = folder.with_name(folder.name + ".out")
        self._left: list[psutil.Process] = []  # processes of killed drivers
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "orchestrator.run", "+experiment=pocket_tiny"]
        paths = filter(None, [str(ROOT.parent), os.environ.get("PYTHONPATH")])
        with self.said.open("ab") as said:
            return subprocess.Popen(
                [*self.before, *command, f"run.dir={self.folder}", "resume=auto", *self.overrides],
                cwd=ROOT.parent, stdout=said, stderr=subprocess.STDOUT,
                env=os.environ | {"COLUMNS": "120", "PYTHONPATH": os.pathsep.join(paths)},
            )  # fmt: skip

    def again(self) -> None:
        """The same command once more."""
        self.process = self._start()

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def steps(self) -> int:
        """PPO iterations on record."""
        return steps_on_record(self.folder)

    def written(self) -> int:
        """Bytes of metrics on record."""
        file = self.folder / "metrics.jsonl"
        return file.stat().st_size if file.exists() else 0

    def wait_for(self, what: Callable[[], bool], seconds: float = 900.0) -> bool:
        """Until it holds (True) or the run has ended (False)."""
        until = time.monotonic() + seconds
        while not what():
            if not self.running:
                return what()
            if time.monotonic() > until:
                raise SystemExit(f"nothing happened for {seconds:.0f} s: see {self.said}")
            time.sleep(0.05)
        return True

    def started(self) -> list[psutil.Process]:
        """What the driver started, and they; all of it is to be gone when the run is."""
        try:
            found = psutil.Process(self.process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        self._left += [each for each in found if each not in self._left]
        return found

    def roles(self) -> dict[int, str]:
        """Process ids of the workers that stand now, and are this run's own, with their roles."""
        own = {each.pid for each in self.started()}
        try:
            infos = json.loads((self.folder / "workers.json").read_text(encoding="utf-8"))
        except OSError:
            return {}
        return {w["pid"]: w["role"] for w in infos if w["pid"] in own}

    def workers(self, role: str = "") -> list[int]:
        """Process ids of the workers of one role, or of all."""
        return [pid for pid, found in self.roles().items() if role in ("", found)]

    def kinds(self) -> dict[str, list[psutil.Process]]:
        """All processes of this run by what they are: role, server of Ray's, driver, other."""
        roles = self.roles()
        found = {"driver": [psutil.Process(self.process.pid)]}
        for each in self.started():
            with suppress(psutil.Error):
                kind = roles.get(each.pid) or server_name(each.cmdline()) or "other"
                found.setdefault(kind, []).append(each)
        return found

    def strike_any(self, choose: random.Random) -> str:
        """Signal a process of any kind; says which kind and how, "" where it was gone."""
        with suppress(psutil.Error):
            kinds = self.kinds()
            kind = choose.choice(sorted(kinds))
            name = choose.choice(DRIVER_SIGNALS if kind == "driver" else SIGNALS)
            choose.choice(kinds[kind]).send_signal(signal.Signals[name])
            return f"{kind} {name}"
        return ""

    def strike(self, role: str, name: str, choose: random.Random) -> bool:
        """Signal one worker of this run; False: there is none."""
        pids = self.workers(role)
        if not pids:
            return False
        try:
            os.kill(choose.choice(pids), signal.Signals[name])
        except ProcessLookupError:
            return False
        return True

    def kill_driver(self) -> None:
        """As a machine without memory does it; its children are to follow by themselves."""
        self.started()
        self.process.kill()
        self.process.wait()

    def require_no_orphans(self) -> None:
        """Ray's agents give themselves a minute to report a death to nobody."""
        _, alive = psutil.wait_procs(self._left, timeout=120)
        if alive:
            raise SystemExit(f"orphans: {alive}")

    def end(self) -> int:
        """Wait for its end; stop it if it does not come."""
        try:
            return self.process.wait(timeout=1800)
        except subprocess.TimeoutExpired:
            self.kill_driver()
            raise


def steps_on_record(folder: Path) -> int:
    """PPO iterations that a run has done."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return 0
    with file.open("rb") as opened:
        opened.seek(max(0, file.stat().st_size - (1 << 17)))  # a step takes 10 KB
        text = opened.read().decode("utf-8", errors="replace")
    done = 0
    for line in text.split("\n")[:-1]:
        if '"ppo/score_mean"' in line and line.startswith("{"):
            done = max(done, int(json.loads(line)["step"]))
    return done


@dataclass(frozen=True)
class Outcome:
    """What a run left behind, next to what an undisturbed one does."""

    exit_code: int
    losses: int  # times that the run noticed a lost worker
    lost: int  # sequences neither trained on nor dropped
    duplicates: int  # metrics of a step that are there twice
    mixed_versions: int  # steps whose kept sequences are of more than one version
    same_metrics: bool
    same_weights: bool


def lines(path: Path) -> list[dict]:
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return [json.loads(line) for line in text.splitlines()]


def outcome(run: Run, code: int, calm: Path | None) -> Outcome:
    folder = run.folder
    told = code in (0, STOPPED)
    summary = json.loads((folder / "summary.json").read_text()) if told else {"ledger": {}}
    ledger = Counter(summary["ledger"])
    metrics = read_metrics(folder / "metrics.jsonl")
    times = Counter((r.stage, r.step, r.name) for r in metrics)
    versions: dict[tuple[str, int], set[int]] = {}
    for sample in lines(folder / "samples" / "rollouts.jsonl"):
        versions.setdefault((sample["stage"], sample["step"]), set()).add(sample["policy_version"])
    compared = calm if code == 0 else None
    return Outcome(
        exit_code=code,
        losses=len(lines(folder / "losses.jsonl")),
        lost=ledger["generated"] - ledger["trained"] - ledger["dropped"],
        duplicates=sum(n - 1 for n in times.values()),
        mixed_versions=sum(len(found) > 1 for found in versions.values()),
        same_metrics=compared is not None
        and list(comparable(metrics)) == list(comparable(read_metrics(compared / "metrics.jsonl"))),
        same_weights=compared is not None and weights(folder) == weights(compared),
    )


def weights(folder: Path) -> dict[str, str]:
    files = sorted(folder.glob("checkpoints/*/model.safetensors"))
    return {f.parent.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def settings(args: argparse.Namespace, iterations: int) -> list[str]:
    return [
        f"algorithm.iterations={iterations}",
        "algorithm.evaluate_every=1",
        f"run.checkpoint.every_steps={args.every_steps}",
        f"run.supervision.probe_seconds={args.probe_seconds}",
        "run.supervision.max_restarts=1000",
        f"trainer.zero_stage={args.zero}",
        f"cluster.roles.policy.workers={args.ranks}",
        f"cluster.roles.critic.workers={args.ranks}",
        f"cluster.roles.rollout.workers={args.engines}",
    ]


def prepare(work: Path) -> list[str]:
    """The models that PPO starts from, made once; the overrides that name them."""
    made = work / "models" / "checkpoints"
    if not (made / "reward_model").is_dir():
        run = Run(work / "models", ["stages=[pretrain,sft,reward_model]"])
        if run.end():
            raise SystemExit(f"the models could not be made: {run.said}")
    named = [f"model.checkpoints.{n}={made / n}" for n in ("base", "sft", "reward_model")]
    return ["stages=[ppo]", *named]


def undisturbed(args: argparse.Namespace, models: list[str]) -> tuple[Path, float]:
    """An undisturbed run, and its seconds an iteration."""
    run = Run(args.work / "calm", [*models, *settings(args, args.iterations)])
    run.wait_for(lambda: run.steps() >= 1)
    began, first = time.monotonic(), run.steps()
    run.wait_for(lambda: run.steps() >= args.iterations)
    seconds = (time.monotonic() - began) / max(1, args.iterations - first)
    if run.end():
        raise SystemExit(f"the undisturbed run failed: {run.said}")
    return run.folder, seconds


def one_fault(
    args: argparse.Namespace,
    models: list[str],
    calm: Path,
    role: str,
    name: str,
    choose: random.Random,
) -> dict[str, object]:
    """Strike one worker somewhere in the second or a later iteration."""
    folder = args.work / f"{role}-{name}"
    run = Run(folder, [*models, *settings(args, args.iterations)])
    run.wait_for(lambda: run.steps() >= 1)
    time.sleep(choose.uniform(0.0, 1.0))
    before = run.steps()
    struck, at = run.strike(role, name, choose), time.monotonic()
    run.wait_for(lambda: bool(lines(folder / "losses.jsonl")))
    noticed, reached = time.monotonic() - at, run.steps()  # a step may still have ended meanwhile
    run.wait_for(lambda: run.steps() > reached)
    recovered = time.monotonic() - at
    code = run.end()
    return {
        "role": role, "signal": name, "struck": struck, "after_steps": before,
        "noticed_seconds": noticed, "recovery_seconds": recovered,
        **asdict(outcome(run, code, calm)),
    }  # fmt: skip


def faults(args: argparse.Namespace, models: list[str], calm: Path) -> dict[str, Any]:
    choose, found = random.Random(args.seed), []
    for name in args.signals:
        for role in args.roles:
            found.append(one_fault(args, models, calm, role, name, choose))
            print(json.dumps(found[-1]), flush=True)
    return {"faults": found}


def driver(
    args: argparse.Namespace, models: list[str], calm: Path, each: float
) -> dict[str, object]:
    """Kill the driver at random moments, from its start on; go on each time."""
    choose = random.Random(args.seed)
    run = Run(args.work / "driver", [*models, *settings(args, args.iterations)])
    kills = 0
    while kills < args.kills and run.running:
        # Half of the moments fall into starting and loading, half between steps 1 and the end.
        target = run.steps() + choose.choice([0, 1])
        run.wait_for(lambda: bool(run.workers()))
        run.wait_for(lambda target=target: run.steps() >= target)
        time.sleep(choose.uniform(0.0, 2 * each))
        if run.running and run.steps() < args.iterations:
            run.kill_driver()
            kills += 1
            print(f"killed {kills} times, {run.steps()} steps on record", flush=True)
            run.again()
    code = run.end()
    run.require_no_orphans()
    broken = [p.name for p in (run.folder / "state").glob("*.broken")]
    skipped = run.said.read_text(errors="replace").count("skipped 0")
    return {"kills": kills, "torn_loads": len(broken), "skipped_checkpoints": skipped,
            **asdict(outcome(run, code, calm))}  # fmt: skip


def step_seconds(folder: Path) -> dict[int, float]:
    """Seconds from the end of one step to that of the next, by the newest traces of a run.

    Each process that works on a run has a clock and a file of its own. Of a step that was done
    again the last time counts.
    """
    took: dict[int, float] = {}
    for file in sorted(folder.glob("trace/spans*.json"), key=_number):
        ends: list[tuple[float, int]] = []
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            if '"name": "record"' in line and '"ph": "X"' in line:
                with suppress(ValueError):  # the last line of a killed process
                    span = json.loads(line.rstrip(","))
                    ends.append(((span["ts"] + span["dur"]) / 1e6, span["args"]["step"]))
        ordered = itertools.pairwise(sorted(ends))
        took |= {step: end - before for (before, _), (end, step) in ordered}
    return took


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("spans").removeprefix("-") or 0)


def committed_seconds(took: dict[int, float], first: int, last: int) -> float:
    """Seconds of the steps after `first` up to `last`, each as long as those around it.

    Responses grow while a policy learns, so that steps of another run, or of its beginning, are no
    measure. A step that was struck, waited for a worker, or was the first one of its process,
    counts as the median of its neighbours.
    """
    own = [took.get(step, math.inf) for step in range(first + 1, last + 1)]
    near = [own[max(0, n - 20) : n + 21] for n in range(len(own))]
    usual = [statistics.median([*filter(math.isfinite, around)] or [0.0]) for around in near]
    return sum(map(min, own, usual))


def ways_to_end(struck: set[str]) -> set[int]:
    """Exit codes of a run that goes on by the same command, after these strikes."""
    ends = {CLUSTER_LOST}
    if "driver SIGKILL" in struck:
        ends |= {-signal.SIGKILL}
    if "driver SIGTERM" in struck:  # saved; before there is something to save; before it hears it
        ends |= {STOPPED, 128 + signal.SIGTERM, -signal.SIGTERM}
    return ends


@dataclass
class Struck:
    """What happens to a run that is struck at exponential intervals."""

    run: Run
    choose: random.Random
    mean_seconds: float
    everyone: bool
    strikes: Counter[str] = field(default_factory=Counter)
    ends: Counter[int] = field(default_factory=Counter)  # exit codes after which it was restarted
    took: dict[int, float] = field(default_factory=dict)  # seconds by step

    def go_on(self, seconds: float) -> bool:
        """Strike it for so long, start it again where it ends; False: it ended in no known way."""
        until, due = time.monotonic() + seconds, self._next()
        written, grown = 0, time.monotonic()
        here: set[str] = set()  # what befell the process that runs now
        while time.monotonic() < until:
            self.run.started()
            if not self.run.running:
                if self.run.process.returncode not in ways_to_end(here):
                    return False
                self._again()
                here = set()
            elif time.monotonic() >= due:
                here.add(self._strike())
                due = self._next()
            if self.run.written() != written:
                written, grown = self.run.written(), time.monotonic()
            if time.monotonic() - grown > SILENT_SECONDS:
                raise SystemExit(f"no new metric for {SILENT_SECONDS:.0f} s: {self.run.said}")
            time.sleep(0.5)
        return self.run.running or self.run.process.returncode in ways_to_end(here)

    def _next(self) -> float:
        return time.monotonic() + self.choose.expovariate(1 / self.mean_seconds)

    def _strike(self) -> str:
        if self.everyone:
            struck = self.run.strike_any(self.choose)
        else:
            role, name = self.choose.choice(ROLES), self.choose.choice(SIGNALS)
            struck = f"{role} {name}" if self.run.strike(role, name, self.choose) else ""
        if struck:
            self.strikes[struck] += 1
            print(f"{struck} after {self.run.steps()} steps", flush=True)
        return struck

    def _again(self) -> None:
        self.ends[self.run.process.returncode] += 1
        print(f"ended with {self.run.process.returncode}", flush=True)
        self.took |= step_seconds(self.run.folder)
        self.run.again()


def undisturbed_until(args: argparse.Namespace, models: list[str], step: int) -> Path:
    """A run of the same configuration that is past this step; one that was stopped goes on."""
    if steps_on_record(args.work / "calm") > step:
        return args.work / "calm"
    run = Run(args.work / "calm", [*models, *settings(args, MANY)])
    run.wait_for(lambda: run.steps() > step, seconds=4 * 3600)
    run.process.send_signal(signal.SIGTERM)
    if run.end() != STOPPED:
        raise SystemExit(f"the undisturbed run failed: {run.said}")
    return run.folder


def at_random(args: argparse.Namespace, models: list[str]) -> dict[str, object]:
    """Strike processes at exponential intervals; count the seconds of steps that were kept."""
    run = Run(args.work / f"random-{args.who}-{args.seed}", [*models, *settings(args, MANY)])
    run.wait_for(lambda: run.steps() >= 1)
    began, first = time.monotonic(), run.steps()
    struck = Struck(run, random.Random(args.seed), args.mean_seconds, args.who == "all")
    survived = struck.go_on(60 * args.minutes)
    wall = time.monotonic() - began
    if run.running:
        run.process.send_signal(signal.SIGTERM)
    code = run.end()
    run.require_no_orphans()
    last = run.steps() - 1  # a run that was not stopped between two steps may miss part of the last
    struck.took |= step_seconds(run.folder)
    calm = undisturbed_until(args, models, last)
    both = [
        [r for r in comparable(read_metrics(each / "metrics.jsonl")) if r.step <= last]
        for each in (run.folder, calm)
    ]
    found = asdict(outcome(run, code, None))
    return {
        "wall_seconds": wall, "steps": last - first,
        "effective_training_time": committed_seconds(struck.took, first, last) / wall,
        "by_the_pace_of_the_undisturbed_run":
            committed_seconds(step_seconds(calm), first, last) / wall,
        "strikes": dict(struck.strikes), "restarts_of_the_command": struck.ends.total(),
        "exit_codes": dict(struck.ends), "survived": survived,
        "exact": both[0] == both[1] and last > first, **{k: found[k] for k in RECORDED},
    }  # fmt: skip


def beside_calm(args: argparse.Namespace, models: list[str]) -> dict[str, Any]:
    """The parts that compare with a run that nothing disturbs."""
    calm, each = undisturbed(args, models)
    print(f"undisturbed: {each:.2f} s an iteration", flush=True)
    paced: dict[str, Any] = {"undisturbed_seconds_a_step": each}
    if args.part == "driver":
        return paced | driver(args, models, calm, each)
    found = faults(args, models, calm)
    seconds = [fault["recovery_seconds"] for fault in found["faults"]]
    print(f"recovery: median {statistics.median(seconds):.1f} s, most {max(seconds):.1f} s")
    return paced | found


def main() -> None:
    args = arguments()
    args.work = args.work.resolve()
    models = prepare(args.work)
    found = at_random(args, models) if args.part == "random" else beside_calm(args, models)
    given = {k: v for k, v in vars(args).items() if k not in ("work", "out")}
    result = {"question": first_line(__doc__), "machine": machine(), "settings": given,
              **found}  # fmt: skip
    print(json.dumps(found, indent=1))
    print(f"written to {write_result(args.out, f'chaos_{args.part}', result)}")


if __name__ == "__main__":
    main()
