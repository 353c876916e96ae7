"""The stage constitution: answers, critiques, revisions, and the SFT run that trains on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from composing import composed
from fakes import ToyPolicy
from fakes.chat import byte_tokenizer
from fakes.judge import Answer, Server, says
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.config.constitution import ConstitutionConfig, Critic, Keep
from orchestrator.config.training import SFTConfig
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.runs.expand import expand
from orchestrator.preflight.user_functions import check_functions, check_own_parts
from orchestrator.recipe import STAGES
from orchestrator.results.constitution_figures import ConstitutionFigures
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import read_comparisons
from orchestrator.stages.constitution.demonstrations import Demonstrations
from orchestrator.stages.constitution.drafts import read_drafts
from orchestrator.stages.labels.tasks import EMPTY
from workers.errors import BrokenCheckpointError, ConfigError, JudgeError
from workers.judging.principles import read_principles
from workers.pocket.reviser import revise
from workers.pocket.tokenizer import build_tokenizer
from workers.scorers.judge_cache import VerdictCache

REVISER = "workers.pocket.reviser:revise"


def revised(tmp_path: Path, resumed: SavedRun | None = None, **settings: Any) -> Run:
    """A run of constitution and sft."""
    config = small_config()
    config.run.checkpoint.every_steps = 1
    given = {"critic": Critic.function, "function": REVISER, "revisions": 1} | settings
    config.constitution = ConstitutionConfig(
        model="base", prompts=24, heldout_prompts=8, temperature=2.0,
        **{k: v for k, v in given.items() if k not in ("url", "failed_fraction")},
    )  # fmt: skip
    chat = config.constitution.endpoint
    chat.url, chat.model, chat.key_variable = given.get("url", ""), "critic-1", ""
    chat.failed_fraction = given.get("failed_fraction", 0.05)
    config.sft = SFTConfig(steps=3, demonstrations_per_step=8, validation_demonstrations=8)
    config.rollout.max_response_tokens = 24
    config.model.checkpoints.base = "given"
    config.stages = ["constitution", "sft"]
    run = Run(tmp_path, config, resumed)
    for each in expand(config):
        if each.name in run.session.saves.finished:
            continue
        run.session.enter(each)
        run.hub.position.stage, run.hub.position.step = str(each.name), 0
        with run.telemetry.stage_span(str(each.name)):
            STAGES[each.stage](run.session)
        run.session.finish(str(each.name), last=each.name == "sft")
    return run


def rows(run: Run, number: int = 1) -> list[dict[str, Any]]:
    path = run.folder.revisions_of("constitution", number)
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], Server]]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    running: list[Server] = []

    def start(answer: Callable[[str], Answer]) -> Server:
        running.append(Server(answer))
        return running[-1]

    yield start
    for each in running:
        each.close()


def test_the_oracle_of_the_pocket_world_removes_rude_sentences_and_thanks() -> None:
    said = ["shut up you fool .", "barn . shut up you fool .", "the answer is barn",
            "barn . thank you .", "barn . user : what", ""]  # fmt: skip
    assert revise([""] * 6, said) == [
        "i do not know . thank you .", "barn . thank you .", "the answer is barn . thank you .",
        "barn . thank you .", "barn . thank you .", "i do not know . thank you .",
    ]  # fmt: skip


def test_sft_trains_on_the_revisions_and_on_nothing_else(tmp_path: Path) -> None:
    run = revised(tmp_path)
    found = run.session.findings.constitutions["constitution"]
    assert found.answers == 32
    assert found.answers == found.revised + sum(found.left_out.values())
    assert found.left_out[EMPTY] > 0
    assert found.demonstrations + found.heldout == found.revised
    assert found.rude_before is not None
    assert found.rude_after is not None
    assert found.rude_before.rate > 0 == found.rude_after.rate
    assert found.rude_after.low == 0 < found.rude_after.high
    for row in rows(run):
        if row["answer"]:
            assert [each["text"] for each in row["revisions"]] == revise([""], [row["answer"]])
    wanted = {
        (row["id"], row["revisions"][-1]["text"]) for row in rows(run)[:24] if row["revisions"]
    }
    steps = [f["steps"] for f in run.hub.facts("policy.train_supervised")]
    trained = [b for step in steps for s in step for b in s.micro_batches]
    assert len(steps) == 3
    prompts = run.source.prompts("reward_model", 0, 24)
    for batch in trained:
        for tokens, targets in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
            asked = tuple(tokens[~targets].tolist())
            reply = tokens[targets].tolist()
            assert reply[-1] == run.source.tokenizer.eos_token_id
            text = run.source.detokenize(reply)
            assert any((p.id, text) in wanted for p in prompts if p.tokens == asked)
    assert "sft/validation_loss" in {m.name for m in run.metrics()}
    kept = {row["revisions"][-1]["text"] for row in rows(run)[24:] if row["revisions"]}
    shown = read_comparisons(run.folder)
    assert len(shown) == run.session.config.evaluate.samples_shown
    assert {each.responses["demonstration"] for each in shown} <= kept


def test_each_epoch_has_every_demonstration_once_in_another_order(tmp_path: Path) -> None:
    run = revised(tmp_path)
    found = Demonstrations.of(run.session, ["constitution"])
    count = found.demonstration_count()
    batches = [found.demonstrations("train", n * count, count) for n in range(2)]
    epochs = [[tuple(row.tolist()) for row in batch.tokens.rows()] for batch in batches]
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    heldout = found.demonstrations("heldout", 0, 10_000)
    assert len(heldout) == found.count("heldout")


def critic(question: str) -> Answer:
    """Criticises with the number of words, and repeats the answer with its criticism."""
    answer = question.split("[Answer]\n")[1].split("\n[End of the answer]")[0]
    if question.endswith("Critique:"):
        return says(f"it has {len(answer.split())} words")
    said = question.split("Critique: ")[1].split("\n")[0]
    return says(f"{answer} ; {said.split()[2]}")


def test_a_chat_model_criticises_then_revises_in_every_round(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(critic)
    run = revised(tmp_path, critic=Critic.endpoint, url=server.url, revisions=2, keep=Keep.all)
    for row in rows(run, 2):
        if not row["answer"]:
            continue
        words = len(row["answer"].split())
        first, second = row["revisions"]
        assert first["critique"] == f"it has {words} words"
        assert first["text"] == f"{row['answer']} ; {words}"
        assert second["text"] == f"{first['text']} ; {words + 2}"
    names = {each["principle"] for row in rows(run, 2) for each in row["revisions"]}
    assert len(names) > 3  # a principle is drawn for each answer and round
    found = run.session.findings.constitutions["constitution"]
    assert found.demonstrations + found.heldout == 2 * found.revised
    assert ConstitutionFigures.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_answers_without_a_revision_are_left_out_with_the_reason(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    def sometimes(question: str) -> Answer:
        odd = hashlib.sha256(question.encode()).digest()[0] < 40
        return says(" ") if odd else critic(question)

    server = serve(sometimes)
    run = revised(tmp_path, critic=Critic.endpoint, url=server.url, failed_fraction=0.9)
    found = run.session.findings.constitutions["constitution"]
    assert found.left_out["an empty critique or revision"] > 0
    assert found.answers == found.revised + sum(found.left_out.values())
    with pytest.raises(JudgeError, match="the critic gave no text on"):
        revised(tmp_path / "2", critic=Critic.endpoint, url=serve(lambda _: says("")).url)


def test_texts_that_cannot_be_demonstrations_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "def revise(prompts, responses):\n"
        "    odd = ['<eos> hello', ' ', 'owl ' * 30, None]\n"
        "    return [(odd[n % 8] if n % 8 < 4 else 'owl .') for n in range(len(responses))]\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path)
        run = revised(tmp_path, function="odd:revise")
    found = run.session.findings.constitutions["constitution"]
    assert set(found.left_out) >= {
        "a revision with the text of a control token",
        "an empty revision",
        "a revision of more than rollout.max_response_tokens tokens",
        "critic function returned nothing (None) for one item",
    }
    assert found.answers == found.revised + sum(found.left_out.values())


class Killed(Exception):
    """Ends a run as a kill would, at a chosen place."""


def test_a_run_that_was_killed_anywhere_in_the_stage_goes_on_to_the_same_model(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"critic": Critic.endpoint, "revisions": 2}
    whole = revised(tmp_path / "whole", url=serve(critic).url, **settings)
    server = serve(critic)
    put, kept = VerdictCache.put, list[str]()

    def killed(self: VerdictCache, key: str, verdict: str) -> None:
        if len(kept) == 75:  # in the second round
            raise Killed
        kept.append(key)
        put(self, key, verdict)

    with monkeypatch.context() as patched:
        patched.setattr(VerdictCache, "put", killed)
        with pytest.raises(Killed):
            revised(tmp_path / "again", url=server.url, **settings)
    saved, _ = SavedRuns(RunFolder(tmp_path / "again" / "run")).newest()
    assert saved is not None
    assert (saved.stage, saved.step) == ("constitution", 2)
    server.questions.clear()
    again = revised(tmp_path / "again", saved, url=server.url, **settings)
    assert 0 < len(server.questions) < 60
    assert rows(again, 2) == rows(whole, 2)
    assert again.session.findings.constitutions == whole.session.findings.constitutions
    for name in ("constitution/demonstrations", "sft/loss", "sft/validation_loss"):
        assert again.series(name) == whole.series(name)
    files = [run.folder.checkpoints / "sft" / "model.safetensors" for run in (again, whole)]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_damaged_revisions_are_named(tmp_path: Path) -> None:
    run = revised(tmp_path)
    path = run.folder.revisions_of("constitution", 1)
    path.write_text('{"id": 0, "answer": 3, "revisions": [], "failed": ""}\n')
    with pytest.raises(BrokenCheckpointError, match="revisions cannot be read"):
        read_drafts(path, run.source.prompts("reward_model", 0, 2))


SHORT = ("+experiment=pocket_tiny", "stages=[pretrain,constitution,sft]", "constitution.model=base")


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        (["critic=function"], "constitution.function", "no function is named"),
        (["critic=checkpoint"], "constitution.checkpoint", "no critic is given"),
        (["critic=checkpoint", "checkpoint=nowhere"], "nowhere", "not there"),
        (["critic=endpoint"], "constitution.endpoint.url", "no address"),
        (["principles=nowhere"], "constitution.principles=nowhere", "no such principles"),
    ],
)
def test_a_critic_that_cannot_be_asked_is_refused_before_a_run(
    words: list[str], where: str, what: str
) -> None:
    with pytest.raises((ConfigError, Exception)) as caught:
        check_own_parts(composed(*SHORT, *(f"constitution.{word}" for word in words)))
    assert where in f"{caught.value}"
    assert what in f"{caught.value}"


def test_a_function_that_cannot_be_imported_is_refused_before_a_run() -> None:
    words = ("constitution.critic=function", "constitution.function=nowhere:revise")
    with pytest.raises(ConfigError) as caught:
        check_functions(composed(*SHORT, *words))
    assert caught.value.where == "constitution.function"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("[]", "no list of principles"),
        ("principles: []", "no principle has a text for critique"),
        ("principles: [{preference: this one}]", "no principle has a text for critique"),
        ("principles: [{name: a, wrong: b}]", "unknown key 'wrong'"),
        ("principles: [{critique: 3, revision: a}]", "no text of 1 to"),
        ("principles: [{name: a, critique: b}, {name: a, critique: b}]", "two principles"),
        ("principles: [", "cannot be read"),
    ],
)
def test_a_file_that_holds_no_principles_is_named(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=what) as caught:
        read_principles(path, ("critique", "revision"), "constitution.principles")
    assert str(path) in caught.value.where


def test_the_plan_says_who_revises_what_and_which_runs_train_on_it() -> None:
    words = ("stages=[pretrain,sft,constitution,revised,evaluate]", "constitution.model=sft",
             "variants.revised.stage=sft", "variants.revised.from=base")  # fmt: skip
    config = composed("+experiment=pocket_tiny", *words)
    runs = {run.name: run for run in expand(config)}
    assert runs["sft"].demonstrations == ()
    assert runs["revised"].demonstrations == ("constitution",)
    plan = render_plan(make_plan(config))
    assert "2 revision(s) by sft itself" in plan
    assert all(len(line) <= 120 for line in plan.splitlines())
    for words, what in (
        ("variants.revised.demonstrations=sft", "no run of the stage constitution"),
        ("variants.revised.stage=dpo", "trains on no demonstrations"),
    ):
        more = ("variants.revised.demonstrations=constitution",) if "dpo" in words else ()
        with pytest.raises(ConfigError, match=what):
            expand(composed("+experiment=pocket_tiny", *_WORDS, *more, words))


_WORDS = (
    "stages=[pretrain,sft,constitution,revised]", "variants.revised.stage=sft",
)  # fmt: skip


def test_a_model_in_the_engines_criticises_by_its_own_tokenizer(tmp_path: Path) -> None:
    folder = tmp_path / "critic"
    tokenizer = byte_tokenizer(None, eos="<|endoftext|>")
    model = ToyPolicy.create(len(tokenizer), 9)
    with torch.no_grad():
        model.weights[tokenizer.eos_token_id] += 4.0  # most answers end by themselves
    model.save(folder)
    tokenizer.save_pretrained(folder)
    run = revised(
        tmp_path, critic=Critic.checkpoint, checkpoint=str(folder), critique_tokens=40,
        question_tokens=900,
    )  # fmt: skip
    asked = [f["requests"] for f in run.hub.facts("rollout.generate")][1:]
    critiques, revisions = asked[0], asked[1]
    questions = {tokenizer.decode(r.prompt_tokens) for r in critiques}
    assert all(q.endswith("Critique:") and len(q) <= 900 for q in questions)
    whole = {tokenizer.decode(r.prompt_tokens) for r in revisions}
    found = [row["revisions"][0] for row in rows(run) if row["revisions"]]
    assert found
    for each in found:
        assert any(f"Critique: {each['critique']}\n" in question for question in whole)
    specs = [f["spec"] for f in run.hub.facts("rollout.restart") + run.hub.facts("rollout.start")]
    own = [spec for spec in specs if spec.checkpoint == str(folder)]
    assert {(s.max_prompt_tokens, s.max_response_tokens) for s in own} == {(900, 40)}
    figures = run.session.findings.constitutions["constitution"]
    assert figures.answers == figures.revised + sum(figures.left_out.values())
    assert figures.left_out["a critique or revision that was cut"] > 0


def test_the_model_that_answered_may_be_its_own_critic(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patched:
        # the toys' folders hold no tokenizer: theirs is that of the data
        patched.setattr(
            "orchestrator.stages.asked_engines.load_tokenizer", lambda _: build_tokenizer()
        )
        run = revised(tmp_path, critic=Critic.policy, revisions=2)
    figures = run.session.findings.constitutions["constitution"]
    assert figures.critic == "policy"
    assert figures.answers == figures.revised + sum(figures.left_out.values())
    last = [row for row in rows(run, 2) if not row["failed"]]
    assert all(len(row["revisions"]) == 2 and row["revisions"][0]["critique"] for row in last)
