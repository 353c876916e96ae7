"""What both generation engines promise, against a plain forward pass of the same weights."""

from __future__ import annotations

import inspect
import math
import multiprocessing
import socket
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from workers.errors import (
    BrokenCheckpointError,
    ConfigError,
    DataError,
    MissingCheckpointError,
    StaleEngineError,
    WeightSyncError,
)
from workers.records.generation import (
    Delivery,
    EngineState,
    Finish,
    GenerationCall,
    GenerationRequest,
    RolloutBatch,
    Sampling,
)
from workers.records.specs import RolloutSpec
from workers.records.weights import GroupAddress
from workers.roles.rollout import engine_environment
from workers.weights.packing import describe, make_offer
from workers.weights.transfer import WeightSender
from workers.weights.transport import Link

VOCABULARY, EOS = 48, 2
TOLERANCE = 1e-4  # nats
LINK = Link(torch.device("cpu"), 20.0)


def build_model(seed: int, tied: bool, heads: int = 4) -> LlamaForCausalLM:
    """A random Llama with grouped queries whose samples end now and then."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=128, intermediate_size=56, num_hidden_layers=2,
        num_attention_heads=heads, num_key_value_heads=2, max_position_embeddings=64,
        tie_word_embeddings=tied, bos_token_id=1, eos_token_id=EOS, pad_token_id=0,
        initializer_range=0.12,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


class PauseAfter:
    """Somebody pauses the worker after so many steps of the engine."""

    def __init__(self, steps: int) -> None:
        self.left = steps + 1  # it is asked before the first step, too

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0

    def clear(self) -> None:
        self.left = 1 << 30


def serve(connection: Connection, rank: int) -> None:
    """One rollout worker in a process of its own: verbs in, results or errors out."""
    from workers.roles.rollout import RolloutWorker

    worker = RolloutWorker(rank)
    while (call := connection.recv()) is not None:
        verb, arguments = call
        try:
            if verb == "pause_after":
                worker._paused = PauseAfter(*arguments)  # type: ignore[assignment]
                result = None
            else:
                result = getattr(worker, verb)(*arguments)
            connection.send((list(result) if inspect.isgenerator(result) else result, None))
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller shall see it)
            connection.send((None, error))
    worker.close()


class Remote:
    """Calls the verbs of a worker in another process."""

    def __init__(
        self,
        environment: dict[str, str],
        monkeypatch: pytest.MonkeyPatch,
        target: Callable[[Connection, int], None] = serve,
    ) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._connection, theirs = spawn.Pipe()
        with monkeypatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            self._process = spawn.Process(target=target, args=(theirs, 0), daemon=True)
            self._process.start()

    def begin(self, verb: str, *arguments: Any) -> None:
        self._connection.send((verb, arguments))

    def answer(self) -> Any:
        assert self._connection.poll(120), "the worker does not answer"
        result, error = self._connection.recv()
        if error is not None:
            raise error
        return result

    def __call__(self, verb: str, *arguments: Any) -> Any:
        self.begin(verb, *arguments)
        return self.answer()

    def files(self) -> int:
        """How many files and sockets the process has open."""
        return len(list(Path(f"/proc/{self._process.pid}/fd").iterdir()))

    def stop(self) -> None:
        self._connection.send(None)
        self._process.join(20)
        assert self._process.exitcode == 0


def make_spec(
    engine: str,
    checkpoint: Path,
    *,
    interruptible: bool = False,
    join_running: bool = False,
    vocabulary: int = 0,
) -> RolloutSpec:
    return RolloutSpec(
        checkpoint=str(checkpoint), engine=engine, dtype="float32", device="cpu",
        max_prompt_tokens=16, max_response_tokens=24, max_concurrent_sequences=16,
        kv_cache_bytes=8 << 20, gpu_memory_fraction=0.5, tensor_parallel_size=1,
        prefix_caching=True, enforce_eager=True, seed=0, eos_token_id=EOS, collective_seconds=20,
        interruptible=interruptible, join_running=join_running, vocabulary=vocabulary,
    )  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    paths = {tied: tmp_path_factory.mktemp("tied" if tied else "untied") for tied in (True, False)}
    for tied, path in paths.items():
        build_model(0, tied).save_pretrained(path)
    return paths


@pytest.fixture(scope="module")
def processes(checkpoints: dict[bool, Path]) -> Iterator[Callable[[str], Remote]]:
    """One process an engine, started when first asked for."""
    made: dict[str, Remote] = {}

    def process(engine: str) -> Remote:
        if engine not in made:
            with pytest.MonkeyPatch.context() as patch:
                made[engine] = Remote(
                    engine_environment(make_spec(engine, checkpoints[True])), patch
                )
        return made[engine]

    yield process
    for remote in made.values():
        remote.stop()


CASES = [(engine, tied) for engine in ("vllm", "transformers") for tied in (True, False)]


@pytest.fixture(scope="module", params=CASES, ids=lambda c: f"{c[0]}-{'un' * (not c[1])}tied")
def started(
    request: pytest.FixtureRequest,
    processes: Callable[[str], Remote],
    checkpoints: dict[bool, Path],
) -> tuple[Remote, bool]:
    engine, tied = request.param
    remote = processes(engine)
    remote("start", make_spec(engine, checkpoints[tied]), 0)
    return remote, tied


@pytest.fixture
def worker(started: tuple[Remote, bool], checkpoints: dict[bool, Path]) -> Remote:
    """Admitted with the first weights as version 0, whatever the test before has done."""
    remote, tied = started
    remote("load_checkpoint", str(checkpoints[tied]), 0)
    return remote


@pytest.fixture
def tied(started: tuple[Remote, bool]) -> bool:
    return started[1]


def requests(samples: int = 1, first: int = 0) -> list[GenerationRequest]:
    """Prompts of 3 to 16 tokens, several times as many sequences as the engine takes at once."""
    rng = np.random.default_rng(7)
    made = []
    for i in range(24):
        prompt = (1, *rng.integers(3, VOCABULARY, size=2 + i % 14).tolist())
        ids = tuple(range(first + i * samples, first + (i + 1) * samples))
        made.append(GenerationRequest(1000 + i, prompt, ids, tuple(100 + j for j in ids)))
    return made


@torch.no_grad()
def oracle_logprobs(
    model: LlamaForCausalLM, batch: RolloutBatch, temperature: float
) -> list[np.ndarray]:
    """Logprobs of each response in its own unpadded forward pass, in double precision."""
    rows = []
    for i in range(len(batch)):
        tokens = torch.tensor(batch.tokens.row(i).astype(np.int64))
        logits = model.double()(tokens[None]).logits[0] / (temperature or 1.0)
        start = int(batch.prompt_lengths[i])
        picked = logits.log_softmax(-1)[start - 1 : -1].gather(1, tokens[start:, None])
        rows.append(picked[:, 0].numpy())
    return rows


def largest_difference(batch: RolloutBatch, model: LlamaForCausalLM, temperature: float) -> float:
    oracle = oracle_logprobs(model, batch, temperature)
    assert [len(r) for r in oracle] == batch.logprobs.lengths.tolist()
    return max(np.abs(batch.logprobs.row(i) - o).max() for i, o in enumerate(oracle))


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_logprobs_equal_a_plain_forward_pass(
    worker: Remote, tied: bool, temperature: float
) -> None:
    batch = worker("generate", requests(2), Sampling(temperature, 24), 0)
    assert largest_difference(batch, build_model(0, tied), temperature) < TOLERANCE


def test_rows_follow_requests_and_carry_their_names(worker: Remote) -> None:
    asked = requests(samples=3, first=500)
    batch = worker("generate", asked, Sampling(1.0, 5), 0)
    assert batch.ids.tolist() == list(range(500, 572))
    assert batch.prompt_ids.tolist() == [1000 + i for i in range(24) for _ in range(3)]
    assert [batch.prompt(3 * i + 2) for i in range(24)] == [list(r.prompt_tokens) for r in asked]
    assert (batch.versions == 0).all()
    responses = {tuple(batch.response(i)) for i in range(3)}
    assert len(responses) == 3  # samples of one prompt differ


def test_responses_end_with_the_end_token_or_at_the_limit(worker: Remote) -> None:
    batch = worker("generate", requests(2), Sampling(1.0, 8), 0)
    for i in range(len(batch)):
        response = batch.response(i)
        if batch.finish[i] == Finish.STOP:
            assert response.index(EOS) == len(response) - 1
        else:
            assert batch.finish[i] == Finish.LENGTH
            assert len(response) == 8
            assert EOS not in response
    assert set(batch.finish.tolist()) == {Finish.STOP, Finish.LENGTH}


def test_seeds_decide_the_samples_whatever_else_is_in_the_batch(worker: Remote) -> None:
    asked = requests()
    everything = worker("generate", asked, Sampling(1.0, 12), 0)
    again = worker("generate", asked, Sampling(1.0, 12), 0)
    assert np.array_equal(everything.tokens.values, again.tokens.values)
    assert np.array_equal(everything.logprobs.values, again.logprobs.values)
    few = worker("generate", asked[5:8][::-1], Sampling(1.0, 12), 0)
    assert [few.response(i) for i in (2, 1, 0)] == [everything.response(i) for i in (5, 6, 7)]
    other = [
        GenerationRequest(r.prompt_id, r.prompt_tokens, r.ids, (r.seeds[0] + 1000,)) for r in asked
    ]
    changed = worker("generate", other, Sampling(1.0, 12), 0)
    assert not np.array_equal(everything.tokens.values, changed.tokens.values)


def test_samples_follow_the_distribution(worker: Remote, tied: bool) -> None:
    prompt, n = (1, 9, 17), 2000
    asked = [GenerationRequest(0, prompt, tuple(range(n)), tuple(range(n)))]
    batch = worker("generate", asked, Sampling(1.0, 1), 0)
    with torch.no_grad():
        logits = build_model(0, tied)(torch.tensor([prompt])).logits[0, -1]
    expected = n * logits.double().softmax(-1).numpy()
    counts = np.bincount([batch.response(i)[0] for i in range(n)], minlength=VOCABULARY)
    large = expected >= 5
    statistic = (((counts - expected) ** 2 / expected)[large]).sum()
    degrees = int(large.sum())
    assert statistic < degrees + 5 * math.sqrt(2 * degrees)  # chi-square: mean d, variance 2d


def test_only_allowed_tokens_are_drawn_with_their_share_of_the_probability(
    worker: Remote, tied: bool
) -> None:
    prompt, two, n = (1, 9, 17), (23, 5), 400
    asked = [GenerationRequest(0, prompt, tuple(range(n)), tuple(range(n)))]
    batch = worker("generate", asked, Sampling(1.0, 1, two), 0)
    with torch.no_grad():
        logits = build_model(0, tied)(torch.tensor([prompt])).logits[0, -1].double()
    share = logits[list(two)].softmax(-1).tolist()
    drawn = [batch.response(i)[0] for i in range(n)]
    assert set(drawn) == set(two)
    for i, token in enumerate(drawn):
        assert math.exp(batch.logprobs.row(i)[0]) == pytest.approx(
            share[two.index(token)], abs=1e-4
        )
    error = math.sqrt(share[0] * share[1] / n)
    assert drawn.count(two[0]) / n == pytest.approx(share[0], abs=5 * error)
    # the next request draws all tokens again
    after = worker("generate", asked[:1], Sampling(1.0, 1), 0)
    assert {after.response(i)[0] for i in range(n)} - set(two)


def publish(model: LlamaForCausalLM, sender: WeightSender, version: int) -> Any:
    named = [(n, p.detach()) for n, p in model.named_parameters()]
    offer = make_offer(version, describe(named), "shm", bucket_bytes=1 << 16)
    return sender.send(offer, [named])


def test_update_replaces_all_weights_at_once(worker: Remote, tied: bool) -> None:
    sender = WeightSender(LINK)
    old = worker("generate", requests(), Sampling(0.0, 12), 0)
    for version in (1, 2):
        model = build_model(version, tied)
        offer = publish(model, sender, version)
        receipt = worker("receive_weights", offer)
        assert (receipt.version, receipt.checksum) == (version, offer.checksum)
        assert worker("state") == EngineState(version, "unverified")
        worker("admit", version)
        new = worker("generate", requests(), Sampling(0.0, 12), version)
        assert (new.versions == version).all()
        assert not np.array_equal(new.tokens.values, old.tokens.values)
        # The same prompts again: prefixes cached under the old weights would show here.
        assert largest_difference(new, model, 0.0) < TOLERANCE
        sampled = worker("generate", requests(2), Sampling(1.0, 12), version)
        assert largest_difference(sampled, model, 1.0) < TOLERANCE


def test_only_admitted_weights_of_the_asked_version_are_served(worker: Remote, tied: bool) -> None:
    with pytest.raises(StaleEngineError, match="version 1, holds version 0"):
        worker("generate", requests(), Sampling(), 1)
    with pytest.raises(StaleEngineError):
        worker("admit", 1)
    model, sender = build_model(1, tied), WeightSender(LINK)
    worker("receive_weights", publish(model, sender, 1))
    for version in (0, 1):
        with pytest.raises(StaleEngineError, match="unverified"):
            worker("generate", requests(), Sampling(), version)
    with pytest.raises(StaleEngineError):
        worker("probe", [(1, 5)], 4, 1.0, 0)
    probe = worker("probe", [(1, 5), (1, 6, 7)], 4, 0.9, 1)
    assert probe.ids.tolist() == [0, 1]
    assert largest_difference(probe, model, 0.9) < TOLERANCE
    worker("admit", 1)
    assert len(worker("generate", requests(), Sampling(), 1)) == 24


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_incomplete_update_is_refused_and_nothing_is_served(
    worker: Remote, tied: bool, checkpoints: dict[bool, Path], fault: str
) -> None:
    named = [(n, p.detach()) for n, p in build_model(1, tied).named_parameters()]
    where = next(
        i for i, (n, _) in enumerate(named) if n.endswith("layers.1.self_attn.k_proj.weight")
    )
    if fault == "missing":
        del named[where]
    elif fault == "unknown":
        named.insert(where, ("model.layers.1.self_attn.extra.weight", torch.zeros(3)))
    else:
        named[where] = (named[where][0], named[where][1][:-1].contiguous())
    sender = WeightSender(LINK)
    offer = sender.send(make_offer(1, describe(named), "shm"), [named])
    with pytest.raises(WeightSyncError, match=r"layers\.1\.self_attn"):
        worker("receive_weights", offer)
    for version in (0, 1):
        with pytest.raises(StaleEngineError, match="empty"):
            worker("generate", requests(), Sampling(), version)
    worker("load_checkpoint", str(checkpoints[tied]), 3)  # the model itself was not touched
    batch = worker("generate", requests(), Sampling(1.0, 8), 3)
    assert largest_difference(batch, build_model(0, tied), 1.0) < TOLERANCE


def test_update_through_a_process_group(worker: Remote, tied: bool) -> None:
    held = []
    for version in (4, 5, 6):
        if version != 5:  # the last through a group of its own, as a second PPO stage has it
            sender = connect(worker)
            held.append(worker.files())
        model = build_model(version, tied)
        named = [(n, p.detach()) for n, p in model.named_parameters()]
        offer = make_offer(version, describe(named), "gloo", bucket_bytes=1 << 16)
        worker.begin("receive_weights", offer)
        sent = sender.send(offer, ([pair] for pair in named))
        received = worker.answer()
        assert (received.version, received.checksum) == (version, sent.checksum)
        probed = worker("probe", [(1, 5, 9)], 12, 1.0, version)
        assert largest_difference(probed, model, 1.0) < TOLERANCE
    assert held[0] == held[1]  # the group before was left


def connect(worker: Remote) -> WeightSender:
    """Form a transfer group with the engine as its one receiver."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = GroupAddress("127.0.0.1", probe.getsockname()[1], 2)
    worker.begin("connect", address, 1)
    sender = WeightSender(LINK)
    sender.connect(address)
    worker.answer()
    return sender


