"""A trainer that goes on from a snapshot in a fresh process does what the undisturbed one did."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import resume_ranks
import torch
import trainer_ranks as ranks
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from orchestrator import export
from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.run_files.folder import RunFolder
from workers.data.tokenize.templates import default_template
from workers.errors import BrokenCheckpointError, CheckpointError, MissingCheckpointError
from workers.pocket.tokenizer import build_tokenizer
from workers.records.processes import FileRecord
from workers.training.state_files import Piece, StateFiles, write_state

WORLDS = (1, 2)
STAGES = resume_ranks.ZERO_STAGES
JOBS = ("sft", "ppo_ptx", "reward_model", "value")
STEPS = resume_ranks.STEPS
Outs = list[dict[Any, Any]]  # one record a rank


def _make_base(path: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=ranks.VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        tie_word_embeddings=True, initializer_range=0.1, attention_dropout=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(path / "base")
    build_tokenizer().save_pretrained(path / "base")


def _run(folder: Path, world: int, name: str, **plan: Any) -> Outs:
    """Run a world of ranks; `folders` names where the snapshots of each ZeRO stage lie."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    given = json.dumps(plan | {"name": name})
    processes = [
        subprocess.Popen(
            [sys.executable, resume_ranks.__file__, *map(str, (rank, world, port, folder)), given],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=(folder / f"stderr-{name}-{rank}").open("wb"),
        )
        for rank in range(world)
    ]
    try:
        for process in processes:
            process.wait(timeout=280)
    finally:
        for process in processes:
            process.kill()
    notes = "\n".join(f.read_text()[-3000:] for f in sorted(folder.glob(f"stderr-{name}-*")))
    assert not any(p.returncode for p in processes), notes
    return [pickle.loads((folder / f"{name}-{rank}.pkl").read_bytes()) for rank in range(world)]


def _own(world: int) -> dict[str, str]:
    return {str(stage): f"{world}-{stage}" for stage in STAGES}


def _assert_undisturbed(first: Outs, second: Outs, stage: int, job: str, steps: list[int]) -> None:
    for undisturbed, resumed in zip(first, second, strict=True):
        one = undisturbed["first", stage, job]
        assert len({tuple(state.values()) for state in one["states"]}) == STEPS  # they moved
        for k in steps:
            two = resumed[k, stage, job]
            assert two["restored"] == one["states"][k - 1]
            assert two["stats"] == one["stats"][k:]
            assert two["end"] == one["states"][-1]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Outs]:
    folder = tmp_path_factory.mktemp("resume")
    _make_base(folder)
    plan = {"jobs": ["ppo_ptx", "reward_model"], "first": True, "from": [2]}
    return folder, _run(folder, 2, "both", folders=_own(2), **plan)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("job", ["ppo_ptx", "reward_model"])
def test_a_fresh_engine_goes_on_bit_for_bit(two_ranks, stage: int, job: str) -> None:
    _, outs = two_ranks
    _assert_undisturbed(outs, outs, stage, job, [2])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("world", WORLDS)
def test_fresh_processes_go_on_bit_for_bit_from_every_step(tmp_path: Path, world: int) -> None:
    _make_base(tmp_path)
    plan = {"jobs": JOBS, "folders": _own(world)}
    steps = list(range(1, STEPS))
    first = _run(tmp_path, world, "first", first=True, **plan, **{"from": []})
    second = _run(tmp_path, world, "second", first=False, **plan, **{"from": steps})
    for stage in STAGES:
        for job in JOBS:
            _assert_undisturbed(first, second, stage, job, steps)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("saved", "resumed"), [(1, 2), (2, 1)])
def test_other_ranks_and_stages_start_on_the_same_bits(
    tmp_path: Path, saved: int, resumed: int
) -> None:
    """Each stage goes on from the snapshots of the next one, on another number of ranks."""
    _make_base(tmp_path)
    first = _run(tmp_path, saved, "first", jobs=JOBS, folders=_own(saved), first=True, **_NONE)
    moved = {str(stage): f"{saved}-{stage % 3 + 1}" for stage in STAGES}
    second = _run(tmp_path, resumed, "moved", jobs=JOBS, folders=moved, first=False, **_SECOND)
    for stage in STAGES:
        for job in JOBS:
            one, two = first[0]["first", stage % 3 + 1, job], second[0][2, stage, job]
            assert two["restored"] == one["states"][1]
            if job in ("ppo_ptx", "value"):  # dropout draws other numbers on other ranks
                _assert_close(two["end"], one["states"][-1])


_NONE = {"from": []}
_SECOND = {"from": [2]}


def _assert_close(found: dict[str, bytes], wanted: dict[str, bytes]) -> None:
    assert found.keys() == wanted.keys()
    for name, data in found.items():
        a, b = (np.frombuffer(x, np.float32) for x in (data, wanted[name]))
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=name)


def test_the_record_is_that_of_the_file(two_ranks) -> None:
    folder, outs = two_ranks
    for rank, out in enumerate(outs):
        for k, record in enumerate(out["first", 3, "ppo_ptx"]["records"], start=1):
            data = (folder / "2-3" / "ppo_ptx" / str(k) / record.name).read_bytes()
            assert record.name == f"policy.{rank}.safetensors"
            assert (len(data), hashlib.sha256(data).hexdigest()) == (record.nbytes, record.sha256)


