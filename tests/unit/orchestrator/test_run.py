"""The command line: what is printed, which code it exits with, what it leaves behind."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
import time
import types
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fakes.progress import progress
from omegaconf import OmegaConf

from orchestrator.checkpoints.config_changes import Changes, compare_config, plain_config
from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.command_line.earlier_run import read_configuration
from orchestrator.command_line.errors import nearest_keys
from orchestrator.config.schema import Config
from orchestrator.process.stop_signals import StopRequest
from orchestrator.run_files.folder import RunFolder
from orchestrator.session.resume import Start, package_versions
from orchestrator.session.saves import Saves
from workers.errors import (
    ConfigError,
    DataLineError,
    NonFiniteError,
    RehearsalError,
    StoppedError,
    WaitingError,
)

Command = Callable[..., int]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., None]], None]:
    """Puts a function in the place of the recipe."""

    def install(function: Callable[..., None]) -> None:
        module = types.ModuleType("orchestrator.recipe")
        module.run_recipe = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "orchestrator.recipe", module)

    return install


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["+experiment=pockt"], ["no experiment/pockt", "mean +experiment=pocket", "pocket_scale"]),
        (["cluster=one_gp"], ["no cluster/one_gp", "did you mean cluster=one_gpu"]),
        (["algorithm.clipp=0.1"], ["unknown key algorithm.clipp", "did you mean algorithm.clip"]),
        (["+algorithm.clipp=0.1"], ["unknown key algorithm.clipp", "algorithm.clip"]),
        (["+experimnt=pocket"], ["unknown key experimnt", "did you mean experiment"]),
        (["learning_rate=1"], ["unknown key learning_rate", "optimizer.learning_rate"]),
        (["algorithm.clip=wide"], ["algorithm.clip=wide is not a number", "set it to a number"]),
        (["rollout.engine=sglang"], ["sglang", "vllm, transformers"]),
        (["model.attention=spda"], ["spda", "model.attention", "sdpa, eager, flash_attention_2"]),
        (["algorithm.clip=-1"], ["algorithm.clip=-1.0 is out of range", "above 0"]),
        (["seed=[1"], ["seed=[1 cannot be read", "a whole number"]),
        (["--experiment", "pocket"], ["+experiment=pocket, without dashes"]),
        (["experiment=pocket"], ["+experiment=pocket"]),
        (["+experiment=pocket", "algorithm.sequences_per_minibatch=48"], ["32 or 64"]),
        ([], ["no stages", "+experiment=pocket"]),
    ],
)
def test_mistakes_exit_with_2_and_say_how_to_fix(
    command: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    wanted: list[str],
):
    assert command(*arguments) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert "Traceback" not in printed
    assert all(words in printed for words in wanted), printed
    assert list(tmp_path.iterdir()) == []


def test_plan_only_prints_and_writes_nothing(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    assert command("+experiment=pocket", "run.plan_only=true") == 0
    assert "3,072 episodes" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_a_plan_tells_that_its_folder_is_taken(
    command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    taken = tmp_path / "taken"
    taken.mkdir()
    line = ["+experiment=pocket", f"run.dir={taken}", "run.plan_only=true"]
    assert command(*line) == 0
    assert "is not empty" not in capsys.readouterr().out  # an empty folder may be used
    (taken / "summary.json").write_text("{}")
    assert command(*line) == 0
    printed = capsys.readouterr().out
    assert f"{taken} is not empty: it holds summary.json" in printed
    assert "run.overwrite=true" in printed
    assert command(*line, "run.overwrite=true") == 0
    assert "is not empty" not in capsys.readouterr().out


def test_a_plan_without_its_cluster_asks_for_numbers_and_takes_them(
    command: Command, capsys: pytest.CaptureFixture[str]
):
    line = ["+experiment=pocket", "cluster=cpu_nodes", "cluster.address=127.0.0.1:1",
            "run.plan_only=true"]  # fmt: skip
    assert command(*line, "algorithm.sequences_per_minibatch=48") == 2
    assert "32 or 64" in capsys.readouterr().err  # found before anybody is asked
    assert command(*line) == 2
    printed = capsys.readouterr().err
    assert "no Ray cluster answers at '127.0.0.1:1'" in printed
    assert "a plan without a cluster needs numbers: cluster.nodes=N" in printed
    assert command(*line, "cluster.cpus_per_node=2", "cluster.gpus_per_node=0") == 0
    assert "node 1: " in capsys.readouterr().out


def test_a_plan_is_made_for_the_nodes_that_the_cluster_has(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    from orchestrator.cluster import reported_nodes

    waited: list[float] = []

    def found(config: object, seconds: float, note: Callable[[str], None]) -> str:
        waited.append(seconds)
        note("1 of 2 node(s) have joined")
        return "1.25x0+1x0+0.5x0"

    monkeypatch.setattr(reported_nodes, "reported_nodes", found)
    line = ["+experiment=pocket", "cluster=cpu_nodes", "run.plan_only=true"]
    assert command(*line, "cluster.placement=packed") == 0
    printed = capsys.readouterr().out
    assert "note: 1 of 2 node(s) have joined\n" in printed
    assert "node 0: rollout 0, reward 0, reference 0, policy 0, critic 0 (1.25 CPUs" in printed
    assert waited == [0.0]  # a plan alone is not worth waiting


def test_the_command_is_kept_as_it_was_typed(command, recipe, tmp_path: Path):
    folder = tmp_path / "a, b"
    assert command("+experiment=pocket_tiny", f"run.dir={folder}", "seed=3") == 0
    kept = json.loads((folder / "origin.json").read_text())["command"]
    assert shlex.split(kept)[-3:] == ["+experiment=pocket_tiny", f"run.dir={folder}", "seed=3"]


def test_the_resolved_configuration_is_saved_and_composes_again(command, recipe, tmp_path: Path):
    seen: list[Path] = []
    recipe(lambda config, plan, folder, *_: seen.append(folder))
    assert command("+experiment=pocket_tiny", "seed=3") == 0
    assert seen[0].parent == tmp_path / "outputs" / "pocket_tiny"  # roles may work elsewhere
    saved = OmegaConf.load(seen[0] / "config.yaml")
    assert saved.seed == 3
    assert Path(saved.run.dir).resolve() == seen[0]
    again = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), saved))
    assert isinstance(again, Config)
    assert [path.name for path in tmp_path.iterdir()] == ["outputs"]


@pytest.mark.parametrize(
    "error",
    [
        NonFiniteError("the loss is NaN", where="policy/1", fix="lower the rate"),
        DataLineError("no field 'prompt'", where="file.jsonl:7", fix="add it"),
    ],
)
def test_expected_failures_are_short_and_logged(
    command, recipe, capsys: pytest.CaptureFixture[str], error: RehearsalError
):
    def fail(*_: object) -> None:
        raise error

    recipe(fail)
    assert command("+experiment=pocket_tiny", "run.dir=here") == error.exit_code != 0
    printed = capsys.readouterr().err
    assert all(words in printed for words in (error.what, error.where, error.fix))
    assert "Traceback" not in printed
    assert "Traceback" in Path("here/error.log").read_text()


def test_a_used_folder_is_refused_unless_overwritten(command, recipe):
    recipe(lambda config, plan, folder, *_: (folder / "metrics.jsonl").write_text("{}\n"))
    line = ["+experiment=pocket_tiny", "run.dir=here"]
    assert command(*line) == 0
    assert command(*line) == 2
    assert command(*line, "run.overwrite=true") == 0


@pytest.mark.parametrize("again", ["run.overwrite=true", "resume=auto", "resume=here"])
def test_a_second_start_leaves_a_running_run_alone(command, recipe, capsys, again: str):
    def save(
        config: Config, plan: object, folder: Path, start: Start, stop: object, forks: object
    ) -> None:
        runs = SavedRuns(start.folder)
        known = progress("ppo", 1, **{"metrics.jsonl": 0})
        facts = {"config": plain_config(config), "versions": package_versions()}
        runs.publish(runs.begin("ppo", 1), [], known, facts, [])
        runs.begin("ppo", 2)
        start.folder.metrics.write_text("after the checkpoint\n")

    def files() -> dict[Path, bytes | None]:
        return {p: p.read_bytes() if p.is_file() else None for p in Path("here").rglob("*")}

    recipe(save)
    line = ["+experiment=pocket_tiny", "run.dir=here"]
    assert command(*line) == 0
    before = files()
    with RunFolder(Path("here")).locked():
        assert command(*line, again) == 2
    assert "another process works in this run folder" in capsys.readouterr().err
    assert files() == before


def test_ray_takes_no_other_process_for_its_raylet(command, recipe, monkeypatch):
    monkeypatch.setenv("RAY_RAYLET_PID", "1")  # of a task of Ray's that started the command
    found: list[str] = []
    recipe(lambda *_: found.append(os.environ["RAY_RAYLET_PID"]))
    assert command("+experiment=pocket_tiny") == 0
    assert found == [str(os.getpid())]


def test_a_sweep_names_the_command_that_compares_its_jobs(command, recipe, capsys):
    recipe(lambda *_: None)
    assert command("-m", "+experiment=pocket_tiny", "seed=1,2", "run.dir=a b") == 0
    last = capsys.readouterr().out.splitlines()[-1]
    words = shlex.split(last.partition(": ")[2])
    assert words[-2:] == ["--sweep", str(Path.cwd() / "a b")]
    assert command("+experiment=pocket_tiny", "run.dir=one") == 0
    assert "compare the jobs" not in capsys.readouterr().out


def test_a_sweep_gives_every_job_a_folder(command, recipe):
    folders: list[Path] = []
    recipe(lambda config, plan, folder, *_: folders.append(folder))
    assert command("-m", "+experiment=pocket_tiny", "seed=1,2", "run.dir=2026_11_28") == 0
    assert [(f.parent.name, f.name) for f in folders] == [("2026_11_28", "0"), ("2026_11_28", "1")]
    assert [OmegaConf.load(folder / "config.yaml").seed for folder in folders] == [1, 2]


@pytest.mark.parametrize(
    ("ends", "code"),
    [
        (StoppedError("saved"), 8),
        (KeyboardInterrupt(), 130),
        (ConfigError("wrong", where="here", fix="so"), 2),
    ],
)
def test_a_sweep_that_is_asked_to_stop_begins_no_further_run(command, recipe, ends, code):
    began: list[int] = []

    def run(config: Config, *_: object) -> None:
        began.append(config.seed)
        raise ends

    recipe(run)
    assert command("-m", "+experiment=pocket_tiny", "seed=1,2,3") == code
    assert began == ([1, 2, 3] if code == 2 else [1])


@pytest.fixture
def terminal() -> Iterator[None]:
    """As in a terminal: under nohup SIGHUP is ignored, in the background of a script SIGINT."""
    before = {each: signal.getsignal(each) for each in (signal.SIGHUP, signal.SIGINT)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_unwinds_the_run(command, recipe, terminal, number: signal.Signals):
    unwound: list[bool] = []

    def wait(*_: object) -> None:
        try:
            os.kill(os.getpid(), number)
            time.sleep(5)
        finally:
            unwound.append(True)

    recipe(wait)
    before = signal.getsignal(number)
    assert command("+experiment=pocket_tiny", "run.grace_seconds=0") == 128 + number
    assert unwound == [True]
    assert signal.getsignal(number) is before


def _terminate(number: signal.Signals = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_stop_signal_lets_the_run_reach_a_step_boundary(
    command, recipe, terminal, capsys, number
):
    def run_a_step(config: Config, plan: object, folder: Path, start: object, stop: StopRequest, _):
        assert not stop.requested
        _terminate(number)
        _terminate()  # batch systems send several
        _terminate(signal.SIGHUP)
        assert stop.requested
        raise StoppedError("stopped; everything is saved", fix=f"resume={folder}")

    recipe(run_a_step)
    assert command("+experiment=pocket_tiny", "run.dir=here") == 8
    printed = capsys.readouterr().err
    assert "everything is saved" in printed
    assert "error" not in printed
    assert not Path("here/error.log").exists()


def test_what_people_are_asked_for_is_kept_until_the_run_goes_on(command, recipe):
    def ask(*_: object):
        raise WaitingError("label waits for people", where="tasks.jsonl", fix="rank them")

    recipe(ask)
    assert command("+experiment=pocket_tiny", "run.dir=here") == WaitingError.exit_code
    kept = Path("here/waiting.txt").read_text()
    assert kept == "label waits for people\n  where: tasks.jsonl\n  fix: rank them\n"
    assert not Path("here/error.log").exists()
    recipe(lambda *_: None)
    assert command("+experiment=pocket_tiny", "run.dir=here", "run.overwrite=true") == 0
    assert not Path("here/waiting.txt").exists()


def test_a_run_that_ends_within_its_grace_has_succeeded(command, recipe):
    recipe(lambda *_: _terminate())
    assert command("+experiment=pocket_tiny") == 0


def test_the_grace_does_not_interrupt_the_teardown_of_a_run_that_saved_in_time(command, recipe):
    torn_down: list[bool] = []

    def save_and_stop(
        config: Config, plan: object, folder: Path, start: Start, stop: StopRequest, _: object
    ):
        try:
            _terminate()
            Saves(RunFolder(folder), config.run.checkpoint, stop).stop_if_asked()
        finally:
            time.sleep(0.3)
            torn_down.append(True)

    recipe(save_and_stop)
    assert command("+experiment=pocket_tiny", "run.grace_seconds=0.1") == 8
    assert torn_down == [True]


def test_the_grace_is_over_when_the_last_stage_is_saved(command, recipe):
    def finish(
        config: Config, plan: object, folder: Path, start: Start, stop: StopRequest, _: object
    ):
        _terminate()
        Saves(RunFolder(folder), config.run.checkpoint, stop).done()
        time.sleep(0.3)

    recipe(finish)
    assert command("+experiment=pocket_tiny", "run.grace_seconds=0.1") == 0


def test_after_its_grace_the_run_unwinds(command, recipe):
    unwound: list[bool] = []

    def wait(*_: object) -> None:
        try:
            _terminate()
            time.sleep(5)
        finally:
            unwound.append(True)

    recipe(wait)
    assert command("+experiment=pocket_tiny", "run.grace_seconds=0.1") == 128 + signal.SIGTERM
    assert unwound == [True]


def test_nohup_keeps_a_run_from_being_stopped_by_a_closed_terminal(command, recipe):
    requested: list[bool] = []

    def hang_up(config: Config, plan: object, folder: Path, start: object, stop: StopRequest, _):
        _terminate(signal.SIGHUP)
        requested.append(stop.requested)

    recipe(hang_up)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert command("+experiment=pocket_tiny") == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert requested == [False]


def test_an_interrupt_ends_a_run_that_saves_itself(command, recipe):
    def wait(*_: object) -> None:
        _terminate()
        _terminate(signal.SIGINT)
        time.sleep(5)

    recipe(wait)
    assert command("+experiment=pocket_tiny") == 128 + signal.SIGINT


def test_a_second_interrupt_ends_the_process_at_once(command, recipe, monkeypatch):
    class ExitedError(BaseException):
        pass

    def leave(code: int) -> None:
        raise ExitedError(code)

    def wait(*_: object) -> None:
        try:
            _terminate(signal.SIGINT)
        finally:
            _terminate(signal.SIGINT)

    recipe(wait)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(ExitedError, match="130"):
        command("+experiment=pocket_tiny")


def test_resume_goes_on_in_the_folder_it_names(command, recipe, tmp_path: Path):
    starts: list[Start] = []

    def save(
        config: Config, plan: object, folder: Path, start: Start, stop: object, forks: object
    ) -> None:
        starts.append(start)
        runs = SavedRuns(start.folder)
        known = progress("ppo", 1, **{"metrics.jsonl": 0})
        facts = {"config": plain_config(config), "versions": package_versions()}
        runs.publish(runs.begin("ppo", 1), [], known, facts, [])
        start.folder.metrics.write_text("after the checkpoint\n")

    recipe(save)
    assert command("+experiment=pocket_tiny", "run.dir=here", "resume=auto") == 0
    assert command("+experiment=pocket_tiny", "resume=here") == 0
    assert command("+experiment=pocket_tiny", "resume=here", "seed=9") == 2
    assert [start.saved is not None for start in starts] == [False, True]
    assert {start.folder.path for start in starts} == {tmp_path / "here"}
    assert OmegaConf.load("here/config.yaml").run.dir == str(tmp_path / "here")


def test_stages_are_appended_by_the_command_line_and_a_plan_of_it_changes_nothing(
    command, recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    seen: list[tuple[list[str], Start]] = []

    def save(
        config: Config, plan: object, folder: Path, start: Start, stop: object, forks: object
    ) -> None:
        seen.append(([stage.value for stage in config.stages], start))
        runs = SavedRuns(start.folder)
        known = progress("sft", 1, **{"metrics.jsonl": 0})
        facts = {"config": plain_config(config), "versions": package_versions()}
        runs.publish(runs.begin("sft", 1), [], known, facts, [])
        runs.begin("sft", 2)

    def tree() -> dict[str, tuple[int, bytes]]:
        files = sorted((tmp_path / "here").rglob("*"))
        return {
            str(f): (f.stat().st_mtime_ns, f.read_bytes() if f.is_file() else b"") for f in files
        }

    recipe(save)
    assert command("+experiment=pocket_tiny", "run.dir=here", "stages=[pretrain,sft]") == 0
    before, longer = tree(), "stages=[pretrain,sft,reward_model]"
    capsys.readouterr()
    assert command("resume=here", longer, "run.plan_only=true") == 0
    assert "resume: continues after stage sft, step 1 (000001-sft-1)" in capsys.readouterr().out
    assert command("resume=here", "stages=[pretrain]", "run.plan_only=true") == 2
    assert tree() == before
    assert command("resume=here", longer) == 0
    assert [stages for stages, _ in seen] == [
        ["pretrain", "sft"],
        ["pretrain", "sft", "reward_model"],
    ]
    assert seen[1][1].saved is not None


@pytest.fixture
def earlier(command, recipe) -> list[tuple[Config, Start]]:
    """A run of seed 3 in the folder `here` that was killed; and what the commands after it run."""
    seen: list[tuple[Config, Start]] = []

    def save(
        config: Config, plan: object, folder: Path, start: Start, stop: object, forks: object
    ) -> None:
        seen.append((config, start))
        if len(seen) == 1:
            runs = SavedRuns(start.folder)
            known = progress("ppo", 1)
            facts = {"config": plain_config(config), "versions": package_versions()}
            runs.publish(runs.begin("ppo", 1), [], known, facts, [])

    recipe(save)
    line = ["+experiment=pocket_tiny", "seed=3", "algorithm.clip=0.25", "cluster.cpus_per_node=7"]
    assert command(*line, "run.dir=here") == 0
    return seen


def test_resume_alone_goes_on_with_the_configuration_of_the_folder(
    command, earlier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    Path("here").rename("moved")
    capsys.readouterr()
    assert command("resume=moved") == 0
    first, again = earlier[0][0], earlier[1][0]
    assert plain_config(again) | {"run": {}, "resume": ""} == plain_config(first) | {
        "run": {}, "resume": ""
    }  # fmt: skip
    assert earlier[1][1].saved is not None
    assert Path(again.run.dir) == tmp_path / "moved"
    assert "configuration from" in capsys.readouterr().out
    checkpoint = next(Path("moved/state").glob("*-ppo-1"))
    assert command(f"resume={checkpoint}") == 0
    assert earlier[2][0].seed == 3


def test_keys_beside_resume_are_applied_and_said_or_refused(
    command, earlier, capsys: pytest.CaptureFixture[str]
):
    assert command("resume=here", "logger=tensorboard", "run.call_seconds=77") == 0
    assert (earlier[1][0].logger.tensorboard, earlier[1][0].run.call_seconds) == (True, 77.0)
    assert "over it logger=tensorboard, run.call_seconds=77" in capsys.readouterr().out
    assert command("resume=here", "cluster.cpus_per_node=8") == 0
    assert any("not bit-identical" in note for note in earlier[2][1].notes)
    for key in ("seed=4", "algorithm=instructgpt_paper", "rollout=transformers"):
        capsys.readouterr()
        assert command("resume=here", key) == 2
        assert "the configuration differs" in capsys.readouterr().err
    assert len(earlier) == 3


def test_resume_latest_alone_takes_the_run_that_saved_itself_last(command, recipe, tmp_path: Path):
    seen: list[tuple[str, int]] = []

    def save(
        config: Config, plan: object, folder: Path, start: Start, stop: object, forks: object
    ) -> None:
        seen.append((config.experiment, config.seed))
        runs = SavedRuns(start.folder)
        facts = {"config": plain_config(config), "versions": package_versions()}
        path = runs.publish(runs.begin("ppo", 1), [], progress("ppo", 1), facts, [])
        os.utime(path / "manifest.json", (len(seen), len(seen)))
        os.utime(path, (len(seen), len(seen)))

    recipe(save)
    assert command("+experiment=pocket_tiny", "seed=5", "run.dir=outputs/a/1") == 0
    assert command("+experiment=pocket", "seed=6", "run.dir=outputs/b/1") == 0
    assert command("resume=latest") == 0
    assert seen[-1] == ("pocket", 6)


def test_rerun_runs_a_configuration_again_in_a_new_folder(
    command, earlier, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert command("+rerun=here", "trainer=zero3") == 0
    first, again = (plain_config(config) for config, _ in earlier)
    assert again["rerun"] == "here"
    assert earlier[1][1].saved is None
    assert Path(again["run"]["dir"]).parent == Path("outputs/pocket_tiny")
    assert again["trainer"]["zero_stage"] == 3
    for config in (first, again):
        config["run"]["dir"] = config["rerun"] = ""
        config["trainer"]["zero_stage"] = 0
    assert again == first
    assert command("rerun=here/config.yaml", "run.dir=there", "seed=8") == 0
    assert (earlier[2][0].seed, earlier[2][0].run.dir) == (8, "there")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "cannot be read: No such file"),
        ("", "not the configuration of a run"),
        ("- a\n- b\n", "not the configuration of a run"),
        ("stages: [ppo\n", "damaged"),
        ("stages: [ppo]\nalgorithm:\n  clipp: 1\n", "unknown key algorithm.clipp"),
        ("stages: [ppo]\nalgorithm: 3\n", "algorithm is no section"),
        ("stages: [ppo]\nrun: {checkpoint: [1]}\n", "run.checkpoint is no section"),
        ("stages: [cook]\n", "'cook'"),
        ("stages: [ppo]\nseed: ${oops\n", "oops"),
        ("\0", "damaged"),
    ],
)
def test_a_configuration_that_cannot_be_used_again_is_said(
    tmp_path: Path, text: str | None, words: str
):
    if text is not None:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "config.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_configuration(tmp_path / "here" / "config.yaml")
    assert words in str(caught.value)
    assert str(tmp_path / "here" / "config.yaml") in caught.value.where


def test_a_run_whose_configuration_is_gone_is_not_gone_on_with(
    command, earlier, capsys: pytest.CaptureFixture[str]
):
    Path("here/config.yaml").unlink()
    for way in ("+rerun=here", "resume=here", "+rerun=nowhere"):
        assert command(way) == 2
        assert "config.yaml" in capsys.readouterr().err


def test_rerun_and_resume_contradict_each_other(command, earlier):
    assert command("+rerun=here", "resume=here") == 2
    assert command("+rerun=here", "+experiment=pocket") == 2
    assert command("+rerun=here", "~algorithm.clip") == 2


def test_a_key_that_is_newer_than_a_checkpoint_had_its_default(command, earlier):
    saved = earlier[0][1].folder
    manifest = next(saved.state.glob("*-ppo-1"))
    config = plain_config(earlier[0][0])
    del config["algorithm"]["gamma"]
    assert config["seed"] == 3
    old = SavedRun(manifest, 1, "ppo", 1, progress("ppo", 1), config, {})
    assert compare_config(old, earlier[0][0]) == Changes()
    earlier[0][0].algorithm.gamma = 0.5
    assert compare_config(old, earlier[0][0]).refused == ["algorithm.gamma 1.0 -> 0.5"]


def test_the_time_of_a_later_job_of_a_sweep_begins_with_the_job(command, recipe):
    began: list[float | None] = []
    recipe(lambda config, plan, folder, start, *_: began.append(start.began))
    before = time.monotonic()
    assert command("-m", "+experiment=pocket_tiny", "seed=1,2,3", "hydra.sweep.dir=sweep") == 0
    first, second, third = began
    assert first is None  # the process, imports included
    assert second is not None
    assert third is not None
    assert before < second < third


def test_nearest_keys():
    assert nearest_keys("algorithm.gama")[0] == "algorithm.gamma"
    assert nearest_keys("rollout.zero_stage")[0] == "trainer.zero_stage"
    assert "sft.optimizer.learning_rate" in nearest_keys("sft.learning_rate")
    assert nearest_keys("qqqq.wwww") == []
