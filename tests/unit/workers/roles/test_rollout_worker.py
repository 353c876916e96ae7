from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import workers.roles.rollout
from workers.errors import (
    BrokenCheckpointError,
    ChecksumError,
    DataError,
    MissingCheckpointError,
    RoleError,
    StaleEngineError,
    WeightSyncError,
)
from workers.generation.engine import Generated, Sample, pack, require_complete, require_fitting
from workers.model_folders.weight_files import SafetensorsFolder
from workers.records.generation import EngineState, Finish, GenerationRequest, Sampling
from workers.records.specs import RolloutSpec
from workers.records.weights import GroupAddress, TensorMeta, WeightOffer
from workers.roles.rollout import RolloutWorker, engine_environment

METAS = (TensorMeta("a.weight", "float32", (4, 2)), TensorMeta("b.weight", "bfloat16", (3,)))


class EchoEngine:
    """Repeats the prompt; fails on demand."""

    def __init__(self) -> None:
        self.fail = False
        self.closed = False
        self.asleep = False
        self._numbers = itertools.count()
        self._left: dict[int, Generated] = {}

    @property
    def running(self) -> bool:
        return bool(self._left)

    def add(self, samples: Sequence[Sample], sampling: Sampling) -> list[int]:
        self.asleep = False
        self.seen = list(samples)
        numbers = [next(self._numbers) for _ in samples]
        for n, s in zip(numbers, samples, strict=True):
            logprobs = [-0.5] * len(s.prompt)
            self._left[n] = Generated(s.prompt[: sampling.max_tokens], logprobs, Finish.LENGTH)
        return numbers

    def step(self) -> list[tuple[int, Generated]]:
        """All in one step."""
        finished, self._left = list(self._left.items()), {}
        return finished

    def drop(self, numbers: Collection[int]) -> list[tuple[int, Generated]]:
        return [(n, Generated((), (), Finish.ABORT)) for n in numbers if self._left.pop(n)]

    def sleep(self) -> None:
        self.asleep = True

    def connect(self, address: GroupAddress, group_rank: int) -> None: ...

    def receive(self, offer: WeightOffer) -> str:
        if self.fail:
            raise ChecksumError("bytes differ")
        return "sum"

    def close(self) -> None:
        self.closed = True


