"""Saved runs that were damaged, read by an export, by a run that goes on, and by a report.

Some damage is found by the hashes; of the rest the manifest is written again, as if the file had
been saved so. Going on with the checkpoint before, and saying why, is as right as a refusal.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from fakes.progress import progress
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from fuzz.frame import Case
from orchestrator import export
from orchestrator.checkpoints import model_folder
from orchestrator.checkpoints.config_changes import plain_config
from orchestrator.checkpoints.contents import entry_of
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.run import RunConfig
from orchestrator.config.schema import Config
from orchestrator.report.build import write_report
from orchestrator.roles.interfaces import Rollouts
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.sealed_json import seal, unseal
from orchestrator.session.resume import find_start, package_versions
from orchestrator.stages.ppo import saved_rollouts
from orchestrator.stages.ppo.ledger import from_ranges
from orchestrator.stages.ppo.queue import RolloutQueue
from workers.pocket.model import create_model
from workers.records.arrays import Ragged
from workers.records.generation import RolloutBatch
from workers.records.specs import OptimizerSpec, TrainModelSpec
from workers.training.state_files import Piece, StateFiles, write_state

_OPTIMIZER = OptimizerSpec(1e-2, (0.9, 0.95), 1e-5, 0.1, 0.5, "linear", 2, 0.1, 8)
_KINDS = ("master", "exp_avg", "exp_avg_sq")
_FALLBACK = "refused, or the checkpoint before is taken and the note says why"
_NOT_ASKED = "not read here, or a note or a default stands in, as for files of earlier versions"
_VALUES: list[Any] = [
    None, True, -1, 0, 0.5, 10**30, 2**63, 1e308, "", "x", "../x", "/etc/passwd", "\x00", [], [1],
    [[]], {}, {"a": 1}, [None, None], [0, 10**15],
]  # fmt: skip
_TEXTS = (b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 5_000, b"{} {}")

Damage = Callable[[Path, random.Random], str]  # the newest checkpoint -> what was done


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """`count` damaged saved runs."""
    rng = random.Random(seed)
    # trainers noted a path that is gone, as in a run folder that was moved
    whole = _whole(folder / "made").rename(folder / "whole")
    for number in range(count):
        run = folder / f"{number:04d}" / "run"
        shutil.copytree(whole, run)
        damage, read = _DAMAGES[number % len(_DAMAGES)], rng.choice((_resume, _resume, _export))
        name = damage(run / "state" / "000002-ppo-2", rng)
        if number % 25 == 24 and "metrics" not in name:
            read = _report
        passes = any(each in name for each in _NOT_READ[read])
        reason = _NOT_ASKED if passes else _FALLBACK if read is _resume else ""
        yield Case(
            f"{number}: {read.__name__.strip('_')}: {name}", _reading(read, run, passes), reason
        )
        shutil.rmtree(run.parent, ignore_errors=True)


def _reading(read: Callable[[Path], int], run: Path, passes: bool) -> Callable[[], None]:
    def reads() -> None:
        if read(run) == 2 and not passes:
            raise AssertionError("taken as if it were whole")

    return reads


def config_of(run: Path) -> Config:
    return Config(experiment="pocket", resume="auto", run=RunConfig(dir=str(run)))


def _whole(path: Path) -> Path:
    """A run of two checkpoints in the middle of PPO; files of two ranks, and sequences ahead."""
    runs, known, facts, model = begun_run(path)
    for step in (1, 2):
        partial = runs.begin("ppo", step)
        roles = ("policy", "critic")
        records = [write for role in roles for write in _state(partial, role, model.parent)]
        records.append(saved_rollouts._write(partial / "ahead-2-0.safetensors", _sequences()))
        known |= {"step": step, "own": _noted()}
        runs.publish(partial, records, known, facts, [model])
    return path


def begun_run(
    path: Path, samples: str = "", kept: int = 0
) -> tuple[SavedRuns, dict[str, Any], dict[str, Any], Path]:
    """A run in its first PPO stage: progress and facts of a checkpoint, and its model's manifest.

    Args:
        path: The run folder to make.
        samples: Text of samples/rollouts.jsonl.
        kept: Bytes that it had at the checkpoint.
    """
    run = RunFolder(path).create()
    run.metrics.write_text('{"stage": "ppo", "step": 1, "name": "ppo/kl_sequence", "value": 1}\n')
    run.rollouts.write_text(samples)
    run.config.write_text("seed: 0\n")
    sft = model_folder.publish(run.checkpoints / "sft", small_model, {"stage": "sft"})
    known = progress("ppo", 1, **{"metrics.jsonl": 60, "samples/rollouts.jsonl": kept})
    known |= {"finished": ["sft"], "checkpoints": {"sft": "checkpoints/sft"}}
    facts = {"config": plain_config(config_of(run.path)), "versions": package_versions()}
    return SavedRuns(run), known, facts, sft / model_folder.MANIFEST


def small_model(path: str | Path) -> None:
    """The smallest model that everything here reads."""
    create_model(
        path, hidden_size=16, layers=1, heads=2, kv_heads=1, intermediate_size=24,
        max_position_embeddings=32, tie_word_embeddings=False, seed=0,
    )  # fmt: skip


def _noted() -> dict[str, Any]:
    account = {"generated": 8, "trained": 5, "dropped": {"late": 1}, "ranges": [[0, 7]]}
    return {
        "version": 3,
        "counters": {"next_id": 8, "next_version": 3},
        "kl": None,
        "ledger": account | {"open": [[6, 7]]},
        "scoring": {"deviation": 0.5, "lost": 0},
        "documents_used": 0,
        "ahead": [{"iteration": 2, "ids": [[6, 7]]}],
    }


def _state(folder: Path, role: str, origin: Path) -> Iterator[Any]:
    weights = load_file(origin / "model.safetensors")
    spec = asdict(TrainModelSpec(str(origin), _OPTIMIZER))
    facts = {"steps": 4, "kinds": list(_KINDS[1:]), "numbers": {"step": 4.0}, "role": role}
    for rank in (0, 1):
        tensors, pieces = {"rng/cpu": torch.get_rng_state()}, []
        for name, weight in weights.items():
            half = weight.numel() // 2
            start, length = (0, half) if rank == 0 else (half, weight.numel() - half)
            pieces.append(Piece(name, tuple(weight.shape), start, length))
            for kind in _KINDS:
                tensors[f"{kind}/{name}"] = weight.flatten()[start : start + length].clone()
        tensors |= {f"average/{n}": w.clone() for n, w in weights.items() if rank == 0}
        told = facts | {"rank": rank, "model": spec, "dtype": "float32"}
        yield write_state(folder / f"{role}.{rank}.safetensors", tensors, pieces, told)


def _sequences() -> RolloutBatch:
    ints = np.array([6, 7], np.int64)
    return RolloutBatch(
        ints, ints, Ragged.from_rows([[1, 2, 3], [4, 5]], np.int32), np.array([1, 1]),
        Ragged.from_rows([[-0.5, -0.5], [-1.0]], np.float32), np.array([0, 1]),
        np.array([[1, 2], [2, 2]]),
    )  # fmt: skip


def _restored(state: Path, role: str, weights: Path) -> None:
    """Everything that a trainer takes from its files."""
    model = load_file(weights / "model.safetensors")
    files = StateFiles(state, role)
    _, kinds, _ = files.optimizer
    for name, weight in model.items():
        for kind in ("master", *kinds):
            files.read(kind, Piece(name, tuple(weight.shape), 0, weight.numel()))
    files.floats(0, "average", model)


def _resume(run: Path) -> int:
    """Go on as far as a trainer's own work; returns the step of the checkpoint that was taken."""
    start = find_start(config_of(run))
    assert start.saved is not None, "the run began again"
    saved = SavedRuns(start.folder).continue_from(start.saved)
    start.folder.reopen(saved.progress["appended"])
    for role in ("policy", "critic"):
        _restored(saved.path, role, run / "checkpoints" / "sft")
    rollout = mock.Mock()
    rollout.hold = lambda batch: Rollouts.of(batch, batch.summary())
    queue = saved_rollouts.SavedRollouts(RolloutQueue(1, 4, mock.Mock()), rollout)
    for batch in saved.progress["own"]["ahead"]:
        ids = np.array(from_ranges(batch["ids"]), np.int64)
        queue.restore(str(saved.path), batch["iteration"], ids)
    said = any("skipped 000002-ppo-2" in note for note in start.notes)
    assert said or saved.step == 2, "without a word"
    return saved.step


