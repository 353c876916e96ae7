"""What the peers' benchmark makes of its turns, and how it starts each side."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from benchmarks.peers import __main__ as command
from benchmarks.peers.environments import PEERS as INSTALLED
from benchmarks.peers.environments import commands, contents
from benchmarks.peers.figures import (
    Turn,
    check_work,
    cpu_at,
    ratios,
    summary,
    turn_of,
    work_of,
)
from benchmarks.peers.marks import Mark, Marks, read_marks
from benchmarks.peers.shapes import SHAPES
from benchmarks.peers.sides import (
    PEERS,
    SCRIPTS,
    Comparison,
    SpanClock,
    job,
    our_command,
    our_marks,
    peer_command,
)
from benchmarks.peers.watch import Sample, Watch, cpu_seconds, proportional_bytes, tree
from workers.errors import DataError

POCKET = SHAPES["pocket"]
DONE = Mark(at=0.0, sequences=128, prompt_tokens=16, response_tokens=24, optimizer_steps=4)


@pytest.fixture
def settings(tmp_path: Path) -> Comparison:
    return Comparison(
        shape=POCKET, inputs=tmp_path / "inputs", scratch=tmp_path, cache=tmp_path / "cache",
        steps=3, warm_up=1, threads=2, precisions={"ours": "bf16", "floor": "bf16", "trl": "fp32"},
    )  # fmt: skip


def test_processor_time_lies_on_the_line_between_two_looks() -> None:
    samples = [Sample(10.0, 1.0), Sample(12.0, 5.0), Sample(13.0, 5.5)]
    assert cpu_at(samples, 10.5) == 2.0
    assert cpu_at(samples, 12.5) == 5.25
    with pytest.raises(ValueError, match="no look"):
        cpu_at(samples, 9.9)


def test_a_turn_counts_from_the_end_of_the_warm_up() -> None:
    marks = [replace(DONE, at=at) for at in (20.0, 21.0, 23.0, 24.0)]
    samples = [Sample(10.0, 0.0), Sample(20.0, 30.0), Sample(30.0, 50.0)]  # 2 s per second
    assert turn_of(marks, samples, 3 << 29, begun=8.0, warm_up=2) == Turn(
        step_seconds=(2.0, 1.0), cpu_seconds=3.0, peak_gib=1.5, first_step_after=12.0
    )


def test_ratios_are_those_of_neighbouring_turns() -> None:
    def turn(seconds: float, cpu: float, peak: float, first: float) -> Turn:
        return Turn((seconds, seconds, 100.0), cpu, peak, first)

    over = ratios(
        {
            "ours": [turn(1.0, 2.0, 3.0, 4.0), turn(10.0, 1.0, 3.0, 4.0), turn(1.0, 2.0, 3.0, 4.0)],
            "peer": [turn(2.0, 1.0, 2.0, 1.0), turn(50.0, 1.0, 2.0, 1.0), turn(4.0, 1.0, 2.0, 1.0)],
        }
    )
    assert over == {
        "peer": {"step_seconds": 0.25, "cpu_seconds": 2.0, "peak_gib": 1.5, "first_step_after": 4.0}
    }


def test_a_summary_takes_the_median_over_all_steps_of_all_turns() -> None:
    turns = [Turn((1.0, 9.0), 2.0, 5.0, 7.0), Turn((2.0, 3.0, 4.0), 4.0, 6.0, 9.0)]
    assert summary(turns, sequences=6) == {
        "step_seconds": 3.0, "fastest_step_seconds": 1.0, "cpu_seconds": 3.0, "peak_gib": 5.5,
        "sequences_per_second": 2.0, "first_step_after": 8.0,
    }  # fmt: skip


def test_every_shape_s_work_is_what_its_numbers_say() -> None:
    assert work_of(SHAPES["tiny"]) == {
        "sequences": 8, "prompt_tokens": 16, "response_tokens": 24, "optimizer_steps": 1
    }  # fmt: skip
    assert work_of(POCKET) == {n: v for n, v in asdict(DONE).items() if n != "at"}
    assert work_of(SHAPES["llama_70m"]) == {
        "sequences": 16, "prompt_tokens": 32, "response_tokens": 64, "optimizer_steps": 2
    }  # fmt: skip
    assert work_of(replace(POCKET, epochs=3))["optimizer_steps"] == 12


@pytest.mark.parametrize(
    "other", [{"sequences": 127}, {"prompt_tokens": 17}, {"response_tokens": 23},
              {"optimizer_steps": 1}]
)  # fmt: skip
def test_a_side_that_did_other_work_is_refused(other: dict[str, int]) -> None:
    check_work("trl", POCKET, 2, [DONE, DONE])
    with pytest.raises(DataError, match="trl did other work in step 2"):
        check_work("trl", POCKET, 2, [DONE, replace(DONE, **other)])


def test_a_side_that_made_fewer_steps_is_refused() -> None:
    with pytest.raises(DataError, match="floor made 1 steps of 2"):
        check_work("floor", POCKET, 2, [DONE])


def test_marks_are_read_as_they_were_written(tmp_path: Path) -> None:
    marks, before = Marks(str(tmp_path / "marks")), time.monotonic()
    marks.add(8, 16, 24, 1)
    marks.add(4, 3, 2, 5)
    first, second = read_marks(tmp_path / "marks")
    assert before <= first.at <= second.at <= time.monotonic()
    assert second == Mark(second.at, sequences=4, prompt_tokens=3, response_tokens=2,
                          optimizer_steps=5)  # fmt: skip


def test_ours_and_peers_are_told_the_same_shape(settings: Comparison, tmp_path: Path) -> None:
    keys = our_command(settings, tmp_path)
    told = job("floor", settings, tmp_path)
    for key, value in {
        "algorithm.prompts_per_iteration": told["sequences"],
        "algorithm.sequences_per_minibatch": told["minibatch"],
        "algorithm.epochs": told["epochs"],
        "algorithm.iterations": told["steps"],
        "rollout.max_prompt_tokens": told["prompt_tokens"],
        "rollout.max_response_tokens": told["response_tokens"],
        "rollout.kv_cache_mib": told["kv_cache_mib"],
        "algorithm.policy_optimizer.learning_rate": told["learning_rate"],
        "algorithm.critic_optimizer.learning_rate": told["learning_rate"],
    }.items():
        assert f"{key}={value}" in keys, key
    assert told["dtype"] == "bfloat16"
    assert "trainer=zero1_bf16" in keys


def test_fp32_of_ours_needs_no_keys(settings: Comparison, tmp_path: Path) -> None:
    plain = replace(settings, precisions={"ours": "fp32"}, keys=("cluster.cpus_per_node=4",))
    keys = our_command(plain, tmp_path)
    assert not [key for key in keys if "bf16" in key]
    assert "cluster.cpus_per_node=4" in keys


@pytest.mark.parametrize("name", sorted(PEERS))
def test_every_peer_has_a_script_and_an_environment(name: str) -> None:
    script, environment, _ = PEERS[name]
    assert (SCRIPTS / script).is_file()
    assert environment == "" or environment in INSTALLED


def test_the_floor_runs_in_this_environment(settings: Comparison, tmp_path: Path) -> None:
    python, script, path = peer_command("floor", settings, tmp_path)
    assert (python, Path(script).name) == (sys.executable, "run_floor.py")
    assert json.loads(Path(path).read_text()) == job("floor", settings, tmp_path)


def test_an_environment_installs_its_pins_and_shares_torch(tmp_path: Path) -> None:
    make, install = commands(INSTALLED["trl"], tmp_path / "trl", "uv")
    assert make[:2] == ["uv", "venv"]
    assert "trl==1.12.0" in install
    assert str(tmp_path / "trl" / "bin" / "python") in install
    left_out = Path(install[install.index("--override") + 1]).read_text()
    assert "torch; sys_platform == 'never'" in left_out
    assert contents(INSTALLED["trl"])["shared torch"] in subprocess.run(
        [sys.executable, "-c", "import importlib.metadata as m; print(m.version('torch'))"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def test_the_trace_s_begin_is_found_from_spans_as_they_come(tmp_path: Path) -> None:
    clock, path = SpanClock(tmp_path), tmp_path / "trace" / "spans.json"
    clock.poll()  # no trace yet
    path.parent.mkdir()
    path.write_text('[\n{"name": "process_name", "ph": "M", "pid": 0},\n{"ph": "X", "ts"')
    clock.poll()
    assert clock.began == float("inf")
    began = time.monotonic()
    path.write_text(path.read_text() + ': 2000000, "dur": 1000000, "pid": 0},\n')
    clock.poll()
    assert clock.began == pytest.approx(began - 3.0, abs=0.5)


def test_our_steps_end_where_the_next_begins_and_the_last_with_its_sync(tmp_path: Path) -> None:
    _our_run(tmp_path, tokens=(24.0, 23.5))
    clock = SpanClock(tmp_path)
    clock.began = 100.0
    first, second = our_marks(tmp_path, clock)
    assert first == Mark(at=104.0, sequences=128, prompt_tokens=3, response_tokens=24,
                         optimizer_steps=8)  # fmt: skip
    assert second == replace(first, at=107.5, response_tokens=-1)  # lengths differed


def _our_run(folder: Path, tokens: tuple[float, float]) -> None:
    """A run folder of two steps."""
    for name in ("trace", "samples"):
        (folder / name).mkdir()
    spans = [
        {"ph": "M", "name": "generate", "pid": 0},
        *(
            {"ph": "X", "name": name, "pid": pid, "ts": ts * 1e6, "dur": 5e5}
            for name, pid, ts in (
                ("weight_sync", 0, 0), ("generate", 0, 1), ("weight_sync", 0, 3),
                ("generate", 0, 4), ("weight_sync", 0, 7), ("generate", 1, 9),
            )
        ),
    ]  # fmt: skip
    (folder / "trace" / "spans.json").write_text(json.dumps(spans))
    rows = [{"prompt": "w1 w2 w3"}, {"prompt": "w7 w8 w9"}]
    (folder / "samples" / "rollouts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    algorithm = {"prompts_per_iteration": 64, "samples_per_prompt": 2,
                 "sequences_per_minibatch": 32, "epochs": 2}  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump({"algorithm": algorithm}))
    metrics = [
        {"step": step, "name": name, "value": value}
        for step, mean in enumerate(tokens, start=1)
        for name, value in (("ppo/trained", 128.0), ("ppo/response_tokens_mean", mean))
    ]
    lines = [{"step": 0, "name": "ppo/parity_max", "value": 0.0}, *metrics]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))


def test_a_tree_s_processor_time_and_memory_contain_its_children() -> None:
    code = "import sys,subprocess; s=bytearray(64<<20); sys.stdin.read()"
    spawn = f"import subprocess,sys; subprocess.run([sys.executable,'-c',{code!r}])"
    process = subprocess.Popen([sys.executable, "-c", spawn], stdin=subprocess.PIPE)
    try:
        deadline = time.monotonic() + 20
        while sum(map(proportional_bytes, tree(process.pid))) < 64 << 20:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert len(tree(process.pid)) == 2
        assert sum(map(cpu_seconds, tree(process.pid))) > 0
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(20)
    assert tree(process.pid) == [] or process.poll() is not None


def test_a_watch_ends_with_its_process() -> None:
    process, looks = subprocess.Popen(["sleep", "0.5"]), []
    watch = Watch(process.pid, lambda: looks.append(os.getpid()))
    process.wait()
    watch.end()
    assert looks
    assert len(looks) == len(watch.samples)
    assert proportional_bytes(process.pid) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--peers", "trl,other"], "no peer 'other'"),
        (["--repetitions", "0"], "--repetitions"),
        (["--warm-up", "0"], "--warm-up"),
    ],
)
def test_wrong_flags_end_in_one_message(
    arguments: list[str], message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert command.main(arguments) == 2
    assert message in capfd.readouterr().err