def _as_run(home: Path, outs: Outs, snapshot: Path, key: tuple[Any, ...]) -> RunFolder:
    """The last snapshot of a world of ranks as the checkpoint of a run."""
    run = RunFolder(home).create()
    partial = SavedRuns(run).begin(key[2], STEPS)
    records = [out[key]["records"][-1] for out in outs]
    for record in records:
        (partial / record.name).write_bytes((snapshot / record.name).read_bytes())
    progress = {"stage": key[2], "step": STEPS, "appended": {}}
    config = {
        "seed": 0,
        "data": {"source": "files", "chat_template": "default"},
        "rollout": {"temperature": 0.7, "max_response_tokens": 8},
    }
    SavedRuns(run).publish(partial, records, progress, {"config": config, "versions": {}}, [])
    return run


def _export(run: RunFolder, folder: Path, role: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "orchestrator.export", str(run.path), str(folder)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        [*command, f"--role={role}"], cwd=root, capture_output=True, text=True, timeout=280,
        check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("stage", "job", "role"), [(3, "ppo_ptx", "policy"), (2, "reward_model", "critic")]
)
def test_a_checkpoint_is_exported_as_the_model_that_the_run_would_save(
    two_ranks, tmp_path: Path, stage: int, job: str, role: str
) -> None:
    home, outs = two_ranks
    at = home / f"2-{stage}" / job
    run = _as_run(tmp_path / "run", outs, at / str(STEPS), ("first", stage, job))
    done = _export(run, tmp_path / "model", role)
    assert done.returncode == 0, done.stderr
    assert f"the {role} after stage {job}, step {STEPS}" in done.stdout
    found, wanted = (p / "model.safetensors" for p in (tmp_path / "model", at / "model"))
    assert found.read_bytes() == wanted.read_bytes()
    saved = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert saved.chat_template == default_template(saved)
    again = _export(run, tmp_path / "model", role)
    assert (again.returncode, "the folder is there already" in again.stderr) == (2, True)


def test_there_may_be_nothing_to_export(state: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingCheckpointError, match="no checkpoint with a critic"):
        export.find(tmp_path, "critic")
    run = RunFolder(tmp_path / "run").create()
    partial = SavedRuns(run).begin("sft", 1)
    data = (state / "policy.0.safetensors").read_bytes()
    (partial / "policy.0.safetensors").write_bytes(data)
    record = FileRecord("policy.0.safetensors", len(data), hashlib.sha256(data).hexdigest())
    facts = {"config": {"seed": 0}, "versions": {}}
    progress = {"stage": "sft", "step": 1, "appended": {}}
    path = SavedRuns(run).publish(partial, [record], progress, facts, [])
    saved = export.find(path, "policy")
    with pytest.raises(BrokenCheckpointError, match="does not say which model"):
        export.export(saved, "policy", tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_a_run_folder_that_was_moved_brings_its_models_along(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "moved").create()
    (run.checkpoints / "sft").mkdir()
    progress = {"checkpoints": {"base": "checkpoints/base", "sft": "checkpoints/sft"}}
    saved = SavedRun(run.state / "000001-ppo-1", 1, "ppo", 1, progress, {}, {})
    assert export._origin(saved, "/gone/checkpoints/sft") == str(run.checkpoints / "sft")
    assert export._origin(saved, "/gone/checkpoints/base") == "/gone/checkpoints/base"
    assert export._origin(saved, str(tmp_path)) == str(tmp_path)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """Weight `w` of shape (2, 3) in the files of two ranks: elements 0-3 and 4-5."""
    for rank, (start, length) in enumerate([(0, 4), (4, 2)]):
        values = torch.arange(start, start + length, dtype=torch.float32)
        write_state(
            tmp_path / f"policy.{rank}.safetensors",
            {"master/w": values},
            [Piece("w", (2, 3), start, length)],
            {"rank": rank},
        )
    return tmp_path


@pytest.mark.parametrize(("start", "length"), [(0, 6), (0, 2), (3, 2), (4, 2), (2, 3)])
def test_any_piece_can_be_read(state: Path, start: int, length: int) -> None:
    piece = Piece("w", (2, 3), start, length)
    found = StateFiles(state, "policy").read("master", piece)
    assert found.tolist() == list(range(start, start + length))


def test_a_missing_rank_or_another_model_is_refused(state: Path) -> None:
    with pytest.raises(BrokenCheckpointError, match=r"w has shape \[2, 3\], not \[3, 2\]"):
        StateFiles(state, "policy").read("master", Piece("w", (3, 2), 0, 6))
    (state / "policy.1.safetensors").unlink()
    with pytest.raises(BrokenCheckpointError, match="master of w is not whole"):
        StateFiles(state, "policy").read("master", Piece("w", (2, 3), 0, 6))
    (state / "policy.0.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(BrokenCheckpointError, match=r"policy\.0\.safetensors does not load"):
        StateFiles(state, "policy")
    with pytest.raises(BrokenCheckpointError, match="no training state of the critic"):
        StateFiles(state, "critic")


def test_a_disk_that_cannot_be_written_to_is_a_typed_error() -> None:
    with pytest.raises(CheckpointError, match="cannot be written") as caught:
        write_state(Path("/dev/full/x.safetensors"), {"master/w": torch.zeros(1)}, [], {})
    assert "put the folder back" in caught.value.fix  # /dev/full is none