def _export(run: Path) -> int:
    saved = export.find(run, "policy")
    origin = run / "checkpoints" / "sft"

    def save(*arguments: Any) -> None:
        # without torch.distributed, of which a process has one; an export needs no moments
        _spec, _dtype, state, role, path, _threads = arguments
        model = load_file(origin / "model.safetensors")
        files = StateFiles(state, role)
        for name, weight in model.items():
            files.read("master", Piece(name, tuple(weight.shape), 0, weight.numel()))
        files.floats(0, "average", model)
        shutil.copytree(origin, path, dirs_exist_ok=True)
        (Path(path) / model_folder.MANIFEST).unlink()

    with mock.patch.object(export, "_save", save):
        export.export(saved, "policy", run.parent / "exported")
    return saved.step


def _report(run: Path) -> int:
    assert not write_report(RunFolder(run)).damage
    return 2


# A rank without weights has neither, so only those of rank 0 count.
_OF_RANK_1 = ("policy.1.safetensors: /kinds", "policy.1.safetensors: no /kinds",
              "policy.1.safetensors: /numbers", "policy.1.safetensors: no /numbers")  # fmt: skip
# Damage whose name holds one of these is in what is not read there.
_NOT_READ: dict[Callable[[Path], int], tuple[str, ...]] = {
    _resume: ("/model", "/dtype", "no /number", "no /scores", "no /versions/", *_OF_RANK_1),
    _export: (
        "ahead", "critic", "/own", "/amends", "/telemetry", "/findings", "/counters", "/seconds",
        "/scores", "/appended", "exp_avg", "/elsewhere", "no /number", "metrics.jsonl", "/steps",
        "/kinds", "/numbers", "no /finished", "no /versions/", *_OF_RANK_1,
    ),
    _report: ("",),
}  # fmt: skip


