"""The folder of a run's checkpoints as people treat it: copies, renames, deletions, bit flips.

What goes on must be the highest exactly named folder that still is what the run saved under that
name, or a refusal; and nothing that lay there before may be gone afterwards, at most moved.
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from fuzz.exports import begun_run, config_of
from fuzz.frame import Case
from orchestrator.checkpoints.contents import NAME, number_of
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.run import _open
from orchestrator.session.resume import find_start
from workers.process.disk import settle

_STEPS = 3
_REASON = "the checkpoint that the case itself expects was taken, and nothing is gone"
_ENDINGS = ("-backup", " (1)", ".bak", "_copy", "~", ".old", ".superseded", ".broken", "-2", " 2")
_OTHERS = ("000009-ppo-2", "000002-sft-2", "000000-ppo-1", "000007-ppo-7", "000001-ppo-3")
Files = dict[str, bytes]
Treatment = Callable[[Path, random.Random], str]  # the run folder -> what was done


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """`count` run folders, each treated one to three times."""
    rng = random.Random(seed)
    whole = _whole(folder / "made")
    saved = {path.name: _files(path) for path in (whole / "state").iterdir()}
    model = _files(whole / "checkpoints")
    for number in range(count):
        run = folder / f"{number:04d}" / "run"
        shutil.copytree(whole, run)
        done = [rng.choice(_TREATMENTS)(run, rng) for _ in range(rng.choice((1, 1, 2, 3)))]
        yield Case(f"{number}: {', '.join(done)}", _going_on(run, saved, model), _REASON)
        shutil.rmtree(run.parent, ignore_errors=True)


def _whole(path: Path) -> Path:
    runs, known, facts, model = begun_run(path, "one sample\n", 5)
    for step in range(1, _STEPS + 1):
        partial = runs.begin("ppo", step)
        (partial / "policy.0.safetensors").write_bytes(random.Random(step).randbytes(200))
        records = [settle(partial / "policy.0.safetensors")]
        runs.publish(partial, records, known | {"step": step}, facts, [model])
    return path


def _files(folder: Path) -> Files:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def _expected(run: Path, saved: dict[str, Files], model: Files) -> str:
    """Name of the folder that is to be taken; "" = none."""
    kept = {name: text for name, text in model.items() if not name.endswith("README.md")}
    now = _files(run / "checkpoints")
    if any(now.get(name) != text for name, text in kept.items()):
        return ""
    metrics = run / "metrics.jsonl"
    if not metrics.is_file() or metrics.stat().st_size < 60:
        return ""
    state = run / "state"
    there = [path for path in state.iterdir() if path.is_dir()] if state.is_dir() else []
    good = [path for path in there if _files(path) == saved.get(path.name)]
    return max(good, key=number_of).name if good else ""


def _contents(run: Path) -> Counter[str]:
    """Each file of `run` by its content; records that are cut count by their beginning."""
    counts = Counter[str]()
    for path in run.rglob("*"):
        if path.is_file() and path.name != ".lock":
            text = path.read_bytes()
            # samples that were cut in the middle end before the torn one
            cut = {"metrics.jsonl": 60, "rollouts.jsonl": 0}.get(path.name, len(text))
            counts[hashlib.sha256(text[:cut]).hexdigest()] += 1
    return counts


def _going_on(run: Path, saved: dict[str, Files], model: Files) -> Callable[[], None]:
    def go_on() -> None:
        expected, before = _expected(run, saved, model), _contents(run)
        state = run / "state"
        named = [p.name for p in state.iterdir() if p.is_dir()] if state.is_dir() else []
        texts = {name: _files(state / name) for name in named}
        try:
            start = _open(find_start(config_of(run)), config_of(run))
        finally:
            gone = before - _contents(run)
            assert not gone, f"{sum(gone.values())} files are gone"
        if start.saved is None:
            assert not expected, f"began again beside {expected}"
            assert not any(NAME.fullmatch(name) for name in named), "began again beside checkpoints"
            return
        assert start.saved.path.name == expected, f"took {start.saved.path.name}, not {expected}"
        runs = SavedRuns(start.folder)
        runs.begin("ppo", 9).rename(state / f"{start.saved.number + 1:06d}-ppo-9")
        runs.prune(1, 0)
        left = {p.name: _files(p) for p in state.iterdir()}
        copies = [n for n in named if texts[n] != saved.get(n) and texts[n] in saved.values()]
        lost = [name for name in copies if texts[name] not in left.values()]
        assert not lost, f"{lost[0]} was deleted as if it were the run's own"

    return go_on


def _any(run: Path, rng: random.Random) -> Path | None:
    state = run / "state"
    return rng.choice(sorted(state.iterdir())) if state.is_dir() and any(state.iterdir()) else None


def _name_anew(run: Path, rng: random.Random, put: Callable[[Path, Path], object]) -> str:
    path, ending = _any(run, rng), rng.choice(_ENDINGS)
    if path is None:
        return "nothing to name"
    name = rng.choice((path.name + ending, rng.choice(_OTHERS)))
    if not path.with_name(name).exists():
        put(path, path.with_name(name))
    return f"{path.name} put at {name}"


def _copy(run: Path, rng: random.Random) -> str:
    return f"copy: {_name_anew(run, rng, shutil.copytree)}"


def _rename(run: Path, rng: random.Random) -> str:
    return f"rename: {_name_anew(run, rng, Path.rename)}"


def _delete(run: Path, rng: random.Random) -> str:
    path = _any(run, rng)
    if path is None or rng.random() < 0.15:
        shutil.rmtree(run / "state", ignore_errors=True)
        if rng.random() < 0.5:
            (run / "state").mkdir()
        return "state emptied"
    shutil.rmtree(path)
    return f"{path.name} deleted"


def _damage(run: Path, rng: random.Random) -> str:
    folder = rng.choice((run / "state", run / "state", run / "checkpoints", run))
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"]
    if not files:
        return "nothing to damage"
    path, kind = rng.choice(files), rng.choice(("flip", "flip", "flip", "cut", "gone"))
    text = bytearray(path.read_bytes())
    if kind == "gone" or not text:
        path.unlink()
    elif kind == "cut":
        path.write_bytes(text[: rng.randrange(len(text))])
    else:
        text[rng.randrange(len(text))] ^= 1 << rng.randrange(8)
        path.write_bytes(text)
    return f"{kind} {path.relative_to(run)}"


_TREATMENTS: tuple[Treatment, ...] = (_copy, _rename, _delete, _damage, _damage)