def write_checkpoint(tmp_path: Path) -> Path:
    config = {"model_type": "llama", "vocab_size": 10, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tensors = {"a.weight": torch.zeros(4, 2), "b.weight": torch.zeros(3, dtype=torch.bfloat16)}
    save_file({**tensors, "lm_head.weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path)


def make_spec(checkpoint: Path) -> RolloutSpec:
    return RolloutSpec(
        checkpoint=str(checkpoint), engine="vllm", dtype="float32", device="cpu",
        max_prompt_tokens=8, max_response_tokens=8, max_concurrent_sequences=4,
        kv_cache_bytes=1 << 20, gpu_memory_fraction=0.5, tensor_parallel_size=1,
        prefix_caching=True, enforce_eager=True, seed=40, eos_token_id=2,
    )  # fmt: skip


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[EchoEngine]:
    made: list[EchoEngine] = []

    def make(spec: RolloutSpec) -> EchoEngine:
        made.append(EchoEngine())
        return made[-1]

    monkeypatch.setattr(workers.roles.rollout, "_make_engine", make)
    for name, value in engine_environment(make_spec(Path())).items():
        monkeypatch.setenv(name, value)  # undone with the test; `start` sets the same
    return made


def offer(version: int, metas: tuple[TensorMeta, ...] = METAS) -> WeightOffer:
    return WeightOffer(version, metas, 128, "gloo")


REQUEST = GenerationRequest(7, (3, 4, 5), (20, 21), (1, 2))


def test_engine_serves_what_it_was_started_on(engines: list[EchoEngine], checkpoint: Path) -> None:
    worker = RolloutWorker(3)
    with pytest.raises(RoleError, match="not started"):
        worker.generate([REQUEST], Sampling(1.0, 8), 0)
    info = worker.start(make_spec(checkpoint), 5)
    assert (info.role, info.rank) == ("rollout", 3)
    batch = worker.generate([REQUEST, REQUEST], Sampling(1.0, 3), 5)
    assert batch.ids.tolist() == [20, 21, 20, 21]
    assert batch.prompt(1) == batch.response(1) == [3, 4, 5]
    assert batch.versions.tolist() == [[5, 5]] * 4
    assert np.allclose(batch.logprobs.values, -0.5)
    worker.close()
    assert engines[0].closed
    with pytest.raises(RoleError):
        worker.generate([REQUEST], Sampling(1.0, 8), 5)


def test_weights_pass_from_empty_over_unverified_to_admitted(
    engines: list[EchoEngine], checkpoint: Path
) -> None:
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 0)
    receipt = worker.receive_weights(offer(1))
    assert 0 <= receipt.seconds < 300
    assert (receipt.version, receipt.checksum, receipt.nbytes) == (1, "sum", 128)
    assert worker.state() == EngineState(1, "unverified")
    with pytest.raises(StaleEngineError, match="rollout worker 0"):
        worker.generate([REQUEST], Sampling(1.0, 8), 1)
    assert len(worker.probe([(3,), (4, 5)], 2, 1.0, 1)) == 2
    worker.admit(1)
    assert worker.state() == EngineState(1, "admitted")
    assert len(worker.generate([REQUEST], Sampling(1.0, 8), 1)) == 2


def test_engine_whose_update_failed_must_be_started_again(
    engines: list[EchoEngine], checkpoint: Path
) -> None:
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 0)
    engines[0].fail = True
    with pytest.raises(ChecksumError):
        worker.receive_weights(offer(1))
    engines[0].fail = False
    assert worker.state().status == "empty"
    for call in (
        lambda: worker.generate([REQUEST], Sampling(1.0, 8), 0),
        lambda: worker.probe([(3,)], 1, 1.0, 1),
        lambda: worker.receive_weights(offer(1)),
        lambda: worker.admit(1),
    ):
        with pytest.raises(WeightSyncError, match="version 1 did not finish"):
            call()
    worker.start(make_spec(checkpoint), 0)
    assert engines[0].closed
    assert len(worker.generate([REQUEST], Sampling(1.0, 8), 0)) == 2


def test_sleeping_engine_is_left_asleep_until_it_is_needed(
    engines: list[EchoEngine], checkpoint: Path
) -> None:
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 5)
    assert worker.alive()
    worker.sleep()
    assert not worker.alive()  # it answers, which is what it is asked for
    assert engines[0].asleep
    assert worker.state() == EngineState(5, "admitted")
    with pytest.raises(StaleEngineError):
        worker.generate([REQUEST], Sampling(1.0, 8), 6)
    assert engines[0].asleep
    assert len(worker.generate([REQUEST], Sampling(1.0, 8), 5)) == 2
    assert not engines[0].asleep


def test_tied_output_layer_may_come_along(engines: list[EchoEngine], checkpoint: Path) -> None:
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 0)
    head = TensorMeta("lm_head.weight", "float32", (4, 2))
    worker.receive_weights(offer(1, (*METAS, head)))
    worker.receive_weights(offer(2, METAS))
    with pytest.raises(WeightSyncError, match=r"b\.weight .*missing"):
        worker.receive_weights(offer(3, (METAS[0], head)))


def test_an_update_brings_every_weight_of_the_model_and_no_other() -> None:
    shapes = {"a": (4, 2), "lm_head.weight": (4, 2)}  # a model with an output layer of its own
    body, head = (
        TensorMeta("model.a", "float32", (4, 2)),
        TensorMeta("lm_head.weight", "float32", (4, 2)),
    )
    require_complete(offer(1, (body, head)), shapes)
    other = TensorMeta("model.b", "float32", (4, 2))
    for metas, wrong in (
        ((body,), r"lm_head\.weight .*missing"),
        ((body, head, other), r"b is unknown in the engine and \(4, 2\)"),
    ):
        with pytest.raises(WeightSyncError, match=wrong) as caught:
            require_complete(offer(6, metas), shapes)
        assert caught.value.where == "update to version 6"