def test_checkpoint_folder_is_loaded_into_the_running_engine(
    worker: Remote, tied: bool, tmp_path: Path
) -> None:
    model = build_model(6, tied)
    model.save_pretrained(tmp_path / "whole")
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for version, name in enumerate(("whole", "shards"), start=6):
        worker("load_checkpoint", str(tmp_path / name), version)
        batch = worker("generate", requests(), Sampling(1.0, 8), version)
        assert largest_difference(batch, model, 1.0) < TOLERANCE


def test_unusable_checkpoint_folder_leaves_the_engine_as_it_was(
    worker: Remote, tied: bool, tmp_path: Path
) -> None:
    with pytest.raises(MissingCheckpointError):
        worker("load_checkpoint", str(tmp_path / "nowhere"), 1)
    build_model(1, tied).save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(BrokenCheckpointError, match=r"model\.safetensors"):
        worker("load_checkpoint", str(tmp_path), 1)
    assert worker("state") == EngineState(0, "admitted")


@pytest.mark.parametrize(
    ("prompt", "tokens", "message"),
    [
        ((), 4, "0 prompt tokens"),
        (tuple(range(3, 20)), 4, "17 prompt tokens"),
        ((1, VOCABULARY), 4, "vocabulary"),
        ((1, 5), 25, "max_tokens=25"),
    ],
)
def test_unusable_request_is_refused_by_name(
    worker: Remote, prompt: tuple[int, ...], tokens: int, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        worker("generate", [GenerationRequest(3, prompt, (0,), (0,))], Sampling(1.0, tokens), 0)
    assert len(worker("generate", requests(), Sampling(1.0, 4), 0)) == 24


def test_vllm_names_head_sizes_that_it_cannot_compute(
    processes: Callable[[str], Remote], tmp_path: Path
) -> None:
    build_model(0, tied=True, heads=8).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="heads of size 16"):
        processes("vllm")("start", make_spec("vllm", tmp_path), 0)


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def interruptible(
    request: pytest.FixtureRequest,
    processes: Callable[[str], Remote],
    checkpoints: dict[bool, Path],
) -> Remote:
    remote = processes(request.param)
    remote("start", make_spec(request.param, checkpoints[True], interruptible=True), 0)
    return remote