def _reseal(state: Path, changes: dict[str, Any] | None = None) -> None:
    """Make the manifest say of all files what they are now."""
    manifest = unseal(state / "manifest.json", "")
    for name in list(manifest["files"]):
        if (state / name).is_file():
            manifest["files"][name] = entry_of(state / name)
    (state / "manifest.json").write_text(seal(manifest | (changes or {})))


def _places(content: Any, path: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Every key or index in a JSON value: its path, what holds it, and the key."""
    for key in list(content if isinstance(content, dict) else range(min(3, len(content)))):
        yield f"{path}/{key}", content, key
        if isinstance(content[key], (dict, list)):
            yield from _places(content[key], f"{path}/{key}")


def _key(content: dict[str, Any], rng: random.Random, depth: int) -> str:
    """Change one value in place, or take it away."""
    places = [each for each in _places(content) if each[0].count("/") <= depth]
    path, holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.4:
        del holder[key]
        return f"no {path}"
    kinds = [value for value in _VALUES if type(value) is not type(holder[key])]
    holder[key] = rng.choice(kinds)
    return f"{path}={str(holder[key])[:20]!r}"


def _manifest(state: Path, rng: random.Random) -> str:
    """A key of the manifest lacks or lies, under a seal that is right."""
    content = unseal(state / "manifest.json", "")
    config = content.pop("config")  # a value of the configuration is a matter of the comparison
    if rng.random() < 0.2:
        name = f"config={(value := rng.choice(_VALUES))!r}"
        content["config"] = value
        if isinstance(value, dict):
            del content["config"]
    else:
        name = _key(content, rng, 3)
        content["config"] = config
    (state / "manifest.json").write_text(seal(content))
    return f"manifest: {name}"


def _progress(state: Path, rng: random.Random) -> str:
    """A key of the progress lacks or lies."""
    content = json.loads((state / "progress.json").read_text())
    name = _key(content, rng, rng.choice((1, 3, 5)))
    (state / "progress.json").write_text(json.dumps(content))
    _reseal(state)
    return f"progress: {name}"


def _text(state: Path, rng: random.Random) -> str:
    """A file of the checkpoint is other bytes."""
    name, text = rng.choice(sorted(p.name for p in state.iterdir())), rng.choice(_TEXTS)
    (state / name).write_bytes(text)
    if name != "manifest.json" and rng.random() < 0.8:
        _reseal(state)
    return f"{name} is {text[:12]!r}"


def _entry(state: Path, rng: random.Random) -> str:
    """A file of the run is none."""
    run = state.parent.parent
    files = [*state.iterdir(), *(run / "checkpoints" / "sft").iterdir(), run / "metrics.jsonl"]
    path = rng.choice([p for p in sorted(files) if p.name != "README.md"])
    kind = rng.choice(("missing", "folder", "pipe", "socket", "loop", "nowhere", "zero"))
    path.unlink()
    if kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.open(path.parent, os.O_RDONLY)  # a socket's path may have 108 bytes
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)
    elif kind != "missing":
        path.symlink_to({"loop": path.name, "nowhere": "not-there", "zero": "/dev/zero"}[kind])
    return f"{path.relative_to(run)} is {kind}"


def _header(state: Path, rng: random.Random) -> str:
    """What a state file says of its tensors is wrong."""
    path = state / rng.choice(("policy.0.safetensors", "policy.1.safetensors"))
    with safe_open(path, framework="pt") as file:
        content = json.loads(file.metadata()["rehearsal"])
    pieces = content["pieces"]
    name = rng.choice(sorted(pieces))
    kind = rng.choice(("key", "piece", "start", "length", "shape", "gone"))
    if kind == "key":
        what = _key(content, rng, 2)
    elif kind == "gone":
        what = f"no piece of {name}"
        del pieces[name]
    else:
        value = rng.choice(_VALUES)
        what = f"{kind} of {name} is {value!r}"
        if kind == "piece":
            pieces[name] = value
        else:
            pieces[name][("start", "length", "shape").index(kind)] = value
    save_file(load_file(path), path, {"rehearsal": json.dumps(content)})
    _reseal(state)
    return f"{path.name}: {what}"


def _tensors(state: Path, rng: random.Random) -> str:
    """A tensor of a state file is missing, of another kind or shape, or not finite."""
    path = state / rng.choice(("policy.0.safetensors", "policy.1.safetensors"))
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    name = rng.choice([n for n in sorted(tensors) if not n.startswith("rng/")])
    kind = rng.choice(("missing", "integers", "NaN", "infinite", "shorter", "wider", "scalar"))
    tensor = tensors.pop(name)
    if kind in ("NaN", "infinite"):
        tensor.view(-1)[rng.randrange(tensor.numel())] = float("nan" if kind == "NaN" else "-inf")
    changed = {
        "integers": tensor.to(torch.int32),
        "shorter": tensor[:-1].clone(),
        "wider": torch.cat([tensor, tensor]),
        "scalar": torch.zeros(()),
    }
    if kind != "missing":
        tensors[name] = changed.get(kind, tensor)
    save_file(tensors, path, metadata)
    _reseal(state)
    return f"{path.name}: {name} is {kind}"


def _kept(state: Path, rng: random.Random) -> str:
    """Sequences that were kept do not fit each other."""
    path = state / "ahead-2-0.safetensors"
    arrays = load_file(path)
    name = rng.choice(sorted(arrays))
    kind = rng.choice(("missing", "renamed", "floats", "shorter", "other", "NaN"))
    array = arrays[name]
    if kind in ("missing", "renamed"):
        del arrays[name]
    if kind == "NaN":
        name = "logprobs"
        arrays[name] = torch.full_like(arrays[name], float("nan"))
    other = (array + 7).to(torch.int64) if name != "finish" else array[:0].clone()
    changed = {
        "renamed": {f"my_{name}": array},
        "floats": {name: array.to(torch.int8 if name == "logprobs" else torch.float64)},
        "shorter": {name: array[:-1].clone()},
        "other": {name: other.float() if name == "nothing" else other},
    }
    # ids of prompts, versions and tokens can be any others
    if kind == "other" and name in ("prompt_ids", "versions", "tokens", "logprobs"):
        changed["other"] = {name: array[:0].clone()}
    save_file(arrays | changed.get(kind, {}), path)
    _reseal(state)
    return f"ahead: {name} is {kind}"


def _foreign(state: Path, rng: random.Random) -> str:
    """A file of another rank, or of another role, lies there, or took a place."""
    kind = rng.choice(("rank", "role", "swapped", "both", "again"))
    zero, one = state / "policy.0.safetensors", state / "policy.1.safetensors"
    if kind == "rank":
        shutil.copy(one, state / "policy.2.safetensors")
    elif kind == "role":
        shutil.copy(zero, state / "ahead-2-1.safetensors")
    elif kind == "swapped":
        shutil.copy(one, zero)
        _reseal(state)
    elif kind == "both":
        one.unlink()
    else:
        shutil.copy(zero, one)
        _reseal(state)
    return f"files of ranks: {kind}"


_DAMAGES: tuple[Damage, ...] = (
    _manifest, _progress, _text, _entry, _header, _tensors, _kept, _foreign, _manifest, _progress,
    _tensors, _header,
)  # fmt: skip
