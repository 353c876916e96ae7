"""What the rollout benchmark makes of its turns, and of its command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.rollout_throughput.__main__ import in_turns, timed_turns
from benchmarks.rollout_throughput.figures import (
    Split,
    Turn,
    cpu_ratio,
    latency,
    percentile,
    point,
    shares,
    split,
)
from benchmarks.rollout_throughput.settings import check, model_of, read, roles_of
from benchmarks.rollout_throughput.sides import prompt_tokens, requests_of
from workers.data.records import Prompt
from workers.errors import (
    BatchArithmeticError,
    ConfigError,
    MissingCheckpointError,
    RehearsalError,
    ResourceError,
)
from workers.pocket.model import create_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    create_model(
        folder, hidden_size=64, layers=1, heads=2, kv_heads=2, intermediate_size=64,
        max_position_embeddings=128, tie_word_embeddings=True, seed=0,
    )  # fmt: skip
    return folder


def test_speeds_count_prompt_and_response_tokens_apart():
    turn = Turn(prompt_tokens=30, tokens=200, seconds=4.0)
    assert (turn.speed, turn.prompt_speed) == (50.0, 7.5)


def test_a_percentile_is_the_smallest_value_that_so_many_do_not_exceed():
    values = [7.0, 1.0, 3.0, 5.0]
    assert percentile(values, 50) == 3.0
    assert percentile(values, 51) == 5.0
    assert percentile(values, 75) == 5.0
    assert percentile(values, 95) == 7.0
    assert percentile([4.0], 1) == 4.0
    assert latency([float(n) for n in range(100, 0, -1)]) == {"p50": 50.0, "p95": 95.0}


def test_engine_ray_and_driver_add_up_to_the_turn():
    assert split(10.0, [6.0, 8.0], 0.5) == Split(engine=8.0, ray=1.5, driver=0.5)
    # what the driver does while engines work is no part of the rest
    assert split(10.0, [9.0], 4.0) == Split(engine=9.0, ray=0.0, driver=1.0)
    # clocks of two machines differ
    assert split(10.0, [11.0], 4.0) == Split(engine=10.0, ray=0.0, driver=0.0)


def test_shares_of_time_weigh_turns_by_their_seconds():
    turns = [
        Turn(1, 1, 10.0, split=Split(8.0, 1.5, 0.5)),
        Turn(1, 1, 30.0, split=Split(29.0, 0.5, 0.5)),
    ]
    assert shares(turns) == {"engine": 37 / 40, "ray": 2 / 40, "driver": 1 / 40}


def test_ratios_compare_neighbouring_turns_and_the_median_is_theirs():
    ours = [Turn(10, 90, 1.0, 2.0), Turn(10, 80, 2.0, 2.0), Turn(10, 60, 1.0, 3.0)]
    raw = [Turn(10, 60, 1.0, 1.0), Turn(10, 80, 1.0, 1.0), Turn(10, 80, 1.0, 1.0)]
    for turn in range(3):
        ours[turn] = Turn(10, ours[turn].tokens, ours[turn].seconds, ours[turn].cpu_seconds,
                          Split(ours[turn].seconds, 0.0, 0.0))  # fmt: skip
    found = point(8, {"ours": ours, "raw": raw}, {"ours": [1.0, 3.0], "raw": [2.0, 4.0]})
    against = found["ours_over"]["raw"]
    assert against["ratios"] == [1.5, 0.5, 0.75]
    assert against["median"] == 0.75
    assert against["median_by_cpu_seconds"] == 0.5  # of .75, .5 and .25
    assert against["same_tokens"] == [False, True, False]
    assert found["sides"]["ours"]["tokens_per_second"] == 60.0
    assert found["sides"]["raw"]["tokens_per_second"] == 80.0
    assert found["sides"]["ours"]["prompt_tokens_per_second"] == 10.0
    assert found["sides"]["raw"]["latency_seconds"] == {"p50": 2.0, "p95": 4.0}
    assert found["concurrency"] == 8


def test_without_processor_seconds_there_is_no_such_ratio():
    assert cpu_ratio([Turn(1, 1, 1.0, None)], [Turn(1, 1, 1.0, 2.0)]) is None


def test_prompt_tokens_are_those_of_every_sample():
    prompts = [Prompt(0, (1, 5, 6), "", 0), Prompt(1, (1, 5), "", 1)]
    requests = requests_of(prompts, 4, seed=0, turn=1)
    assert prompt_tokens(requests) == 4 * 3 + 4 * 2
    assert [r.ids for r in requests] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    seeds = {seed for r in requests for seed in r.seeds}
    others = {seed for r in requests_of(prompts, 4, seed=0, turn=2) for seed in r.seeds}
    assert len(seeds) == 8
    assert not seeds & others


def test_sides_take_turns_and_the_first_turn_is_not_counted():
    called: list[tuple[str, int]] = []

    class Recorded:
        def __init__(self, name: str) -> None:
            self.name = name

        def turn(self, requests: list[int]) -> Turn:
            called.append((self.name, requests[0]))
            return Turn(1, requests[0], 1.0)

    sides = {"ours": Recorded("ours"), "raw": Recorded("raw")}
    turns = in_turns(sides, [[10], [11], [12]])  # type: ignore[arg-type, list-item]
    assert called == [("raw", 10), ("ours", 10), ("ours", 11), ("raw", 11), ("raw", 12),
                      ("ours", 12)]  # fmt: skip
    assert [turn.tokens for turn in turns["ours"]] == [11, 12]
    assert [turn.tokens for turn in turns["raw"]] == [11, 12]
    assert [timed_turns(n) for n in (1, 2, 5)] == [1, 1, 2]


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ("--concurrency 0", "--concurrency"),
        ("--concurrency 8,", "--concurrency"),
        ("--concurrency -8", "--concurrency"),
        ("--concurrency eight", "--concurrency"),
        ("--output-tokens 0", "--output-tokens"),
        ("--repetitions 0", "--repetitions"),
        ("--sequences -1", "--sequences"),
        ("--against vllm", "--against"),
        ("--against none,raw", "--against"),
        ("--out pyproject.toml", "--out"),
        ("rollout.kv_cache=3", "configuration"),
        ("+experiment=nope", "configuration"),
        ("rollout.precision=fp8", "rollout.precision"),
    ],
)
def test_wrong_arguments_are_refused_by_name(arguments: str, where: str):
    # argparse takes a negative number for a flag unless it is joined
    words = arguments.replace(" -", "=-") if " -" in arguments else arguments
    with pytest.raises(ConfigError) as raised:
        read(words.split())
    assert raised.value.where == where
    assert raised.value.fix


@pytest.mark.parametrize(
    ("arguments", "error", "where"),
    [
        ("--concurrency 6 algorithm.samples_per_prompt=4", BatchArithmeticError, "--concurrency"),
        ("--concurrency 6 cluster.roles.rollout.workers=4", BatchArithmeticError, "--concurrency"),
        ("--concurrency 8 --sequences 4", BatchArithmeticError, "--sequences"),
        ("--concurrency 8 rollout.max_prompt_tokens=105", BatchArithmeticError, "rollout"),
        ("--concurrency 8 --output-tokens 65", BatchArithmeticError, "rollout"),
        ("--concurrency 8 --output-tokens 8 rollout=transformers", ConfigError, "--output-tokens"),
        ("--concurrency 8 resume=auto", ConfigError, "resume"),
    ],
)
def test_numbers_that_do_not_fit_the_model_are_refused(
    model: Path, arguments: str, error: type[RehearsalError], where: str
):
    settings = read(arguments.split())
    with pytest.raises(error) as raised:
        check(settings, model)
    assert raised.value.where == where
    assert raised.value.fix


def test_prompts_and_responses_may_fill_all_positions(model: Path):
    assert check(read(["--concurrency", "8", "rollout.max_prompt_tokens=104"]), model) == []


def test_a_missing_model_is_refused(tmp_path: Path):
    absent = tmp_path / "absent"
    with pytest.raises(MissingCheckpointError):
        model_of(read([f"model.checkpoints.sft={absent}"]).config)
    with pytest.raises(ConfigError, match="no model is given"):
        model_of(read(["data=files"]).config)


def test_engines_over_more_gpus_than_they_have_are_refused():
    keys = ["cluster=node_8gpu", "rollout.tensor_parallel_size=4"]
    with pytest.raises(ResourceError) as raised:
        roles_of(read([*keys, "--concurrency", "8"]))
    assert raised.value.where == "cluster.roles.rollout.gpus"


def test_all_sides_need_room_on_the_cluster():
    keys = ["cluster=node_8gpu", "cluster.roles.rollout.workers=5", "--concurrency", "10"]
    with pytest.raises(ResourceError, match="do not fit") as raised:
        roles_of(read(keys))
    assert "--against none" in raised.value.fix
    cluster, layout = roles_of(read([*keys, "--against", "none"]))
    assert (cluster.roles.rollout.workers, layout.gpus) == (5, 5)


def test_engines_do_not_share_a_gpu_with_raw_vllm():
    keys = ["cluster=one_gpu", "cluster.roles.rollout.gpus=0.5", "rollout.gpu_memory_fraction=0.6"]
    with pytest.raises(ResourceError) as raised:
        roles_of(read(keys))
    assert raised.value.where == "cluster.roles.rollout.workers"
    roles_of(read([*keys, "--against", "none"]))


def test_a_concurrency_is_shared_by_the_engines():
    settings = read(["--concurrency", "32,8,8", "cluster.roles.rollout.workers=2"])
    assert settings.concurrency == (8, 32)
    assert settings.at(32).rollout.max_concurrent_sequences == 16
    assert settings.turn_sequences(8) == 8
    assert read(["--concurrency", "8", "--sequences", "64"]).turn_sequences(8) == 64