def call(
    number: int, asked: list[GenerationRequest], tokens: int = 16, delivery: Delivery | None = None
) -> GenerationCall:
    return GenerationCall(number, asked, Sampling(1.0, tokens), 0, delivery or Delivery())


def by_id(parts: list[RolloutBatch]) -> RolloutBatch:
    batch = RolloutBatch.concat(parts)
    return batch.select(np.argsort(batch.ids))


def test_parts_are_what_the_whole_is(worker: Remote) -> None:
    whole = worker("generate", requests(2), Sampling(1.0, 12), 0)
    parts = worker("generate_parts", call(1, requests(2), 12, Delivery(8)))
    assert len(parts) > 2
    assert all(len(part) >= 8 for part in parts[:-1])
    again = worker("generate_parts", call(2, requests(2), 12, Delivery(8)))
    assert [p.ids.tolist() for p in again] == [p.ids.tolist() for p in parts]
    for left, right in zip(
        (whole.tokens, whole.logprobs), (by_id(parts).tokens, by_id(parts).logprobs), strict=True
    ):
        assert np.array_equal(left.values, right.values)


def test_enough_groups_end_the_call_and_leave_nothing_behind(worker: Remote) -> None:
    whole = worker("generate", requests(2), Sampling(1.0, 12), 0)
    for number in (1, 2):
        (some,) = worker("generate_parts", call(number, requests(2), 12, Delivery(groups=5)))
        assert len(some) == 10
        assert len(set(some.prompt_ids.tolist())) == 5
        rows = [whole.ids.tolist().index(i) for i in some.ids.tolist()]
        assert [whole.response(r) for r in rows] == [some.response(i) for i in range(10)]
    after = worker("generate", requests(2), Sampling(1.0, 12), 0)
    assert np.array_equal(after.tokens.values, whole.tokens.values)


