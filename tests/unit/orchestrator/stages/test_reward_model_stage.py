"""The reward-model stage over fake roles: what is ranked, what is learnt, where zero lies."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from fakes import ToyScalar
from fakes.session import Run

from orchestrator.checkpoints import model_folder
from orchestrator.stages.reward_model import reward_model
from workers.errors import EmptyDatasetError, RoleDiedError
from workers.records.arrays import Ragged
from workers.records.training import Ranking


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path, critic=2, rollout=2)


def rankings(run: Run, name: str) -> list[Ranking]:
    return [
        ranking
        for facts in run.hub.facts(name)
        for step in facts["steps"]
        for batch in step.micro_batches
        for ranking in batch
    ]


def written(run: Run) -> list[dict]:
    lines = (run.folder.samples / "rankings.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_four_to_nine_completions_a_prompt_a_quarter_of_them_from_the_base_model(run: Run):
    reward_model(run.session)
    sft, base = (
        {r.prompt_id: len(r.ids) for r in facts["requests"]}
        for facts in run.hub.facts("rollout.generate")
    )
    totals = {prompt: sft[prompt] + base[prompt] for prompt in sft}
    assert len(totals) == 24 + 12
    assert set(totals.values()) == {4, 5, 6, 7, 8, 9}
    quarter = {4: 1, 5: 1, 6: 2, 7: 2, 8: 2, 9: 2}
    assert base == {prompt: quarter[k] for prompt, k in totals.items()}
    served = [facts["path"] for facts in run.hub.facts("rollout.load_checkpoint")]
    assert served == [run.session.need("base")]


def test_the_first_optimizer_step_of_the_run_may_be_that_of_any_stage(run: Run):
    assert run.session.findings.first_step_seconds is None
    reward_model(run.session)
    assert run.session.findings.first_step_seconds is not None
    assert "first_iteration" not in run.session.findings.start  # that is of PPO


def test_completions_belong_to_their_prompts(run: Run):
    reward_model(run.session)
    prompts = {p.id: p for p in run.source.prompts("reward_model", 0, 36)}
    found = rankings(run, "critic.train_rankings") + rankings(run, "critic.evaluate_rankings")
    for ranking in found:
        prompt = prompts[ranking.prompt_id]
        texts = written(run)[ranking.prompt_id]["completions"]
        for row, text in zip(ranking.sequences.rows(), texts, strict=True):
            assert tuple(row[: len(prompt.tokens)]) == prompt.tokens
            assert run.source.detokenize(row[len(prompt.tokens) :]) == text


def test_held_out_prompts_are_never_trained_on(run: Run):
    reward_model(run.session)
    train = {r.prompt_id for r in rankings(run, "critic.train_rankings")}
    heldout = {r.prompt_id for r in rankings(run, "critic.evaluate_rankings")}
    assert train <= set(range(24))
    assert heldout <= set(range(24, 36))
    assert heldout


def test_a_warm_up_is_cut_to_the_steps_of_the_rankings_that_are_there(run: Run):
    run.config.reward_model.max_rankings = 9
    run.config.reward_model.optimizer.warmup_steps = 2  # fewer than the 3 steps of 24 prompts
    reward_model(run.session)
    assert run.hub.facts("critic.load")[0]["spec"].optimizer.warmup_steps == 1


def test_at_most_so_many_rankings_train(run: Run):
    run.config.reward_model.max_rankings = 9
    reward_model(run.session)
    assert len(run.hub.facts("critic.train_rankings")) == 2  # 8 and 1
    assert {r.prompt_id for r in rankings(run, "critic.train_rankings")} <= set(range(9))
    assert min(r.prompt_id for r in rankings(run, "critic.evaluate_rankings")) >= 24


def test_rankings_before_those_that_train_are_skipped(run: Run):
    settings = run.config.reward_model
    settings.max_rankings, settings.skip_rankings = 9, 10
    reward_model(run.session)
    trained = {r.prompt_id for r in rankings(run, "critic.train_rankings")}
    assert trained <= set(range(10, 19))
    assert len(trained) > 6
    assert min(r.prompt_id for r in rankings(run, "critic.evaluate_rankings")) >= 24


def test_every_ranking_once_an_epoch_in_a_new_order(tmp_path: Path):
    run = Run(tmp_path)
    run.config.reward_model.epochs = 2
    reward_model(run.session)
    order = [r.prompt_id for r in rankings(run, "critic.train_rankings")]
    half = len(order) // 2
    assert sorted(order[:half]) == sorted(order[half:])
    assert len(set(order[:half])) == half
    assert order[:half] != order[half:]


def test_tied_pairs_are_counted_and_left_out(run: Run):
    reward_model(run.session)
    kept, tied = run.series("reward_model/pairs_kept"), run.series("reward_model/pairs_tied")
    trained = {r.prompt_id for r in rankings(run, "critic.train_rankings")}
    pairs = equal = 0
    for number, line in enumerate(written(run)):
        if number in trained:
            k = len(line["ranks"])
            pairs += k * (k - 1) // 2
            equal += sum(n * (n - 1) // 2 for n in Counter(line["ranks"]).values())
    assert equal > 0
    assert (sum(kept), sum(tied)) == (pairs - equal, equal)


def test_demonstrations_score_zero_on_average_under_the_published_model(run: Run):
    reward_model(run.session)
    saved = ToyScalar.load(run.session.need("reward_model"), "keep")
    texts = run.source.demonstrations("heldout", 0, 32)
    scores = [float(saved.prefix_values(row)[-1]) for row in texts.tokens.rows()]
    assert np.mean(scores) == pytest.approx(0.0, abs=1e-6)
    assert np.std(scores) > 0
    (shift,) = run.hub.facts("critic.shift_bias")
    assert abs(shift["mean"]) > 1e-3


def test_held_out_accuracy_is_found_and_recorded(run: Run):
    reward_model(run.session)
    saved = ToyScalar.load(run.session.need("reward_model"), "keep")
    right = total = 0
    prompts = set()
    for ranking in rankings(run, "critic.evaluate_rankings"):
        scores = [float(saved.prefix_values(row)[-1].detach()) for row in ranking.sequences.rows()]
        for a, b in itertools.combinations(range(len(scores)), 2):
            if ranking.ranks[a] != ranking.ranks[b]:
                prompts.add(ranking.prompt_id)
                total += 1
                right += (ranking.ranks[a] < ranking.ranks[b]) == (scores[a] > scores[b])
    found = run.session.findings.reward_model.heldout
    assert found is not None
    assert (found.accuracy, found.pairs, found.prompts) == (right / total, total, len(prompts))
    assert run.series("reward_model/heldout_pair_accuracy") == [right / total]
    assert run.series("reward_model/heldout_pair_accuracy_low") == [found.low]
    assert run.series("reward_model/heldout_pairs") == [total]
    spread = [
        float(saved.prefix_values(row)[-1].detach())
        for ranking in rankings(run, "critic.evaluate_rankings")
        for row in ranking.sequences.rows()
    ]
    recorded = model_folder.facts(Path(run.session.need("reward_model")))["score_deviation"]
    assert recorded == pytest.approx(np.std(spread), rel=1e-5)
    assert found.low < found.accuracy < found.high


def test_accuracy_by_source_and_by_completions_and_agreement_of_annotators(
    run: Run, monkeypatch: pytest.MonkeyPatch
):
    def given(split: str) -> list[Ranking]:
        first = 0 if split == "train" else 100
        made = []
        for n in range(first, first + 10):
            asked = n % 80 + 10
            rows = Ragged.from_rows([[1, asked, 6], [1, asked, 9]], np.int32)
            for who, ranks in (("ann", [1, 2]), ("bob", [1, 2] if n % 2 else [2, 1])):
                made.append(Ranking(n, rows, np.array(ranks), source="chat", annotator=who))
            rows = Ragged.from_rows([[1, asked, w] for w in (6, 7, 8)], np.int32)
            made.append(Ranking(n, rows, np.array([1, 2, 3])))
        return made

    monkeypatch.setattr(run.source, "rankings", given)
    reward_model(run.session)
    found = run.session.findings.reward_model
    assert {name: (a.pairs, a.prompts) for name, a in found.by_source.items()} == {
        "": (30, 10), "chat": (20, 10),
    }  # fmt: skip
    assert {k: (a.pairs, a.prompts) for k, a in found.by_completions.items()} == {
        2: (20, 10), 3: (30, 10),
    }  # fmt: skip
    # the two annotators say the same of every second pair, so a model can be right on 3 of 4 there
    assert found.by_source["chat"].accuracy in (0.25, 0.5, 0.75)
    assert run.series("reward_model/heldout_pair_accuracy/source/chat") == [
        found.by_source["chat"].accuracy
    ]
    assert found.agreement is not None
    assert (found.agreement.rate, found.agreement.judgements) == (0.5, 20)
    assert (found.agreement.prompts, found.agreement.annotators) == (20, 2)
    assert run.series("reward_model/annotator_agreement") == [0.5]


def test_given_rankings_are_not_sampled_again(run: Run, monkeypatch: pytest.MonkeyPatch):
    def given(split: str) -> list[Ranking]:
        first = 0 if split == "train" else 100
        rows = Ragged.from_rows([[1, 5, 6], [1, 5, 7], [1, 5, 8]], np.int32)
        return [Ranking(first + n, rows, np.array([1, 2, 2])) for n in range(10)]

    monkeypatch.setattr(run.source, "rankings", given)
    reward_model(run.session)
    assert "rollout.generate" not in run.hub.names()
    assert {r.prompt_id for r in rankings(run, "critic.train_rankings")} == set(range(10))
    assert run.series("reward_model/pairs_kept") == [16, 4]


def test_nothing_but_ties_is_an_error(run: Run, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        run.source, "label", lambda _, completions: [[1] * len(each) for each in completions]
    )
    with pytest.raises(EmptyDatasetError, match="no training ranking"):
        reward_model(run.session)


def test_a_dead_trainer_publishes_nothing(run: Run):
    run.hub.faults.dead.add("critic.train_rankings")
    before = run.session.need("reward_model")
    with pytest.raises(RoleDiedError):
        reward_model(run.session)
    assert run.session.need("reward_model") == before
