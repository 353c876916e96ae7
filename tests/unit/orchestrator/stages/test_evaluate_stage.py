"""The evaluation stage over fake roles: who is preferred to whom, and what alignment cost."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import ToyPolicy, ToyScalar
from fakes.judge import Answer, Server, says
from fakes.session import Run

from orchestrator.config.data import DataSourceKind
from orchestrator.config.evaluation import JudgeKind
from orchestrator.results.summary import Judging, Summary, read_summary, write_summary
from orchestrator.run_files.samples import read_comparisons
from orchestrator.stages.evaluate import evaluate
from workers.data.records import Gold, Prompt
from workers.data.rows.examples import Message
from workers.errors import ConfigError, JudgeError, ParityError, RewardError

PLAIN = Gold(score=0.0, correct=False, truthful=True, rude=False, polite=False)


def add_model(run: Run, name: str, seed: int, layers: int = 1) -> None:
    path = run.folder.path.parent / name
    ToyPolicy.create(len(run.source.tokenizer), seed, layers).save(path)
    run.session.checkpoints[name] = str(path)


def judge_in_turn(monkeypatch: pytest.MonkeyPatch, run: Run, scores: Sequence[Sequence[float]]):
    """The n-th evaluated model gets the n-th scores, repeated over the prompts."""
    turns = iter(scores)

    def gold(prompts: Sequence[object], texts: Sequence[str]) -> list[Gold]:
        mine = next(turns)
        return [replace(PLAIN, score=mine[n % len(mine)]) for n in range(len(texts))]

    monkeypatch.setattr(run.source, "gold", gold)


def rates(run: Run) -> dict[tuple[str, str], float]:
    return {(p.model, p.over): p.rate for p in run.session.findings.preferred}


def test_every_pair_of_models_that_are_there_is_compared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path)
    add_model(run, "ppo", 4)
    judge_in_turn(monkeypatch, run, [[0.0], [1.0], [1.0, 2.0]])
    evaluate(run.session)
    assert list(run.session.findings.models) == ["base", "sft", "ppo"]
    # half of the prompts are ties with SFT, half are won
    assert rates(run) == {("sft", "base"): 1.0, ("ppo", "sft"): 0.75, ("ppo", "base"): 1.0}
    assert {p.n for p in run.session.findings.preferred} == {32}
    assert all(p.low <= p.rate <= p.high for p in run.session.findings.preferred)
    assert run.session.findings.models["ppo"].gold_mean == 1.5


def test_models_answer_the_same_held_out_prompts(tmp_path: Path):
    run = Run(tmp_path, rollout=2)
    evaluate(run.session)
    asked = [
        [r.prompt_tokens for r in facts["requests"]] for facts in run.hub.facts("rollout.generate")
    ]
    prompts = run.source.prompts("heldout", 0, 32)
    assert asked == [[p.tokens for p in prompts]] * 2
    kept = read_comparisons(run.folder)
    assert [c.prompt for c in kept] == [p.text for p in prompts[:3]]
    assert all(set(c.responses) == {"base", "sft"} for c in kept)
    for comparison, prompt in zip(kept, prompts, strict=False):
        (verdict,) = run.source.gold([prompt], [comparison.responses["sft"]]) or []
        assert comparison.gold["sft"] == verdict.score


@pytest.mark.parametrize("offset", [2e-4, math.nan])
def test_engines_that_answer_unlike_the_model_are_refused(tmp_path: Path, offset: float):
    run = Run(tmp_path, rollout=2)
    run.hub.faults.parity_offset = offset
    with pytest.raises(ParityError, match="model base: engine and reference differ") as caught:
        evaluate(run.session)
    assert caught.value.where == "evaluate"
    assert run.session.findings.models == {}


def test_every_engine_is_asked_about_every_model(tmp_path: Path):
    run = Run(tmp_path, rollout=2, reference=3)
    evaluate(run.session)
    names = run.hub.names()
    assert names.count("rollout.probe") == names.count("reference.logprobs") == 2
    assert names.index("rollout.generate") < names.index("rollout.probe")  # see `_check_engines`


@pytest.mark.parametrize("replicas", [1, 3])
def test_perplexity_and_cloze_of_each_model(tmp_path: Path, replicas: int):
    run = Run(tmp_path, reference=replicas)
    evaluate(run.session)
    documents = run.source.pretraining("heldout", 0, 16)
    for name in ("base", "sft"):
        model = ToyPolicy.load(run.session.need(name))
        with torch.no_grad():
            nats = [float(-model.logprobs(row, 1).sum()) for row in documents.tokens.rows()]
            right = 0
            for task in run.source.cloze("heldout", 0, 8) or []:
                likely = [
                    float(model.logprobs([*task.prefix, *c], len(task.prefix)).sum())
                    for c in task.candidates
                ]
                right += int(np.argmax(likely)) == task.answer
        tokens = sum(len(row) - 1 for row in documents.tokens.rows())
        row = run.session.findings.models[name]
        assert row.web_perplexity == pytest.approx(math.exp(sum(nats) / tokens), rel=1e-5)
        assert row.cloze_accuracy == right / 8


def test_a_perplexity_beyond_all_numbers_is_left_out(tmp_path: Path):
    run = Run(tmp_path)
    spoilt = ToyPolicy.load(run.session.need("base"))
    with torch.no_grad():
        spoilt.weights[5] = 1e6  # nats that every other token costs
    spoilt.save(run.session.need("base"))
    evaluate(run.session)
    write_summary(run.folder, Summary(models=run.session.findings.models))
    summary = json.loads(run.folder.summary.read_text(), parse_constant=pytest.fail)
    rows = summary["evaluation"]["models"]
    assert rows["base"]["web_perplexity"] is None
    assert rows["base"]["length_mean"] > 0
    assert rows["sft"]["web_perplexity"] > 1
    assert read_summary(run.folder.summary).models["base"].web_perplexity is None


@pytest.mark.parametrize("gpus", [0.0, 0.2, 1.0])
def test_no_model_loads_while_engines_start_on_a_part_of_a_gpu(tmp_path: Path, gpus: float):
    run = Run(tmp_path)
    run.config.cluster.roles.rollout.gpus = gpus
    add_model(run, "large", 8, layers=4)
    evaluate(run.session)
    loading = starting = overlaps = starts = 0
    for event in run.hub.events:
        change = 1 if event.kind == "start" else -1
        loading += change * event.name.endswith(".load")
        starting += change * (event.name == "rollout.start")
        starts += (event.kind, event.name) == ("start", "rollout.start")
        overlaps += loading > 0 and starting > 0
    assert starts == 2  # for the two small models, then for the large one
    assert (overlaps == 0) == (gpus == 0.2)


def test_the_large_model_restarts_the_engines_once(tmp_path: Path):
    run = Run(tmp_path)
    add_model(run, "large", 8, layers=4)
    add_model(run, "ppo", 9)
    evaluate(run.session)
    (restart,) = run.hub.facts("rollout.restart")
    assert restart["spec"].checkpoint == run.session.need("large")
    assert list(run.session.findings.models) == ["base", "large", "sft", "ppo"]
    assert ("ppo", "large") in rates(run)
    run.session.engines_on(run.session.need("sft"))  # and a later stage gets its shape back
    assert len(run.hub.facts("rollout.restart")) == 2


def without_gold(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)


def test_without_a_gold_labeler_the_reward_model_judges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path, reward=2)
    without_gold(monkeypatch, run)
    evaluate(run.session)
    assert run.hub.names().count("reward.score") == 2
    assert set(rates(run)) == {("sft", "base")}
    assert run.session.findings.models["sft"].gold_mean is None


def test_a_response_without_a_score_ends_the_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path)
    without_gold(monkeypatch, run)
    run.hub.faults.failed_rewards = lambda i: "no answer" if i == 3 else ""
    with pytest.raises(RewardError, match="1 of 32 responses got no score: no answer"):
        evaluate(run.session)


def test_without_any_judge_nobody_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path)
    without_gold(monkeypatch, run)
    del run.session.checkpoints["reward_model"]
    evaluate(run.session)
    assert run.session.findings.preferred == []
    assert set(run.session.findings.models) == {"base", "sft"}


def test_a_pairwise_judge_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path)
    without_gold(monkeypatch, run)
    judged_by(run, "longer")
    evaluate(run.session)
    assert rates(run) == {("sft", "base"): 0.875}
    assert "reward.load" not in run.hub.names()


def judged_by(run: Run, function: str) -> None:
    run.config.evaluate.judge = JudgeKind.function
    run.config.evaluate.judge_function = f"own_judges:{function}"


def test_a_judge_that_skips_prompts_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = Run(tmp_path)
    without_gold(monkeypatch, run)
    judged_by(run, "terse")
    with pytest.raises(RewardError, match="the wrong number of values: 1 for 32"):
        evaluate(run.session)


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (
            "crash",
            r"32 of 32 .*raised ModuleNotFoundError at .*/own_judges.py:\d+: numpie",
        ),
        ("boast", "8 of 32 pairs got no outcome: .* returned a number out of range .*: 2"),
        ("ramble", "32 of 32 .* returned a str for one item"),
    ],
)
def test_a_judge_that_fails_is_named(tmp_path: Path, function: str, says: str):
    run = Run(tmp_path)
    judged_by(run, function)
    with pytest.raises(JudgeError, match=says) as caught:
        evaluate(run.session)
    assert isinstance(caught.value, RewardError)
    assert caught.value.where == "evaluate.judge_function"
    assert caught.value.fix
    assert read_comparisons(run.folder)  # the answers are kept


def test_a_judge_that_goes_down_is_asked_for_the_rest_alone_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")

    def verdict(question: str) -> Answer:
        return says(f"[[{'ABC'[len(question) % 3]}]]")

    def fails_later(question: str) -> Answer:
        return verdict(question) if len(server.questions) <= 9 else (503, {}, "")

    def judged(name: str, cache: str) -> Run:
        run = Run(tmp_path / name)
        run.config.evaluate.judge = JudgeKind.endpoint
        endpoint = run.config.evaluate.endpoint
        endpoint.url, endpoint.model, endpoint.key_variable = server.url, "m", ""
        endpoint.instruction, endpoint.cache = "{prompt}|{first}|{second}", str(tmp_path / cache)
        endpoint.backoff_seconds, endpoint.retries = 0.01, 1
        return run

    server = Server(verdict)
    calm = judged("calm", "calm-verdicts")
    evaluate(calm.session)
    asked = set(server.questions)
    assert len(asked) == len(server.questions)
    server.questions.clear()
    server.answer = fails_later
    with pytest.raises(JudgeError, match="x HTTP 503"):
        evaluate(judged("first", "verdicts").session)
    known = len((tmp_path / "verdicts" / "verdicts.jsonl").read_text().splitlines())
    assert 0 < known <= 9 < len(asked)
    server.questions.clear()
    server.answer = verdict
    again = judged("again", "verdicts")
    evaluate(again.session)
    server.close()
    # as a set: on a slow machine a question of the run that failed arrives only now
    assert len(set(server.questions)) == len(asked) - known
    assert again.session.findings.preferred == calm.session.findings.preferred
    assert again.session.findings.judging.cached == known


def test_another_reward_model_than_the_one_that_ppo_optimised_judges(tmp_path: Path):
    run = Run(tmp_path)
    folder = tmp_path / "judge"
    ToyScalar.create(len(run.source.tokenizer), 11).save(folder)
    run.config.evaluate.judge = JudgeKind.reward_model
    run.config.evaluate.judge_checkpoint = str(folder)
    evaluate(run.session)
    specs = [facts["spec"] for facts in run.hub.facts("reward.load")]
    assert [spec.model.checkpoint for spec in specs] == [str(folder)] * 2
    assert set(rates(run)) == {("sft", "base")}
    # the gold labeler still measures
    assert run.session.findings.models["sft"].gold_mean is not None
    assert run.session.findings.judging == Judging("reward_model")


def test_nobody_judges_when_told_so(tmp_path: Path):
    run = Run(tmp_path)
    run.config.evaluate.judge = JudgeKind.none
    evaluate(run.session)
    assert run.session.findings.preferred == []
    assert run.session.findings.judging is None


def test_files_without_pretraining_text_have_no_perplexity(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path)
    run.config.data.source = DataSourceKind.files
    monkeypatch.setattr(run.source, "pretraining", lambda *_: pytest.fail("there is no file"))
    evaluate(run.session)
    assert run.session.findings.models["sft"].web_perplexity is None


def test_no_model_is_a_mistake_of_the_configuration(tmp_path: Path):
    run = Run(tmp_path)
    run.session.checkpoints.clear()
    with pytest.raises(ConfigError, match="no model to evaluate"):
        evaluate(run.session)


def test_a_judge_reads_what_was_asked_and_no_template(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    run = Run(tmp_path)
    judged_by(run, "reader")
    given = run.source.prompts
    turns = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "1 + 1?"))

    def dialogues(*which: object) -> list[Prompt]:
        return [replace(prompt, words=turns) for prompt in given(*which)]  # type: ignore[arg-type]

    monkeypatch.setattr(run.source, "prompts", dialogues)
    monkeypatch.setenv("OWN_JUDGES_SEEN", str(tmp_path / "seen"))
    evaluate(run.session)
    seen = json.loads((tmp_path / "seen").read_text())
    assert (
        seen
        == [
            [
                "User:\nHi\n\nAssistant:\nHello.\n\nUser:\n1 + 1?",
                [{"role": turn.role, "content": turn.content} for turn in turns],
            ]
        ]
        * 32
    )


def test_base_models_answer_again_after_demonstrations(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.config.evaluate.few_shot = 2
    evaluate(run.session)
    found = run.session.findings
    assert list(found.models) == ["base", "base+2", "sft"]
    asked = [f["requests"] for f in run.hub.facts("rollout.generate")]
    plain, prompted = asked[0], asked[1]
    heads = {r.prompt_tokens[: len(r.prompt_tokens) - len(p.prompt_tokens) + 1]
             for r, p in zip(prompted, plain, strict=True)}  # fmt: skip
    assert len(heads) == 1, "the same demonstrations before every prompt"
    for one, other in zip(plain, prompted, strict=True):
        assert other.prompt_tokens[-len(one.prompt_tokens) + 1 :] == one.prompt_tokens[1:]
    shown = run.source.detokenize(next(iter(heads)))
    assert shown.count("reply :") == 2
    assert shown.count("thank") == 2
    answers = [json.loads(line)["answers"] for line in
               (run.folder.samples / "answers.jsonl").read_text().splitlines()]  # fmt: skip
    assert all("user :" not in each["base+2"] for each in answers)
    assert ("sft", "base+2") in rates(run)
    assert found.models["base+2"].gold_mean is not None
    assert found.models["base+2"].web_perplexity is None
    assert found.models["base"].parameters == found.models["base+2"].parameters