@pytest.mark.parametrize("steps", [0, 3, 9])
def test_each_token_belongs_to_the_weights_that_drew_it(
    interruptible: Remote, checkpoints: dict[bool, Path], steps: int
) -> None:
    worker, asked = interruptible, requests(2)
    worker("load_checkpoint", str(checkpoints[True]), 0)
    worker("pause_after", steps)
    assert worker("generate_parts", call(1, asked)) == []
    model, sender = build_model(1, True), WeightSender(LINK)
    worker("receive_weights", publish(model, sender, 1))
    worker("probe", [(1, 5), (1, 6, 7)], 4, 1.0, 1)
    with pytest.raises(StaleEngineError):
        worker("proceed", 1, 1)
    worker("admit", 1)
    (batch,) = worker("proceed", 1, 1)
    assert batch.ids.tolist() == [i for r in asked for i in r.ids]
    old = oracle_logprobs(build_model(0, True), batch, 1.0)
    new = oracle_logprobs(model, batch, 1.0)
    mixed = 0
    for row in range(len(batch)):
        first, last = batch.versions[row].tolist()
        found = batch.logprobs.row(row)
        fits = [
            cut
            for cut in range(len(found) + 1)
            if np.abs(found[:cut] - old[row][:cut]).max(initial=0) < TOLERANCE
            and np.abs(found[cut:] - new[row][cut:]).max(initial=0) < TOLERANCE
        ]
        assert fits, f"row {row}"
        assert (first == 0) == (min(fits) > 0)
        assert (last == 1) == (max(fits) < len(found))
        mixed += first != last
    assert (mixed > 4) == (steps > 0)
    assert worker("proceed", 1, 1) == []  # nothing is left of the call


