"""What grows in a long run? Memory and descriptors of every process, and every file, by iteration.

Runs PPO on the pocket world and looks at the run's processes and files while it goes on. Growth is
between two parts of the run: its third tenth, when everything is warm, and its last one.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.chaos import Run
from benchmarks.common import RESULTS, first_line, machine, write_result


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one process."""

    memory_mib: float  # resident at the end
    grown_percent: float  # between the two parts
    grown_kib_per_iteration: float
    descriptors: int  # at the end
    grown_descriptors: int


@dataclass(frozen=True, slots=True)
class Sample:
    """What one process had at one iteration."""

    iteration: int
    memory: int
    descriptors: int


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=first_line(__doc__))
    parser.add_argument("--iterations", type=int, default=2000, help="of PPO")
    parser.add_argument("--every-seconds", type=float, default=2.0, help="between two looks")
    parser.add_argument("--work", type=Path, required=True, help="folder for the run")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of results")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    run = Run(
        options.work / "run",
        [
            "stages=[pretrain,sft,reward_model,ppo]", f"algorithm.iterations={options.iterations}",
            "algorithm.evaluate_every=100", "run.checkpoint.stage_steps.ppo=20",
        ],
    )  # fmt: skip
    samples: dict[str, list[Sample]] = defaultdict(list)
    files: dict[str, list[tuple[int, int]]] = defaultdict(list)
    while run.running:
        time.sleep(options.every_seconds)
        at = run.steps()
        if at:
            _look(run, at, samples)
            for name, size in _sizes(run.folder).items():
                files[name].append((at, size))
    found = {
        "machine": machine(),
        "exit_code": run.process.wait(),
        "iterations": run.steps(),
        "processes": {n: asdict(g) for n, s in samples.items() if (g := _growth(s))},
        "bytes_per_iteration": {n: b for n, s in files.items() if (b := round(_slope(s), 1))},
    }
    print(write_result(options.out, "long_run", found).read_text(encoding="utf-8"))


def _look(run: Run, at: int, samples: dict[str, list[Sample]]) -> None:
    try:
        driver = psutil.Process(run.process.pid)
        everyone = [driver, *driver.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for process in everyone:
        try:
            with process.oneshot():
                name = "driver" if process == driver else _name(process)
                sample = Sample(at, process.memory_info().rss, process.num_fds())
        except psutil.NoSuchProcess:
            continue
        samples[f"{name} {process.pid}"].append(sample)


def _name(process: psutil.Process) -> str:
    words = process.cmdline()
    scripts = [Path(word).name for word in words if word.endswith(".py")]
    name = scripts[0] if scripts else Path(words[0]).name if words else process.name()
    return name.partition(".")[0]  # a role's process is called after what it does just now


def _sizes(folder: Path) -> dict[str, int]:
    """Bytes of each file; the newest of each kind in folders that are replaced."""
    sizes: dict[str, int] = {}
    for path in sorted(folder.rglob("*")):
        try:
            if path.is_file():
                inside = path.relative_to(folder)
                name = f"state/*/{path.name}" if inside.parts[0] == "state" else str(inside)
                sizes[name] = path.stat().st_size
        except OSError:  # a checkpoint that has just gone
            continue
    return sizes


def _growth(samples: list[Sample]) -> Growth | None:
    last = samples[-1].iteration
    early = [s for s in samples if 0.2 * last <= s.iteration <= 0.3 * last]
    late = [s for s in samples if s.iteration >= 0.9 * last]
    if not early or not late or samples[0].iteration > 0.2 * last:
        return None  # a process that came later
    before, after = (statistics.median(s.memory for s in part) for part in (early, late))
    opened = [statistics.median_low(s.descriptors for s in part) for part in (early, late)]
    apart = statistics.mean(s.iteration for s in late) - statistics.mean(s.iteration for s in early)
    return Growth(
        memory_mib=round(after / 2**20, 1),
        grown_percent=round(100 * (after / before - 1), 2),
        grown_kib_per_iteration=round((after - before) / 1024 / max(apart, 1.0), 3),
        descriptors=opened[1],
        grown_descriptors=opened[1] - opened[0],
    )


def _slope(sizes: list[tuple[int, int]]) -> float:
    (first, before), (last, after) = sizes[len(sizes) // 3], sizes[-1]
    return (after - before) / max(last - first, 1)


if __name__ == "__main__":
    main()
