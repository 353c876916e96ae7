"""The stage overoptimization, over fake roles."""

from __future__ import annotations

import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from composing import composed
from fakes.session import Run, small_config
from fakes.toy import ToyScalar

from orchestrator.config.overoptimization import GoldJudge, OveroptimizationConfig
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.runs.expand import expand
from orchestrator.results.overoptimization import Overoptimization
from orchestrator.results.summary import Summary, read_summary, write_summary
from orchestrator.run_files.samples import read_rollouts
from orchestrator.session.driver_state import apply, capture
from orchestrator.stages.ppo.loop import ppo
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.selection.overoptimization import overoptimization
from workers.errors import ConfigError, RewardError

POCKET = ("+experiment=pocket", "stages=[pretrain,sft,reward_model,overoptimization]")
FILES = (
    "+experiment=overoptimization", "model.checkpoints.sft=S", "model.checkpoints.gold=G",
    "data.files.prompts=P", "data.files.demonstrations=D",
)  # fmt: skip
NO_GOLD = (
    *FILES[:2], *FILES[3:], "overoptimization.gold=labeler", "data.files.rankings=R",
)  # fmt: skip


def small(**settings: object) -> Config:
    config = small_config()
    config.stages = [StageName.reward_model, StageName.ppo, StageName.overoptimization]
    sizes = {"prompts": 6, "samples": 8, "best_of": [1, 2, 4, 8], "resamples": 100}
    config.overoptimization = OveroptimizationConfig(**{**sizes, **settings})
    return config


def measured(run: Run) -> Overoptimization:
    overoptimization(run.session)
    assert run.session.findings.overoptimization is not None
    return run.session.findings.overoptimization


def test_the_best_of_n_is_that_of_all_subsets_of_the_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(samples=6, best_of=[1, 3, 6])
    config.algorithm.missing_eos_penalty = 0.0
    run = Run(tmp_path, config)
    seen: list[tuple] = []
    score = run.roles.reward.score_batch

    def spy(batch, asked):
        answer = score(batch, asked)
        seen.append((batch, answer.result().values))
        return answer

    monkeypatch.setattr(run.roles.reward, "score_batch", spy)
    found = measured(run)
    (asked,) = [f["requests"] for f in run.hub.facts("rollout.generate")]
    assert [len(r.ids) for r in asked] == [6] * 6
    ((batch, values),) = seen
    distinct = {(int(p), tuple(batch.response(i))) for i, p in enumerate(batch.prompt_ids)}
    assert len(distinct) == len(batch), "an answer is scored once"
    assert found.distinct == pytest.approx(len(batch) / 6)
    prompts = {p.id: p for p in run.source.prompts("heldout", 0, 6)}
    texts = [run.source.detokenize(batch.response(i)) for i in range(len(batch))]
    golds = run.source.gold([prompts[int(p)] for p in batch.prompt_ids], texts) or []
    known = {
        (int(p), tuple(batch.response(i))): (values[i], golds[i].score)
        for i, p in enumerate(batch.prompt_ids)
    }
    sampled = _samples(run, asked)
    for at, n in enumerate((1, 3, 6)):
        best: list[float] = []
        for p, answers in sampled.items():
            for subset in combinations(answers, n):
                top = max(known[p, a][0] for a in subset)
                best.append(
                    float(np.mean([known[p, a][1] for a in subset if known[p, a][0] == top]))
                )
        assert found.proxies[0].gold[at] == pytest.approx(np.mean(best))


def test_answers_that_were_cut_lose_what_they_lose_in_ppo(tmp_path: Path) -> None:
    chosen: list[float] = []
    for penalty in (0.0, 100.0):
        config = small()
        config.algorithm.missing_eos_penalty = penalty
        config.rollout.max_response_tokens = 3
        chosen.append(measured(Run(tmp_path / str(penalty), config)).proxies[0].gold[-1])
    assert chosen[0] != chosen[1]


def _samples(run: Run, requests) -> dict[int, list[tuple[int, ...]]]:
    """The same sequences again: equal seeds give equal samples."""
    rollout, version = run.session.engines_on(run.session.need("sft"))
    rollouts = rollout.generate(requests, run.session.sampling(), version).result()
    batch = rollout.fetch(rollouts).result()
    found: dict[int, list[tuple[int, ...]]] = {}
    for i, p in enumerate(batch.prompt_ids):
        found.setdefault(int(p), []).append(tuple(batch.response(i)))
    return found