def test_what_is_forgotten_leaves_nothing_behind(
    interruptible: Remote, checkpoints: dict[bool, Path]
) -> None:
    worker = interruptible
    worker("load_checkpoint", str(checkpoints[True]), 0)
    whole = worker("generate", requests(2), Sampling(1.0, 16), 0)
    worker("pause_after", 3)
    assert worker("generate_parts", call(1, requests(2))) == []
    worker("forget")
    worker("admit", 0)
    assert worker("proceed", 1, 0) == []
    same_sequences(by_id(worker("generate_parts", call(2, requests(2)))), whole)


@pytest.fixture(scope="module", params=["vllm", "transformers"])
def joinable(
    request: pytest.FixtureRequest,
    processes: Callable[[str], Remote],
    checkpoints: dict[bool, Path],
) -> Remote:
    remote = processes(request.param)
    spec = make_spec(request.param, checkpoints[True], interruptible=True, join_running=True)
    remote("start", spec, 0)
    return remote


def same_sequences(left: RolloutBatch, right: RolloutBatch) -> None:
    assert left.ids.tolist() == right.ids.tolist()
    assert left.tokens.values.tolist() == right.tokens.values.tolist()
    np.testing.assert_allclose(left.logprobs.values, right.logprobs.values, atol=TOLERANCE)


