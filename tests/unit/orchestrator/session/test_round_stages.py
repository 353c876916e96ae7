"""Rounds of labels, reward model and policy over fakes: what each reads, and any interruption."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from fakes import ToyScalar
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRuns
from orchestrator.config.evaluation import EvaluateConfig
from orchestrator.config.rounds.expansion import with_rounds
from orchestrator.config.rounds.iterate import From, IterateConfig, Rankings
from orchestrator.config.rounds.labels import LabelConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import RewardModelConfig
from orchestrator.planning.runs.expand import expand
from orchestrator.planning.runs.labels import round_names
from orchestrator.recipe import STAGES
from orchestrator.results.rounds import rounds_of
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.rankings import load_split
from orchestrator.stages.labels.tasks import ALONE, EMPTY, REPEATED
from workers.errors import BrokenCheckpointError, DataLineError, WaitingError


def rounds_config(*stages: str, iterate: IterateConfig | None = None, **label: Any) -> Config:
    config = small_config()
    config.run.checkpoint.every_steps = 1
    config.run.checkpoint.keep_last = 100
    config.reward_model = RewardModelConfig(
        prompts_per_step=4, bias_demonstrations=8, optimizer=config.reward_model.optimizer
    )
    config.label = LabelConfig(**{"prompts": 12, "heldout_prompts": 8, "temperature": 2.0} | label)
    config.evaluate = EvaluateConfig(prompts=4, web_documents=2, cloze_tasks=2)
    config.algorithm.evaluation_prompts = 4
    config.model.checkpoints.sft, config.model.checkpoints.base = "given", "given"
    config.iterate = iterate or IterateConfig(rounds=3)
    wanted = [*(stages or ("label", "reward_model", "ppo", "evaluate"))]
    config.stages, config.variants = with_rounds(wanted, {}, config.iterate)
    return config


def go(run: Run) -> Run:
    runs = [each for each in expand(run.config) if each.name not in run.session.saves.finished]
    for each in runs:
        name = str(each.name)
        run.session.enter(each)
        run.hub.position.stage, run.hub.position.step = name, 0
        with run.telemetry.stage_span(name):
            STAGES[each.stage](run.session)
        run.session.finish(name, last=each is runs[-1])
    return run


def traces(run: Run) -> dict[str, object]:
    """Everything that must not depend on interruptions."""
    findings, folder = run.session.findings, run.folder
    made = [
        *folder.checkpoints.glob("*/*.safetensors"),
        *folder.state.glob("rankings-*"),
        *folder.samples.glob("*_tasks.jsonl"),
    ]
    return {
        "metrics": run.repeatable(),
        "files": {
            str(p.relative_to(folder.path)): hashlib.sha256(p.read_bytes()).hexdigest()
            for p in made
        },
        "counters": run.session.counters(),
        "ledger": findings.ledger,
        "models": findings.models,
        "labels": findings.labels,
        "rounds": rounds_of(round_names(expand(run.config)), findings),
        "reward_models": (findings.reward_model, findings.reward_models),
    }


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return go(Run(tmp_path_factory.mktemp("undisturbed"), rounds_config()))


@pytest.fixture(scope="module")
def saved(undisturbed: Run) -> list[str]:
    return [path.name for path in SavedRuns(undisturbed.folder).whole()]


def test_every_round_asks_new_prompts_of_the_models_that_are_named(undisturbed: Run) -> None:
    asked = {
        name: [json.loads(line) for line in undisturbed.folder.tasks_of(name).open()]
        for name in ("label", "label_2", "label_3")
    }
    prompts = [{row["id"] for row in rows} for rows in asked.values()]
    assert all(prompts)
    assert not prompts[0] & prompts[1]
    assert not prompts[2] & (prompts[0] | prompts[1])
    asked_for = undisturbed.hub.facts("rollout.generate")[0]
    assert asked_for["sampling"].temperature == 2.0
    assert all(4 <= len(request.ids) <= 9 for request in asked_for["requests"])
    assert len(asked_for["requests"]) == 12 + 8
    models = {n: {m for row in rows for m in row["models"]} for n, rows in asked.items()}
    assert models == {"label": {"sft"}, "label_2": {"ppo", "sft"}, "label_3": {"ppo_2", "sft"}}


def test_a_reward_model_trains_on_the_rankings_of_all_rounds_so_far(undisturbed: Run) -> None:
    splits = {n: load_split(undisturbed.folder.rankings_of(n)) for n in ("label", "label_2")}
    for name, (train, heldout) in splits.items():
        assert 0 < len(train) <= 12
        assert 0 < len(heldout) <= 8
        assert {r.source for r in (*train, *heldout)} == {name}
        assert all(r.prompt_length > 0 for r in train)
    steps = [len(undisturbed.session.findings.reward_models)]
    assert steps == [2]
    counted = [
        sum(1 for r in undisturbed.metrics() if (r.stage, r.name) == (name, "reward_model/loss"))
        for name in ("reward_model", "reward_model_2", "reward_model_3")
    ]
    assert counted == [3, 6, 9]
    by_source = undisturbed.session.findings.reward_models["reward_model_3"].by_source
    assert {*by_source} == {"label", "label_2", "label_3"}


def test_the_reward_model_before_scores_the_new_answers(undisturbed: Run) -> None:
    loads = [Path(f["spec"].model.checkpoint).name for f in undisturbed.hub.facts("reward.load")]
    # two models answer in each later round; then the policy of the round learns from its own
    first, second = loads.index("reward_model"), loads.index("reward_model_2")
    assert loads[first : first + 3] == ["reward_model"] * 3  # ppo, and label_2 for both models
    assert loads[second : second + 3] == ["reward_model_2"] * 3
    model = ToyScalar.load(str(undisturbed.folder.checkpoints / "reward_model"), "keep")
    prompts = {p.id: p for p in undisturbed.source.prompts("reward_model", 20, 20)}
    rows = [json.loads(line) for line in undisturbed.folder.tasks_of("label_2").open()]
    for row in rows[:4]:
        for tokens, score in zip(row["completion_tokens"], row["scores"], strict=True):
            whole = [*prompts[row["id"]].tokens, *tokens]
            assert score == pytest.approx(float(model.prefix_values(whole)[-1]), abs=1e-5)


def test_the_accuracy_before_is_that_of_the_scores_on_held_out_pairs(undisturbed: Run) -> None:
    found = undisturbed.session.findings.labels["label_2"]
    _, heldout = load_split(undisturbed.folder.rankings_of("label_2"))
    rows = [json.loads(line) for line in undisturbed.folder.tasks_of("label_2").open()]
    scores = {row["id"]: row["scores"] for row in rows}
    right = pairs = 0
    for ranking in heldout:
        for i, a in enumerate(ranking.ranks):
            for j, b in enumerate(ranking.ranks):
                if a < b:
                    pairs += 1
                    right += scores[ranking.prompt_id][i] > scores[ranking.prompt_id][j]
    assert found.before is not None
    assert (found.before.pairs, found.before.accuracy) == (pairs, pytest.approx(right / pairs))
    assert undisturbed.session.findings.labels["label"].before is None


def test_every_answer_is_ranked_or_left_out_with_a_reason(undisturbed: Run) -> None:
    for name, found in undisturbed.session.findings.labels.items():
        rows = [json.loads(line) for line in undisturbed.folder.tasks_of(name).open()]
        assert found.ranked == sum(len(row["completions"]) for row in rows)
        assert found.answers == found.ranked + sum(found.left_out.values())
        assert {*found.left_out} <= {EMPTY, REPEATED, ALONE}
        sampled = {r.name: r.value for r in undisturbed.metrics() if r.stage == name}
        assert sampled["label/answers"] == sampled["label/ranked"] + sampled["label/left_out"]
    ledger = undisturbed.session.findings.ledger
    assert ledger.generated == ledger.trained + ledger.dropped == 3 * 2 * 16


def test_the_rounds_tell_what_each_reached(undisturbed: Run) -> None:
    found = undisturbed.session.findings
    rounds = rounds_of(round_names(expand(undisturbed.config)), found)
    assert [(r.label, r.reward_model, r.policy) for r in rounds] == [
        ("label", "reward_model", "ppo"),
        ("label_2", "reward_model_2", "ppo_2"),
        ("label_3", "reward_model_3", "ppo_3"),
    ]
    assert rounds[0].after == found.reward_model.by_source["label"]
    assert rounds[1].after == found.reward_models["reward_model_2"].by_source["label_2"]
    assert rounds[2].gold == found.models["ppo_3"].gold_mean
    last = [r.value for r in undisturbed.metrics() if r.name == "ppo/score_mean"][-1]
    assert rounds[2].reward == last


@pytest.mark.parametrize("number", [0, 8, 9, 13, 17, 20])
def test_going_on_from_any_checkpoint_ends_in_the_same(
    tmp_path: Path, undisturbed: Run, saved: list[str], number: int
) -> None:
    folder = RunFolder(shutil.copytree(undisturbed.folder.path, tmp_path / "run"))
    resumed = Run(tmp_path, rounds_config(), SavedRuns(folder).read(folder.state / saved[number]))
    assert traces(go(resumed)) == traces(undisturbed)


def test_a_lost_file_of_rankings_makes_its_checkpoints_unusable(
    tmp_path: Path, undisturbed: Run, saved: list[str]
) -> None:
    folder = RunFolder(shutil.copytree(undisturbed.folder.path, tmp_path / "run"))
    folder.rankings_of("label").unlink()
    with pytest.raises(BrokenCheckpointError, match="rankings-label"):
        SavedRuns(folder).read(folder.state / saved[-1])


def test_newest_rankings_alone_and_weights_of_the_round_before(tmp_path: Path) -> None:
    iterate = IterateConfig(rounds=2, rankings=Rankings.newest, reward_model=From.previous)
    run = go(Run(tmp_path, rounds_config(iterate=iterate)))
    assert {*run.session.findings.reward_models["reward_model_2"].by_source} == {"label_2"}
    specs = [facts["spec"] for facts in run.hub.facts("critic.load")]
    models = [(Path(spec.checkpoint).name, spec.head) for spec in specs if spec.head != "zero"]
    assert ("sft", "random") in models
    assert ("reward_model", "keep") in models


def test_rounds_of_dpo_need_no_reward_model(tmp_path: Path) -> None:
    iterate = IterateConfig(rounds=2, stages=["label", "dpo"])
    run = go(Run(tmp_path, rounds_config("label", "dpo", "evaluate", iterate=iterate)))
    assert [*run.session.findings.models] == ["base", "sft", "dpo", "dpo_2"]
    assert not run.hub.facts("reward.load")
    rounds = rounds_of(round_names(expand(run.config)), run.session.findings)
    assert [(r.label, r.reward_model, r.policy) for r in rounds] == [
        ("label", "", "dpo"),
        ("label_2", "", "dpo_2"),
    ]


def _export(run: Run, stage: str, *, most: int = 1000) -> None:
    """What `python -m orchestrator.label export` writes: longer answers are better."""
    rows = [json.loads(line) for line in run.folder.tasks_of(stage).open()]
    lines = []
    for row in rows[:most]:
        order = sorted({len(text) for text in row["completions"]}, reverse=True)
        ranks = [order.index(len(text)) + 1 for text in row["completions"]]
        lines.append({
            "id": str(row["id"]), "prompt": row["prompt"], "completions": row["completions"],
            "ranks": ranks, "annotator": "ann", "likert": [4] * len(ranks), "comment": None,
        })  # fmt: skip
    run.folder.labels_of(stage).write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_waits_for_people_and_goes_on_with_what_they_said(tmp_path: Path) -> None:
    stages, iterate = ("label", "reward_model", "ppo"), IterateConfig(rounds=2)
    config = lambda: rounds_config(*stages, iterate=iterate, labeler="people")  # noqa: E731
    run = Run(tmp_path, config())
    for stage in ("label", "label_2"):
        with pytest.raises(WaitingError) as caught:
            go(run)
        assert (caught.value.exit_code, stage in caught.value.what) == (9, True)
        for word in ("make", "serve", "export", f"resume={run.folder.path}"):
            assert word in caught.value.fix
        newest = SavedRuns(run.folder).whole()[-1]
        assert newest.name.endswith(f"-{stage}-1")
        again = Run(tmp_path, config(), SavedRuns(run.folder).read(newest))
        with pytest.raises(WaitingError):  # nobody has ranked anything yet
            go(again)
        tasks = run.folder.tasks_of(stage).read_text()
        _export(run, stage, most=17)
        run = Run(tmp_path, config(), SavedRuns(run.folder).read(newest))
        assert run.folder.tasks_of(stage).read_text() == tasks
    go(run)
    train, heldout = load_split(run.folder.rankings_of("label_2"))
    assert {r.annotator for r in (*train, *heldout)} == {"ann"}
    assert all(r.likert is not None and len(r.likert) == len(r.ranks) for r in train)
    left_out = run.session.findings.labels["label_2"].left_out
    assert left_out["nobody ranked them"] > 0
    assert [r.policy for r in rounds_of(round_names(expand(run.config)), run.session.findings)] == [
        "ppo", "ppo_2",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"id": "no such"}, "no such task"),
        ({"completions": ["another", "answer"]}, "others than those of task"),
        ({"ranks": [1]}, "1 ranks for"),
        ({"ranks": [0] * 9}, "ranks start at 1"),
        ({"likert": [9] * 9}, "likert"),
    ],
)
def test_what_people_said_of_something_else_is_refused(
    tmp_path: Path, change: dict[str, Any], what: str
) -> None:
    run = Run(tmp_path, rounds_config("label", "reward_model", "ppo", labeler="people"))
    with pytest.raises(WaitingError):
        go(run)
    _export(run, "label")
    path = run.folder.labels_of("label")
    first, *rest = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(line) + "\n" for line in (first | change, *rest)))
    newest = SavedRuns(run.folder).whole()[-1]
    resumed = Run(tmp_path, run.config, SavedRuns(run.folder).read(newest))
    with pytest.raises(DataLineError, match=what) as caught:
        go(resumed)
    assert caught.value.where == f"{path}:1"
