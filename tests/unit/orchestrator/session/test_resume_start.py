"""Which checkpoint `resume` finds, and which configurations may go on from it."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from fakes.progress import progress

from orchestrator.checkpoints import given_inputs
from orchestrator.checkpoints.config_changes import Changes, compare_config, plain_config
from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.run import RunConfig, StageName
from orchestrator.config.schema import Config
from orchestrator.results.reward_model_figures import (
    Calibration,
    CalibrationBin,
    PairAccuracy,
    RewardModelFigures,
)
from orchestrator.results.summary import EvaluationRow, LedgerTotals, Preference
from orchestrator.run_files.dataclass_json import from_plain
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.rankings import load_rankings, save_rankings
from orchestrator.session.resume import _compare_versions, find_start, outlook, package_versions
from orchestrator.session.session import Findings
from workers.errors import BrokenCheckpointError, ConfigError, MissingCheckpointError
from workers.records.arrays import Ragged
from workers.records.training import Ranking


def _config(folder: Path, resume: str = "", **fields: object) -> Config:
    config = Config(experiment="pocket", resume=resume, run=RunConfig(dir=str(folder)))
    for name, value in fields.items():
        owner, _, last = name.rpartition("__")
        target = config
        for part in owner.split("__") if owner else ():
            target = getattr(target, part)
        setattr(target, last, value)
    return config


def _run(folder: Path, *steps: int, experiment: str = "pocket") -> list[Path]:
    run = RunFolder(folder).create()
    run.config.write_text(f"experiment: {experiment}\n")
    runs = SavedRuns(run)
    facts = {"config": plain_config(_config(folder)), "versions": package_versions()}
    saved = []
    for step in steps:
        known = progress("ppo", step)
        saved.append(runs.publish(runs.begin("ppo", step), [], known, facts, []))
    return saved


def test_without_resume_a_run_is_fresh(tmp_path: Path) -> None:
    _run(tmp_path / "run", 1)
    start = find_start(_config(tmp_path / "run"))
    assert (start.saved, start.clear) == (None, False)


def test_auto_goes_on_or_starts(tmp_path: Path) -> None:
    start = find_start(_config(tmp_path / "new", "auto"))
    assert (start.saved, start.clear, start.folder.path) == (None, False, tmp_path / "new")
    _run(tmp_path / "unsaved")  # killed before its first checkpoint
    assert find_start(_config(tmp_path / "unsaved", "auto")).clear
    _run(tmp_path / "run", 1, 2)
    start = find_start(_config(tmp_path / "run", "auto"))
    assert start.saved is not None
    assert (start.saved.step, start.notes) == (2, [])


def test_auto_offers_whole_checkpoints_that_were_moved_aside_or_copied(tmp_path: Path) -> None:
    (path,) = _run(tmp_path / "run", 1)
    aside = path.rename(path.with_name(path.name + ".superseded"))
    with pytest.raises(BrokenCheckpointError, match="no checkpoint has its exact name") as caught:
        find_start(_config(tmp_path / "run", "auto"))
    assert str(aside) in caught.value.fix
    start = find_start(_config(tmp_path / "run", str(aside)))
    assert start.saved is not None
    assert start.saved.step == 1


def test_auto_never_starts_over_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    for path in _run(tmp_path / "run", 1, 2):
        (path / "progress.json").unlink()
    with pytest.raises(BrokenCheckpointError, match="none of 2 checkpoints is whole") as caught:
        find_start(_config(tmp_path / "run", "auto"))
    assert "progress.json is missing" in str(caught.value)


def test_latest_is_the_newest_run_of_the_experiment(tmp_path: Path) -> None:
    times = {"a": 30, "b": 20, "other": 40, "none": 50}
    for name, when in times.items():
        steps = () if name == "none" else (1,)
        other = "sft" if name == "other" else "pocket"
        for path in _run(tmp_path / name, *steps, experiment=other):
            os.utime(path, (when, when))
    start = find_start(_config(tmp_path / "new", "latest"))
    assert start.folder.path == tmp_path / "a"
    with pytest.raises(MissingCheckpointError, match="no checkpoint to resume from"):
        find_start(_config(tmp_path / "deeper" / "new", "latest"))


def test_a_path_is_a_run_folder_or_one_of_its_checkpoints(tmp_path: Path) -> None:
    first, _ = _run(tmp_path / "run", 1, 2)
    for path, step in ((tmp_path / "run", 2), (first, 1)):
        start = find_start(_config(tmp_path / "elsewhere", str(path)))
        assert start.saved is not None
        assert (start.saved.step, start.folder.path) == (step, tmp_path / "run")
    for path in (tmp_path, tmp_path / "nowhere", tmp_path / "run" / "samples"):
        with pytest.raises(MissingCheckpointError):
            find_start(_config(tmp_path / "run", str(path)))


def test_a_damaged_newest_one_is_said_and_the_one_before_used(tmp_path: Path) -> None:
    _, second = _run(tmp_path / "run", 1, 2)
    (second / "manifest.json").write_text("[]")
    start = find_start(_config(tmp_path / "run", "auto"))
    assert start.saved is not None
    assert start.saved.step == 1
    assert start.notes[0].startswith(
        "skipped 000002-ppo-2: manifest.json cannot be trusted: it is no"
    )


def test_keys_that_matter_are_refused_by_name(tmp_path: Path) -> None:
    _run(tmp_path / "run", 1)
    config = _config(tmp_path / "run", "auto", seed=1, algorithm__kl__coefficient=0.1)
    with pytest.raises(ConfigError) as caught:
        find_start(config)
    assert "algorithm.kl.coefficient 0.05 -> 0.1; seed 0 -> 1" in caught.value.what


def test_where_and_how_long_may_change_silently_and_the_layout_is_said(tmp_path: Path) -> None:
    _run(tmp_path / "run", 1)
    free = _config(
        tmp_path / "run", "auto", run__call_seconds=9.0, run__checkpoint__keep_last=7,
        logger__tensorboard=True, data__workers=3,
    )  # fmt: skip
    assert find_start(free).notes == []
    layout = _config(
        tmp_path / "run", "auto", trainer__zero_stage=3, cluster__roles__policy__workers=2
    )
    (note,) = find_start(layout).notes
    assert "cluster.roles.policy.workers 1 -> 2; trainer.zero_stage 1 -> 3" in note
    assert "not bit-identical" in note


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        (["sft"], ["sft", "reward_model"], True),
        (["sft", "reward_model"], ["sft", "reward_model", "ppo", "evaluate"], True),
        (["sft", "reward_model"], ["sft"], False),  # the last is gone
        (["sft", "ppo"], ["sft", "reward_model", "ppo"], False),  # one comes before
        (["sft", "reward_model"], ["reward_model", "sft"], False),
        ([], ["sft"], False),
    ],
)
def test_stages_may_be_appended_and_nothing_else(
    tmp_path: Path, before: list[str], after: list[str], taken: bool
) -> None:
    (path,) = _run(tmp_path / "run", 1)
    saved = SavedRuns(RunFolder(tmp_path / "run")).read(path)
    saved = replace(saved, config=saved.config | {"stages": before})
    now = _config(tmp_path / "run", "auto", stages=[StageName(name) for name in after])
    if taken:
        assert compare_config(saved, now) == Changes()
        now.seed = 1
        assert compare_config(saved, now).refused == ["seed 0 -> 1"]
    else:
        (told,) = compare_config(saved, now).refused
        assert told.startswith("stages ")


def test_other_package_versions_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path / "run", 1)
    now = package_versions() | {"torch": "99.0"}
    monkeypatch.setattr("orchestrator.session.resume.package_versions", lambda: now)
    (note,) = find_start(_config(tmp_path / "run", "auto")).notes
    assert "-> 99.0" in note


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    with (
        folder.locked(),
        pytest.raises(ConfigError, match="another process works"),
        folder.locked(),
    ):
        pass
    with folder.locked():
        pass


def test_findings_survive_json() -> None:
    findings = Findings(
        reward_model=RewardModelFigures(
            heldout=PairAccuracy(0.5, 0.25, 0.75, 4, 2),
            by_completions={4: PairAccuracy(0.5, 0.25, 0.75, 4, 2)},
            calibration=Calibration(0.1, (CalibrationBin(0.6, 0.5, 0.4, 0.6, 3),)),
        ),
        models={"sft": EvaluationRow(gold_mean=1.0)},
        preferred=[Preference("ppo", "sft", 0.6, 0.5, 0.7, 8)],
        ledger=LedgerTotals(3, 2, 1),
        drops={"late": 1},
        sync_seconds=[0.1],
        parity_max=None,
    )
    assert from_plain(Findings, json.loads(json.dumps(asdict(findings)))) == findings


def test_rankings_come_back_as_they_were(tmp_path: Path) -> None:
    rankings = [
        Ranking(7, Ragged.from_rows([[1, 2], [3], [4, 5, 6]], np.int32), np.array([2, 1, 1])),
        Ranking(3, Ragged.from_rows([[9], [8, 8]], np.int32), np.array([1, 2]), "web", "ann"),
    ]
    save_rankings(tmp_path / "rankings.safetensors", rankings)
    found = load_rankings(tmp_path / "rankings.safetensors")
    assert [(r.prompt_id, r.source, r.annotator) for r in found] == [(7, "", ""), (3, "web", "ann")]
    assert [r.ranks.tolist() for r in found] == [[2, 1, 1], [1, 2]]
    rows = [[row.tolist() for row in r.sequences.rows()] for r in found]
    assert rows == [[[1, 2], [3], [4, 5, 6]], [[9], [8, 8]]]
    assert [p.name for p in tmp_path.iterdir()] == ["rankings.safetensors"]


def test_seconds_of_syncs_are_kept_as_a_median_needs_and_counted_all() -> None:
    findings = Findings(sync_seconds=[1.0, 2.0])  # of an earlier version: no count
    for n in range(1500):
        findings.synced(float(n))
    assert findings.syncs == 1502
    assert findings.sync_seconds == [float(n) for n in range(500, 1500)]


def test_a_field_that_is_newer_than_the_file_has_its_default() -> None:
    plain = asdict(Findings(syncs=3))
    del plain["syncs"], plain["start"]
    assert from_plain(Findings, plain) == Findings()
    with pytest.raises(ValueError, match="Preference lacks"):  # one without a default is required
        from_plain(Preference, {})


def test_an_input_that_changed_is_refused_and_a_dry_run_says_what_would_happen(
    tmp_path: Path,
) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    folder = tmp_path / "run"
    run = RunFolder(folder).create()
    stages = [StageName.sft, StageName.reward_model, StageName.ppo]
    config = _config(folder, "auto", data__chat_template=str(template), stages=stages)
    runs = SavedRuns(run)
    facts = {
        "config": plain_config(config), "versions": package_versions(),
        "inputs": given_inputs.take(config),
    }  # fmt: skip
    known = progress("ppo", 3) | {"finished": ["sft", "reward_model"]}
    runs.publish(runs.begin("ppo", 3), [], known, facts, [])
    before = sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*"))
    assert outlook(config, find_start(config)) == [
        "continues after stage ppo, step 3 (000001-ppo-3); "
        "finished stages: sft, reward_model; left: ppo",
        "from there on the bits of an undisturbed run, on this machine",
    ]
    moved = _config(
        folder, "auto", data__chat_template=str(template), trainer__zero_stage=3, stages=stages
    )
    assert outlook(moved, find_start(moved))[-1].startswith("from there on bits may differ")
    assert sorted((p, p.stat().st_mtime_ns) for p in folder.rglob("*")) == before
    template.write_text("{{ others }}")
    with pytest.raises(
        ConfigError, match=r"data\.chat_template: chat\.jinja has 12 bytes"
    ) as caught:
        find_start(config)
    assert caught.value.where == "data.chat_template"


def test_what_a_run_is_given_is_read_once_when_it_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    config = _config(tmp_path / "run", "auto", data__chat_template=str(tmp_path / "chat.jinja"))
    _run(tmp_path / "run", 1)
    read, hashed = list[str](), given_inputs.sha256_of

    def hashing(path: Path) -> str:
        read.append(path.name)
        return hashed(path)

    monkeypatch.setattr(given_inputs, "sha256_of", hashing)
    monkeypatch.setattr("orchestrator.session.resume.compare_config", lambda saved, now: Changes())
    start = find_start(config)
    assert start.taken is not None
    assert (read, [*start.taken]) == (["chat.jinja"], ["data.chat_template"])
    assert find_start(_config(tmp_path / "new", "auto")).taken is None


def test_the_steps_that_are_done_again_are_counted_by_their_stage(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run").create()
    lines = [
        {"stage": stage, "step": step, "name": name, "value": 1.0}
        for stage, step, name in [
            ("sft", 7, "sft/loss"),
            ("sft", 7, "sft/grad_norm"),
            ("sft", 8, "sft/loss"),
            ("sft", 9, "sft/validation_loss"),
            ("ppo", 0, "ppo/gold_mean"),
            ("ppo", 1, "ppo/response_tokens_mean"),
        ]
    ]
    texts = [json.dumps(line) + "\n" for line in lines]
    run.metrics.write_text("".join(texts) + '["sft"]\n7\n{"stage": "s')
    facts = {"config": plain_config(_config(run.path)), "versions": package_versions()}
    runs = SavedRuns(run)
    for written, told in ((0, "sft 2 step(s), ppo 1 step(s)"), (1, "sft 1 step(s), ppo 1 step(s)")):
        known = progress("sft", 7, **{"metrics.jsonl": len("".join(texts[:written]))})
        runs.publish(runs.begin("sft", 7), [], known, facts, [])
        (note,) = find_start(_config(run.path, "auto")).notes
        assert note == f"done again, for it came after this checkpoint: {told}"


def test_another_processor_is_said_where_the_checkpoint_knows_its_own(tmp_path: Path) -> None:
    _run(tmp_path / "run", 1)
    here = package_versions()
    assert len(here["processor"].split()) > 1
    assert _compare_versions({"torch": "1"}, {"torch": "1", "processor": "x"}) == []
    (note,) = _compare_versions({"processor": "a"}, {"processor": "b"})
    assert "processor a -> b" in note