def test_calls_that_join_give_what_they_give_alone(joinable: Remote) -> None:
    asked = [requests(2), requests(2, 1000)]
    alone = [joinable("generate", each, Sampling(1.0, 16), 0) for each in asked]
    joinable("announce", call(2, asked[1]))
    (first,) = joinable("generate_parts", call(1, asked[0]))
    (probe,) = joinable("generate", requests(1)[:1], Sampling(1.0, 2), 0).ids  # between the two
    (second,) = joinable("generate_parts", call(2, asked[1]))
    joinable("announce", call(2, asked[1]))  # too late: forgotten
    (third,) = joinable("generate_parts", call(3, asked[0]))
    assert probe == 0
    for found, expected in ((first, alone[0]), (second, alone[1]), (third, alone[0])):
        same_sequences(found, expected)
    assert joinable("proceed", 2, 0) == []


def test_new_weights_reach_calls_that_have_joined(
    joinable: Remote, checkpoints: dict[bool, Path]
) -> None:
    asked = [requests()[:8], requests(1, 1000)[:8]]
    joinable("load_checkpoint", str(checkpoints[True]), 0)
    joinable("announce", call(12, asked[1]))
    joinable("pause_after", 4)
    for number, each in zip((11, 12), asked, strict=True):
        assert joinable("generate_parts", call(number, each)) == []
    model, sender = build_model(1, True), WeightSender(LINK)
    joinable("receive_weights", publish(model, sender, 1))
    joinable("admit", 1)
    batches = [joinable("proceed", call, 1)[0] for call in (11, 12)]
    new = oracle_logprobs(model, batches[1], 1.0)
    for row in range(len(batches[1])):
        # Four steps were under the old weights.
        tail = batches[1].logprobs.row(row)[4:]
        np.testing.assert_allclose(tail, new[row][4:], atol=TOLERANCE)
    assert any(first == 0 for first, _ in batches[0].versions.tolist())