def test_an_untied_checkpoint_is_not_for_a_tied_engine(
    engines: list[EchoEngine], checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    other = tmp_path_factory.mktemp("untied")
    shutil.copytree(checkpoint, other, dirs_exist_ok=True)
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 0)
    worker.load_checkpoint(str(other), 1)
    config = {"model_type": "llama", "vocab_size": 10, "tie_word_embeddings": False}
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightSyncError, match="tie_word_embeddings"):
        worker.load_checkpoint(str(other), 2)
    assert worker.state() == EngineState(1, "admitted")  # nothing was transferred


def test_probe_seeds_follow_the_engine(engines: list[EchoEngine], checkpoint: Path) -> None:
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 0)
    worker.probe([(3,), (4,)], 2, 1.0, 0)
    assert engines[0].seen == [Sample((3,), 40), Sample((4,), 41)]


def test_only_the_weights_that_are_held_are_probed(
    engines: list[EchoEngine], checkpoint: Path
) -> None:
    worker = RolloutWorker(0)
    worker.start(make_spec(checkpoint), 3)
    with pytest.raises(StaleEngineError):
        worker.probe([(3, 4)], 2, 1.0, 4)
    assert len(worker.probe([(3, 4)], 2, 1.0, 3)) == 1


@pytest.mark.parametrize(
    ("prompt", "most", "fits"),
    [
        ((0, 9), 8, True), ((1,) * 8, 1, True), ((3,), 8, True),
        ((), 8, False), ((1,) * 9, 8, False), ((1, 10), 8, False),
        ((-1, 5), 8, False), ((1, 2), 9, False), ((1, 2), 0, False),
    ],
)  # fmt: skip
def test_a_prompt_that_an_engine_cannot_take_is_refused(
    checkpoint: Path, prompt: tuple[int, ...], most: int, fits: bool
) -> None:
    spec = make_spec(checkpoint)  # 8 tokens of prompt, 8 of response; 10 words
    request = GenerationRequest(7, prompt, (20,), (1,))
    if fits:
        require_fitting([request], Sampling(1.0, most), spec, 10)
        return
    with pytest.raises(DataError):
        require_fitting([request], Sampling(1.0, most), spec, 10)


def test_every_sample_has_an_id_and_a_seed(checkpoint: Path) -> None:
    uneven = GenerationRequest(7, (1,), (20, 21), (1,))
    with pytest.raises(DataError, match="2 ids for 1 seeds"):
        require_fitting([uneven], Sampling(1.0, 4), make_spec(checkpoint), 10)


def test_every_request_has_as_many_results_as_samples() -> None:
    found = Generated((3,), (-0.5,), Finish.STOP)
    assert len(pack([REQUEST], [found, found], 4)) == 2
    with pytest.raises(ValueError, match="zip"):
        pack([REQUEST], [found], 4)


def test_folder_names_what_is_wrong_with_it(checkpoint: Path) -> None:
    folder = SafetensorsFolder(str(checkpoint))
    assert folder.tied
    assert folder.shapes == {"a.weight": (4, 2), "b.weight": (3,)}
    assert {m.dtype for m in folder.metas} == {"float32", "bfloat16"}
    assert [name for bucket in folder.buckets() for name, _ in bucket] == [
        m.name for m in folder.metas
    ]
    with pytest.raises(MissingCheckpointError):
        SafetensorsFolder(str(checkpoint / "nowhere"))
    (checkpoint / "config.json").write_text("[]")
    with pytest.raises(BrokenCheckpointError, match=r"config\.json holds no JSON object"):
        SafetensorsFolder(str(checkpoint))
    (checkpoint / "config.json").write_text('{"model_type": "llama"}')
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors"):
        SafetensorsFolder(str(checkpoint))


def test_environment_of_gpu_engines_keeps_the_compiler(checkpoint: Path) -> None:
    import dataclasses

    cpu = make_spec(checkpoint)
    assert engine_environment(cpu)["TORCHDYNAMO_DISABLE"] == "1"
    assert engine_environment(dataclasses.replace(cpu, threads=3))["OMP_NUM_THREADS"] == "3"
    gpu = engine_environment(dataclasses.replace(cpu, device="cuda"))
    assert not {"TORCHDYNAMO_DISABLE", "OMP_NUM_THREADS"} & gpu.keys()