def test_figures_of_proxies_and_policies(tmp_path: Path) -> None:
    config = small()
    config.algorithm.iterations, config.algorithm.evaluate_every = 5, 1
    run = Run(tmp_path, config)
    ppo(run.session)
    found = measured(run)
    (proxy,) = found.proxies
    assert (proxy.name, proxy.rankings) == ("reward_model", 24)
    assert proxy.parameters is None or proxy.parameters > 0
    assert (np.diff(proxy.reward) >= -1e-9).all(), "the proxy's own score rises with n"
    assert proxy.reward[0] == pytest.approx(0.0, abs=1e-6)
    assert (np.array(found.oracle) >= np.array(proxy.gold) - 1e-9).all()
    assert proxy.kl[0] == 0.0
    assert (np.array(proxy.kl) <= np.array(found.bound) + 1e-9).all()
    assert 0.0 < found.seen <= 1.0
    (policy,) = found.policies
    assert (policy.name, policy.reward_model, policy.steps) == (
        "ppo", "reward_model", (0, 1, 2, 3, 4, 5),
    )  # fmt: skip
    assert list(policy.gold) == run.series("ppo/gold_mean")
    kl = run.series("ppo/kl_sequence")  # of the policies before each update
    assert policy.kl == pytest.approx([0.0, *np.maximum(kl[1:], 0.0), max(kl[4], 0.0)])
    assert policy.fit is not None


def test_figures_come_back_from_summary_and_checkpoint(tmp_path: Path) -> None:
    run = Run(tmp_path, small())
    found = measured(run)
    write_summary(run.folder, Summary(overoptimization=found))
    assert read_summary(run.folder.summary).overoptimization == found
    progress = json.loads(json.dumps(capture(run.session, "overoptimization", 1, {})))
    run.session.findings.overoptimization = None
    apply(run.session, progress)
    assert run.session.findings.overoptimization == found


def test_little_seen_probability_gives_the_bound(tmp_path: Path) -> None:
    run = Run(tmp_path, small(samples=2, best_of=[1, 2]))
    found = measured(run)  # the toy policy hardly ever repeats an answer
    assert found.seen < 0.5
    assert not found.exact
    assert found.proxies[0].kl == found.bound
    assert found.proxies[0].fit is None, "two points determine no form"


def test_a_gold_model_ranks_and_judges(tmp_path: Path) -> None:
    config = small(gold=GoldJudge.reward_model)
    run = Run(tmp_path, config)
    ToyScalar.create(len(run.source.tokenizer), 9).save(tmp_path / "gold")
    run.session.checkpoints["gold"] = str(tmp_path / "gold")
    run.session.run = expand(config)[0]
    reward_model(run.session)
    gold = ToyScalar.load(tmp_path / "gold", "keep")
    trained = [
        r
        for f in run.hub.facts("critic.train_rankings")
        for s in f["steps"]
        for b in s.micro_batches
        for r in b
    ]
    for ranking in trained:
        scores = [float(gold.prefix_values(row)[-1].detach()) for row in ranking.sequences.rows()]
        order = np.argsort(-np.array(scores), kind="stable")
        assert (np.diff(np.asarray(ranking.ranks)[order]) >= 0).all()
    run.session.run = expand(config)[1]
    ppo(run.session)
    assert len(run.series("ppo/gold_mean")) == 3
    loads = [f["spec"].model.checkpoint for f in run.hub.facts("reward.load")]
    assert loads[-1].endswith("reward_model"), "the proxy rewards again after each measurement"
    assert read_rollouts(run.folder)
    run.session.run = expand(config)[2]
    assert measured(run).gold == "reward_model"


def test_an_answer_without_a_score_ends_the_stage(tmp_path: Path) -> None:
    run = Run(tmp_path, small())
    run.hub.faults.failed_rewards = lambda i: "no answer" if i % 5 == 0 else ""
    with pytest.raises(RewardError, match="answers got no score: no answer"):
        overoptimization(run.session)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (NO_GOLD, "no labeler"),
        ((*FILES[:2], *FILES[3:]), "is given none"),
        ((*FILES, "model.checkpoints.reward_model=G"), "must not be what was optimised"),
        (("+experiment=pocket", "stages=[pretrain,sft,overoptimization]"), "there is no proxy"),
        ((*POCKET, "model.checkpoints.gold=G"), "labeler does not read it"),
        ((*POCKET, "overoptimization.best_of=[4,1024]"), "of 512 samples"),
        ((*POCKET, "reward=function", "reward.function=a:b"), "reward.kind=function needs none"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_the_plan(
    given: tuple[str, ...], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_plan(composed(*given))


def test_the_plan_says_what_is_measured() -> None:
    text = render_plan(make_plan(composed(*POCKET, "overoptimization.best_of=[2,512]")))
    assert "64 held-out prompts x 512 answers of the SFT model" in text
    assert "chooses the best of up to 512, the noise-free labeler judges" in text
    assert "the best of 512 is estimated from 512 samples per prompt: its variance is high" in text
    assert "fewer than 4 numbers: no curve is fitted" in text
    assert "the reward model gold judges" in render_plan(make_plan(composed(*FILES)))