def test_an_interrupted_call_follows_the_same_distribution(
    interruptible: Remote, checkpoints: dict[bool, Path]
) -> None:
    prompt, n = (1, 9, 17), 1500
    worker = interruptible
    worker("load_checkpoint", str(checkpoints[True]), 0)
    asked = [GenerationRequest(0, prompt, tuple(range(n)), tuple(range(n)))]
    worker("pause_after", 1)
    worker("generate_parts", call(1, asked, 2))
    worker("admit", 0)
    (batch,) = worker("proceed", 1, 0)
    with torch.no_grad():
        logits = build_model(0, True)(torch.tensor([prompt])).logits[0, -1]
        first = logits.double().softmax(-1)
        then = torch.tensor([[*prompt, t] for t in range(VOCABULARY)])
        second = build_model(0, True)(then).logits[:, -1].double().softmax(-1)
    first_counts, counts = np.zeros(VOCABULARY), np.zeros(VOCABULARY)
    for row in range(n):
        response = batch.response(row)
        first_counts[response[0]] += 1
        if len(response) > 1:
            counts[response[1]] += 1
    going_on = first.clone()
    going_on[EOS] = 0
    expected = n * (going_on[:, None] * second).sum(0).numpy()
    for seen, wanted in ((first_counts, n * first.numpy()), (counts, expected)):
        large = wanted >= 5
        statistic = (((seen - wanted) ** 2 / wanted)[large]).sum()
        degrees = int(large.sum())
        assert statistic < degrees + 5 * math.sqrt(2 * degrees)


@pytest.mark.parametrize("tied", [True, False])
def test_vllm_draws_no_id_beyond_the_tokenizer_before_and_after_a_sync(
    checkpoints: dict[bool, Path], tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log-probabilities are among what can be drawn; temperature 0 takes the best of it."""
    ids = VOCABULARY - 20
    spec = make_spec("vllm", checkpoints[tied], vocabulary=ids)
    remote = Remote(engine_environment(spec), monkeypatch)
    remote("start", spec, 0)
    asked = [
        GenerationRequest(i, (1, 3 + i, 5), (2 * i, 2 * i + 1), (i, 99 + i)) for i in range(12)
    ]
    sender = WeightSender(LINK)
    for version in (0, 1):
        model = build_model(version, tied)
        if version:
            remote("receive_weights", publish(model, sender, version))
            remote("admit", version)
        for temperature in (1.0, 0.0):
            batch = remote("generate", asked, Sampling(temperature, 12), version)
            drawn = [t for i in range(len(batch)) for t in batch.response(i)]
            assert max(drawn) < ids
            cut = build_model(version, tied)
            cut.lm_head = torch.nn.Linear(128, ids, bias=False)
            cut.lm_head.weight = torch.nn.Parameter(model.lm_head.weight[:ids].detach())
            assert largest_difference(batch, cut.eval(), temperature) < TOLERANCE
    remote.stop()
