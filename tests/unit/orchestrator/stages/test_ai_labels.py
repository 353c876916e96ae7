"""Labels by a chat model: both orders, soft and hard, failures, and what trains on them."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from fakes import ToyPolicy, ToyScalar
from fakes.chat import byte_tokenizer
from fakes.judge import Answer, Server, says
from fakes.session import Run, small_config

from orchestrator.checkpoints.saved_runs import SavedRun, SavedRuns
from orchestrator.config.rounds.ai_labels import AskedPairs, ChosenPrinciple, LabelKind
from orchestrator.config.rounds.labels import LabelConfig
from orchestrator.config.training import RewardModelConfig
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.runs.ai_labels import questions_per_prompt
from orchestrator.planning.runs.expand import expand
from orchestrator.preflight.user_functions import check_own_parts
from orchestrator.recipe import STAGES
from orchestrator.results.label_figures import LabelFigures
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.rankings import load_split
from orchestrator.stages.asked_engines import letters_of, model_of
from orchestrator.stages.labels import pairwise
from orchestrator.stages.labels.pairwise import (
    asked_pairs,
    copeland_scores,
    has_cycle,
    matrix,
)
from orchestrator.stages.labels.tasks import read_tasks
from workers.errors import ConfigError, JudgeError
from workers.records.training import Ranking
from workers.scorers.judge_cache import VerdictCache


def shown(question: str) -> tuple[str, str]:
    """The answers that a question shows, the first one first."""
    first = question.split("[Answer A]\n")[1].split("\n[End of answer A]")[0]
    second = question.split("[Answer B]\n")[1].split("\n[End of answer B]")[0]
    return first, second


def longer(first: str, second: str) -> float:
    """The true verdict: the longer answer is better, of equal ones the later in the alphabet."""
    return float((len(first), first) > (len(second), second))


def drawn(question: str, share: float) -> bool:
    """The same answer to the same question, true for a share of all questions."""
    return hashlib.sha256(question.encode()).digest()[0] < 256 * share


def favours(question: str) -> float:
    """A judge that names A in 20 % of the questions, whatever the answers are."""
    return 1.0 if drawn(question, 0.2) else longer(*shown(question))


def favouring_the_first(question: str) -> Answer:
    return says(f"Because. [[{'A' if favours(question) else 'B'}]]")


def with_logprobs(p: float) -> Answer:
    """A first token A with probability 0.9 p, B with 0.9 (1 - p), each in two spellings."""
    tokens = [("A", 0.6 * p), (" A", 0.3 * p), ("B", 0.6 * (1 - p)), (" B", 0.3 * (1 - p))]
    top = [{"token": t, "logprob": math.log(w)} for t, w in [*tokens, ("The", 0.1)] if w > 0]
    message = {"role": "assistant", "content": "A"}
    choice = {"message": message, "logprobs": {"content": [{"top_logprobs": top}]}}
    return 200, {}, json.dumps({"choices": [choice]})


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


def labeled(
    tmp_path: Path, server: Server, *stages: str, resumed: SavedRun | None = None, **ai: Any
) -> Run:
    """A run of the stages whose answers the server labels."""
    config = small_config()
    config.label = LabelConfig(
        labeler="endpoint", prompts=40, heldout_prompts=8, max_completions=4, temperature=2.0
    )
    settings = config.label.ai
    settings.endpoint.url, settings.endpoint.model = server.url, "judge-1"
    settings.endpoint.key_variable = ""
    for name, value in ai.items():
        owner = settings if hasattr(settings, name) else settings.endpoint
        setattr(owner, name, value)
    config.reward_model = RewardModelConfig(
        prompts_per_step=64, bias_demonstrations=8, optimizer=config.reward_model.optimizer
    )
    config.model.checkpoints.sft = "given"
    config.stages = ["label", *stages]
    run = Run(tmp_path, config, resumed)
    for each in expand(config):
        run.session.enter(each)
        run.hub.position.stage = str(each.name)
        with run.telemetry.stage_span(str(each.name)):
            STAGES[each.stage](run.session)
        run.session.finish(str(each.name), last=False)
    return run


def answers_of(run: Run) -> dict[int, list[str]]:
    prompts = run.source.prompts("reward_model", 0, 48)
    return {t.prompt.id: t.texts for t in read_tasks(run.folder.tasks_of("label"), prompts)}


def rankings(run: Run) -> list[Ranking]:
    train, heldout = load_split(run.folder.rankings_of("label"))
    return [*train, *heldout]


def test_both_orders_take_a_position_bias_out_of_the_labels(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(lambda q: with_logprobs(favours(q)))
    run = labeled(tmp_path, server)
    texts = answers_of(run)
    found = run.session.findings.labels["label"].judging
    assert found is not None
    assert found.questions == len(server.questions) == 2 * found.bias_pairs
    # the 20 % are within the interval of what is estimated, and 0 is not
    assert found.bias_low is not None
    assert found.bias_high is not None
    assert 0 < found.bias_low < 0.2 < found.bias_high < 0.4
    both, forward_alone, true = [], [], []
    firsts = {shown(q): favours(q) for q in server.questions}
    for ranking in rankings(run):
        own = texts[ranking.prompt_id]
        assert ranking.probabilities is not None
        for i, j in itertools.combinations(range(len(own)), 2):
            both.append(ranking.probabilities[i, j])
            forward_alone.append(firsts[own[i], own[j]])
            true.append(longer(own[i], own[j]))
    reversed_by_both = np.mean([(p - 0.5) * (t - 0.5) < 0 for p, t in zip(both, true, strict=True)])
    reversed_alone = np.mean(np.array(forward_alone) != np.array(true))
    assert reversed_by_both == 0.0  # a bias makes a tie, never the worse answer the better one
    assert reversed_alone > 0.05
    assert len(true) > 200


def test_soft_labels_are_probabilities_of_the_first_token_in_both_orders(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    # P(A) = .2 + .8 t: both orders give .5 + .8 (t - .5), and a bias of exactly .2
    server = serve(lambda q: with_logprobs(0.2 + 0.8 * longer(*shown(q))))
    run = labeled(tmp_path, server, "reward_model", labels=LabelKind.soft)
    texts = answers_of(run)
    bodies = server.bodies[0]
    assert (bodies["max_tokens"], bodies["logprobs"], bodies["top_logprobs"]) == (1, True, 20)
    for ranking in rankings(run):
        own = texts[ranking.prompt_id]
        assert ranking.probabilities is not None
        for i, j in itertools.permutations(range(len(own)), 2):
            wanted = 0.5 + 0.8 * (longer(own[i], own[j]) - 0.5)
            assert ranking.probabilities[i, j] == pytest.approx(wanted, abs=1e-6)
        # without cycles the Copeland ranks are the true order
        order = sorted(range(len(own)), key=lambda i: ranking.ranks[i])
        assert all(longer(own[a], own[b]) for a, b in itertools.pairwise(order))
    found = run.session.findings.labels["label"].judging
    assert found is not None
    assert (found.cycles, found.bias) == (0, pytest.approx(0.2))
    assert (found.bias_low, found.bias_high) == (pytest.approx(0.2), pytest.approx(0.2))
    # the loss of the reward model's first step, by hand from the scores that it begins with
    model = ToyScalar.load(str(tmp_path / "sft"), "random")
    losses = []
    for ranking in load_split(run.folder.rankings_of("label"))[0]:
        scores = [float(model.prefix_values(row)[-1].detach()) for row in ranking.sequences.rows()]
        assert ranking.probabilities is not None
        terms = []
        for i, j in itertools.combinations(range(len(scores)), 2):
            p, d = float(ranking.probabilities[i, j]), scores[i] - scores[j]
            right, wrong = 1 / (1 + math.exp(-d)), 1 / (1 + math.exp(d))
            terms.append(-(p * math.log(right) + (1 - p) * math.log(wrong)))
        losses.append(sum(terms) / len(terms))
    assert run.series("reward_model/loss")[0] == pytest.approx(np.mean(losses), rel=1e-4)


def test_an_endpoint_without_probabilities_cannot_give_soft_labels(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    with pytest.raises(ConfigError, match="no probabilities") as caught:
        labeled(tmp_path, serve(lambda _: says("A")), labels=LabelKind.soft)
    assert caught.value.where == "label.ai.labels=soft"
    assert "label.ai.labels=hard" in caught.value.fix


def test_adjacent_pairs_are_fewer_questions_and_only_they_train(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(lambda q: says("[[A]]" if longer(*shown(q)) else "[[B]]"))
    run = labeled(tmp_path, server, labels=LabelKind.hard, pairs=AskedPairs.adjacent)
    for ranking in rankings(run):
        assert ranking.probabilities is not None
        known = np.argwhere(np.isfinite(ranking.probabilities))
        assert (abs(known[:, 0] - known[:, 1]) == 1).all()
        assert ranking.pairs == len(ranking.ranks) - 1
        assert set(ranking.probabilities[tuple(known.T)]) <= {0.0, 1.0}


def test_hard_labels_of_all_pairs_are_ranks(tmp_path: Path, serve: Callable[..., Server]) -> None:
    server = serve(lambda q: says("[[A]]" if longer(*shown(q)) else "[[B]]"))
    run = labeled(tmp_path, server, labels=LabelKind.hard)
    texts = answers_of(run)
    for ranking in rankings(run):
        assert ranking.probabilities is None
        own = texts[ranking.prompt_id]
        for i, j in itertools.combinations(range(len(own)), 2):
            assert (ranking.ranks[i] < ranking.ranks[j]) == longer(own[i], own[j])


def test_a_prompt_without_an_answer_is_left_out_with_the_reason(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    def sometimes(question: str) -> Answer:
        return says("I cannot tell.") if drawn(question, 0.02) else favouring_the_first(question)

    run = labeled(tmp_path, serve(sometimes), labels=LabelKind.hard, failed_fraction=0.9)
    found = run.session.findings.labels["label"]
    reason = "labeler: an answer without one clear verdict"
    assert found.left_out[reason] > 0
    assert found.answers == found.ranked + sum(found.left_out.values())
    assert found.judging is not None
    assert found.judging.unanswered > 0
    assert LabelFigures.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_an_endpoint_that_answers_too_few_ends_the_run(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    with pytest.raises(JudgeError, match="the labeler gave no answer on") as caught:
        labeled(tmp_path, serve(lambda _: says("hm")), labels=LabelKind.hard)
    assert "label.ai.endpoint.failed_fraction" in caught.value.fix


class Killed(Exception):
    """Ends a run as a kill would, at a chosen place."""


def test_a_stage_that_was_killed_while_it_labeled_asks_only_what_is_missing(
    tmp_path: Path, serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = labeled(tmp_path / "whole", serve(favouring_the_first), labels=LabelKind.hard)
    server = serve(favouring_the_first)
    put, kept = VerdictCache.put, list[str]()

    def killed(self: VerdictCache, key: str, verdict: str) -> None:
        if len(kept) == 100:
            raise Killed
        kept.append(key)
        put(self, key, verdict)

    with monkeypatch.context() as patched:
        patched.setattr(VerdictCache, "put", killed)
        with pytest.raises(Killed):
            labeled(tmp_path / "again", server, labels=LabelKind.hard)
    server.questions.clear()
    folder = RunFolder(tmp_path / "again" / "run")
    saved, _ = SavedRuns(folder).newest()
    assert saved is not None
    again = labeled(tmp_path / "again", server, resumed=saved, labels=LabelKind.hard)
    for a, b in zip(rankings(whole), rankings(again), strict=True):
        assert (a.prompt_id, a.ranks.tolist()) == (b.prompt_id, b.ranks.tolist())
        assert a.sequences.values.tolist() == b.sequences.values.tolist()
    found, expected = (r.session.findings.labels["label"] for r in (again, whole))
    assert found == expected
    assert expected.judging is not None
    assert len(server.questions) == expected.judging.questions - 100


def test_answers_are_kept_and_not_asked_for_again(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(favouring_the_first)
    cache = tmp_path / "kept"
    first = labeled(tmp_path / "1", server, labels=LabelKind.hard, cache=str(cache))
    count = len(server.questions)
    again = labeled(tmp_path / "2", server, labels=LabelKind.hard, cache=str(cache))
    assert len(server.questions) == count
    for a, b in zip(rankings(first), rankings(again), strict=True):
        assert a.ranks.tolist() == b.ranks.tolist()


def test_a_principle_is_drawn_per_pair_and_the_same_in_both_orders(
    tmp_path: Path, serve: Callable[..., Server]
) -> None:
    server = serve(favouring_the_first)
    labeled(tmp_path / "1", server, labels=LabelKind.hard, principles="helpful")
    named = {
        (frozenset(shown(q)), q.split("[Conversation]")[1].split("[Answer A]")[0]): set[str]()
        for q in server.questions
    }
    for q in server.questions:
        place = frozenset(shown(q)), q.split("[Conversation]")[1].split("[Answer A]")[0]
        named[place].add(q.split("principle:\n")[1].split("\n")[0])
    assert {len(each) for each in named.values()} == {1}
    assert len(set.union(*named.values())) == 3
    server.questions.clear()
    whole = ChosenPrinciple.all
    labeled(tmp_path / "2", server, labels=LabelKind.hard, principles="helpful", principle=whole)
    assert all(q.count("\n- Choose") == 3 for q in server.questions)


def judge_folder(path: Path) -> tuple[Any, ToyPolicy]:
    """A judging model with a tokenizer of bytes, and no chat template."""
    tokenizer = byte_tokenizer(None, eos="<|endoftext|>")
    model = ToyPolicy.create(len(tokenizer), 9)
    model.save(path)
    tokenizer.save_pretrained(path)
    return tokenizer, model


def test_an_engine_gives_the_probability_of_a_among_a_and_b(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer, model = judge_folder(tmp_path / "judge")
    config = small_config()
    config.label = LabelConfig(
        labeler="engine", prompts=6, heldout_prompts=3, max_completions=4, temperature=2.0
    )
    config.label.ai.checkpoint = str(tmp_path / "judge")
    config.label.ai.form = "{principle} {prompt} {first} or {second}"
    config.stages = ["label"]
    run = Run(tmp_path, config)
    run.session.enter(expand(config)[0])
    with run.telemetry.stage_span("label"):
        STAGES[expand(config)[0].stage](run.session)
    prompts = run.source.prompts("reward_model", 0, 9)
    tasks = read_tasks(run.folder.tasks_of("label"), prompts)
    texts = {task.prompt.id: task.texts for task in tasks}
    letters = [tokenizer(letter)["input_ids"][-1] for letter in "AB"]

    def first(one: str, other: str) -> float:
        del one  # a bigram model sees the last token of a question, that of the second answer
        last = torch.tensor(tokenizer(other)["input_ids"][-1])
        return float(torch.softmax(model.logits(last).detach()[letters], 0)[0])

    for ranking in rankings(run):
        own = texts[ranking.prompt_id]
        assert ranking.probabilities is not None
        for i, j in itertools.combinations(range(len(own)), 2):
            wanted = (first(own[i], own[j]) + 1 - first(own[j], own[i])) / 2
            assert ranking.probabilities[i, j] == pytest.approx(wanted, abs=1e-5)
    restarts = run.hub.facts("rollout.restart") or run.hub.facts("rollout.start")
    spec = restarts[-1]["spec"]
    assert spec.max_prompt_tokens == 2047  # of 2,048 positions
    assert spec.max_response_tokens == 1
    assert spec.vocabulary == len(tokenizer)


def test_a_judge_without_room_or_letters_is_refused_before_a_run(tmp_path: Path) -> None:
    judge_folder(tmp_path / "judge")
    folder = str(tmp_path / "judge")
    with pytest.raises(ConfigError, match="the model has 2,048 positions"):
        model_of(folder, 100, 2048, "label.ai.checkpoint")
    model = model_of(folder, 100, 1, "label.ai.checkpoint")
    assert len(letters_of(model, "which ?", ("A", "B"), "label.ai.checkpoint")) == 2
    with pytest.raises(ConfigError, match="no tokens of their own") as caught:
        letters_of(model, "which ?", ("AB", "AC"), "label.ai.checkpoint")
    assert caught.value.where == f"label.ai.checkpoint={folder}"
    words = ("stages=[pretrain,sft,label,reward_model]", "label.labeler=engine")
    with pytest.raises(ConfigError, match="no judging model is given") as caught:
        check_own_parts(composed("+experiment=pocket_tiny", *words))
    assert caught.value.where == "label.ai.checkpoint"


def test_copeland_scores_ties_and_cycles() -> None:
    assert asked_pairs(3, AskedPairs.all) == [(0, 1), (0, 2), (1, 2)]
    assert asked_pairs(3, AskedPairs.adjacent) == [(0, 1), (1, 2)]
    for k, which in itertools.product(range(2, 10), AskedPairs):
        assert questions_per_prompt(k, which) == 2 * len(asked_pairs(k, which))
    assert questions_per_prompt(4, AskedPairs.all) == 12
    # 0 beats 1 and 2, 1 ties with 2
    plain = {(0, 1): 0.9, (0, 2): 0.75, (1, 2): 0.5}
    assert copeland_scores(3, plain) == [2, -1, -1]
    assert not has_cycle(3, plain)
    circle = {(0, 1): 1.0, (1, 2): 1.0, (0, 2): 0.0}
    assert copeland_scores(3, circle) == [0, 0, 0]
    assert has_cycle(3, circle)
    # four in a circle of which no three are one: 0 > 1 > 2 > 3 > 0, ties across
    four = {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0, (0, 3): 0.0, (0, 2): 0.5, (1, 3): 0.5}
    assert has_cycle(4, four)
    assert not has_cycle(4, four | {(0, 3): 1.0})
    found = matrix(3, {(0, 2): 0.75})
    assert (found[0, 2], found[2, 0]) == (0.75, 0.25)
    assert np.isnan(found).sum() == 7
    assert pairwise.of_both_orders(0.9, 0.4) == pytest.approx(0.75)


@pytest.mark.parametrize(
    ("words", "where", "what"),
    [
        ([], "label.ai.endpoint.url", "no address"),
        (["label.ai.endpoint.url=http://h/v1"], "label.ai.endpoint.model", "no model is named"),
        (["label.ai.principles=nowhere"], "label.ai.principles=nowhere", "no such principles"),
        (
            ["label.ai.endpoint.url=http://h/v1", "label.ai.endpoint.model=m",
             "label.ai.endpoint.key_variable=NO_SUCH_KEY"],
            "label.ai.endpoint.key_variable", "NO_SUCH_KEY",
        ),
        (
            ["label.ai.endpoint.url=http://h/v1", "label.ai.endpoint.model=m",
             "label.ai.endpoint.request='[]'"],
            "label.ai.endpoint.request", "no JSON object",
        ),
    ],
)  # fmt: skip
def test_settings_with_which_nobody_can_be_asked(words: list[str], where: str, what: str) -> None:
    stages = "stages=[pretrain,sft,label,reward_model]"
    with pytest.raises(ConfigError) as caught:
        check_own_parts(
            composed("+experiment=pocket_tiny", stages, "label.labeler=endpoint", *words)
        )
    assert where in caught.value.where
    assert what in f"{caught.value.what} {caught.value.where}"


def test_the_plan_says_how_many_questions_that_is() -> None:
    words = ("label.labeler=endpoint", "label.ai.endpoint.model=judge-1", "label.prompts=100",
             "label.heldout_prompts=10", "label.max_completions=4")  # fmt: skip
    stages = "stages=[pretrain,sft,label,reward_model]"
    plan = render_plan(make_plan(composed("+experiment=pocket_tiny", stages, *words)))
    assert "12 questions per prompt, at most 1,320 in all, known answers are free" in plan
    assert all(len(line) <= 120 for line in plan.splitlines())


@pytest.mark.parametrize("where", ["label.ai.endpoint.url", "constitution.endpoint.url"])
def test_a_password_in_an_address_is_refused_in_every_run_and_not_shown(where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(composed("+experiment=pocket_tiny", f"{where}=https://me:geheim@host/v1"))
    assert where in caught.value.where
    assert "geheim" not in str(caught.value)


def test_a_form_needs_its_places() -> None:
    with pytest.raises(ConfigError, match=r"lacks \{principle\}, \{second\}") as caught:
        composed("+experiment=pocket_tiny", "label.ai.form='{prompt} {first}'")
    assert caught.value.where == "label.ai.form"
