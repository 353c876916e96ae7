"""The PPO loop over fake roles: who is called when, with what, and what happens when one fails."""

from __future__ import annotations

import math
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from fakes.session import Run, small_config

from orchestrator.checkpoints.model_folder import publish
from orchestrator.config.engines import Packing
from orchestrator.config.ranges import check_tree
from orchestrator.config.reward import TextBridge
from orchestrator.config.schema import Config
from orchestrator.config.seeds import derive
from orchestrator.config.training import (
    AlgorithmConfig,
    CriticInit,
    KLConfig,
    KLControl,
    OldLogprobs,
    OnNonFinite,
)
from orchestrator.results.summary import LedgerTotals
from orchestrator.run_files.samples import read_rollouts
from orchestrator.stages.evaluate import evaluate
from orchestrator.stages.ppo.loop import ppo, ppo_ptx
from orchestrator.stages.reward_model import reward_model
from workers.errors import (
    ChecksumError,
    ConfigError,
    DeadlineError,
    NonFiniteError,
    ParityError,
    RewardError,
    RoleDiedError,
    StaleEngineError,
)
from workers.records.generation import Finish, Sampling

BOS_ID = 1
SCORERS = ("reward.score", "policy.logprobs", "reference.logprobs", "critic.values")


def trained_ids(run: Run, name: str) -> list[list[list[int]]]:
    """Ids of each optimizer step of each update, over all ranks."""
    updates = []
    for facts in run.hub.facts(name):
        works = [[getattr(s, "ppo", s).work for s in steps] for steps in facts["steps"]]
        updates.append(
            [np.concatenate([w.ids for w in step]).tolist() for step in zip(*works, strict=True)]
        )
    return updates


def generated_ids(run: Run) -> list[list[int]]:
    """Sequences of each iteration, in the order of the requests."""
    batches = [f["requests"] for f in run.hub.facts("rollout.generate")]
    size = run.config.algorithm.samples_per_prompt
    return [[i for r in b for i in r.ids] for b in batches if len(b[0].ids) == size]


def scores_kept(run: Run) -> list[dict[int, float]]:
    """What each iteration's experience was built from."""
    found = []
    for facts in run.hub.facts("policy.build_experience"):
        scores = facts["scores"]
        found.append(dict(zip(scores.ids.tolist(), scores.values.tolist(), strict=True)))
    return found


SAMPLING = {f"rollout.{v}" for v in ("start", "load_checkpoint", "receive_weights", "probe",
                                     "generate")}  # fmt: skip
TRAINING = {"policy.load", "policy.update", "critic.load", "critic.train_rankings",
            "critic.update"}  # fmt: skip
SCORING = {"reward.load", "reward.score", "critic.values", "policy.build_experience"}


def require_turns(run: Run) -> None:
    """Engines are asleep while others work, and trainers rest while engines are awake."""
    awake, holding, turns = False, set[str](), 0
    for event in run.hub.events:
        role = event.name.partition(".")[0]
        if event.kind == "result":
            awake = awake and event.name != "rollout.sleep"
            holding -= {role} if event.name.endswith(".rest") else set()
        elif event.name in SAMPLING:
            assert not holding, event
            awake = True
        elif event.name in TRAINING | SCORING:
            assert not awake, event
            holding |= {role} if event.name in TRAINING else set()
            turns += event.name == "critic.update"
    assert turns == run.config.algorithm.iterations


class TestOrder:
    def test_data_flows_from_generation_to_sync(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        hub = run.hub
        begin = hub.at("start", "reward.score")  # the first iteration; before it, the set-up
        assert hub.names("result")[: hub.names("result").index("reward.score")][-1] == (
            "rollout.generate"
        )
        built = hub.at("start", "policy.build_experience", begin)
        updates = [hub.at("start", f"{role}.update", built) for role in ("policy", "critic")]
        assert hub.at("result", "policy.build_experience", built) < min(updates)
        published = hub.at("start", "policy.publish_weights", begin)
        done = [hub.at("result", f"{role}.update", built) for role in ("policy", "critic")]
        assert max(updates) < min(done)  # both trainers work at the same time
        assert max(done) < published
        assert published < hub.at("start", "rollout.generate", begin)

    def test_independent_calls_start_before_any_is_awaited(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        hub = run.hub
        begin = hub.at("start", "reward.score")
        starts = [hub.at("start", name, begin) for name in SCORERS]
        assert max(starts) < min(hub.at("result", name, begin) for name in SCORERS)

    def test_the_pass_of_old_logprobs_can_be_saved_where_engine_and_trainer_agree(
        self, tmp_path: Path
    ):
        series: list[list[float]] = []
        for old in OldLogprobs:
            config = small_config()
            config.algorithm = replace(config.algorithm, old_logprobs=old)
            run = Run(tmp_path / old.value, config)
            ppo(run.session)
            calls = run.hub.names().count("policy.logprobs")
            probes = run.hub.names().count("rollout.probe")
            # The fakes compute in double precision on both sides: only the probes are left.
            assert calls == probes + (2 if old is OldLogprobs.trainer else 0)
            assert len(run.series("ppo/mismatch_max")) == (2 if old is OldLogprobs.trainer else 0)
            series.append(run.series("ppo/policy_loss") + run.series("ppo/kl_sequence"))
        np.testing.assert_allclose(series[0], series[1], atol=1e-5)

    def test_micro_batches_follow_how_the_loaded_model_takes_sequences(self, tmp_path: Path):
        counts = []
        for packing in (Packing.off, Packing.auto):
            config = small_config()
            config.trainer.packing = packing
            config.trainer.micro_batch_tokens = 60
            run = Run(tmp_path / packing.value, config)
            ppo(run.session)
            steps = run.hub.facts("policy.update")[0]["steps"][0]
            counts.append(sum(len(step.ppo.work.micro_batches) for step in steps))
        assert counts[1] < counts[0]

    def test_sync_publishes_receives_probes_compares_then_admits(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        names = run.hub.names()
        at = names.index("policy.publish_weights", names.index("critic.update"))
        assert names[at : at + 7] == [
            "policy.publish_weights", "rollout.receive_weights", "rollout.probe",
            "policy.logprobs", "rollout.fetch", "policy.fetch", "rollout.admit",
        ]  # fmt: skip

    def test_engines_and_trainers_take_turns_with_their_memory(self, tmp_path: Path):
        series = []
        for sleeps in (False, True):
            config = small_config()
            config.rollout.sleep = sleeps
            config.algorithm.critic_warmup_iterations = 1
            run = Run(tmp_path / str(sleeps), config)
            reward_model(run.session)
            ppo(run.session)
            evaluate(run.session)
            series.append(run.repeatable())
            if sleeps:
                require_turns(run)
        assert series[0] == series[1]

    @pytest.mark.parametrize("gpus", [0.0, 0.2, 1.0])
    def test_engines_on_a_part_of_a_gpu_start_before_any_model_loads(self, tmp_path, gpus):
        config = small_config()
        config.cluster.roles.rollout.gpus = gpus
        run = Run(tmp_path, config)
        ppo(run.session)
        started = run.hub.at("result", "rollout.start")
        loads = [n for n, e in enumerate(run.hub.events) if e.name.endswith(".load")]
        assert len(loads) == 8  # four models, each begun and awaited
        assert (started < min(loads)) == (gpus == 0.2)  # else they load at the same time

    def test_over_a_network_both_sides_move_at_the_same_time(self, tmp_path: Path):
        config = small_config()
        config.rollout.transport = "gloo"
        run = Run(tmp_path, config, rollout=2)
        ppo(run.session)
        hub = run.hub
        assert hub.at("start", "rollout.receive_weights") < hub.at("start", "policy.send_weights")
        assert hub.at("start", "policy.send_weights") < hub.at("result", "rollout.receive_weights")
        assert hub.facts("rollout.connect")[0]["address"].world_size == 3

    def test_each_iteration_samples_from_the_version_just_synced(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        admitted = [f["version"] for f in run.hub.facts("rollout.admit")]
        assert admitted == [2, 3, 4]  # version 1 was the checkpoint
        sampled = [f["version"] for f in run.hub.facts("rollout.generate")]
        # gold at the start; then each iteration and the gold after its sync
        assert sampled == [2, 2, 3, 3, 4]
        assert run.series("ppo/policy_version") == [2, 3]

    def test_a_second_stage_never_reuses_a_version_or_an_id(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        ppo_ptx(run.session)
        admitted = [f["version"] for f in run.hub.facts("rollout.admit")]
        assert admitted == sorted(set(admitted))
        ids = [i for f in run.hub.facts("rollout.generate") for r in f["requests"] for i in r.ids]
        assert len(ids) == len(set(ids))
        assert run.session.findings.ledger.generated == 64


class TestCriticWarmup:
    def run(self, path: Path) -> Run:
        config = small_config()
        config.algorithm = replace(config.algorithm, iterations=3, critic_warmup_iterations=2)
        run = Run(path, config)
        ppo(run.session)
        return run

    def test_only_the_critic_learns_in_the_first_iterations(self, tmp_path: Path):
        run = self.run(tmp_path)
        assert run.hub.names().count("critic.update") == 3
        assert run.hub.names().count("policy.update") == 1
        assert len(run.series("ppo/policy_loss")) == 1
        assert run.series("ppo/kl_sequence")[:2] == [0.0, 0.0]
        steps = [f["spec"].optimizer.total_steps for f in run.hub.facts("policy.load")]
        assert steps == [2]  # one iteration of two optimizer steps

    def test_weights_that_did_not_change_are_not_sent(self, tmp_path: Path):
        run = self.run(tmp_path)
        assert run.hub.names().count("policy.publish_weights") == 2  # the first, and the last
        versions = run.series("ppo/policy_version")
        assert versions[0] == versions[1] == versions[2]
        assert run.session.findings.ledger.generated == run.session.findings.ledger.trained == 48

    def test_an_adaptive_coefficient_waits(self, tmp_path: Path):
        config = small_config()
        kl = KLConfig(control=KLControl.adaptive, coefficient=0.1, target=1.0, horizon=100)
        config.algorithm = replace(
            config.algorithm, iterations=3, critic_warmup_iterations=2, kl=kl
        )
        run = Run(tmp_path, config)
        ppo(run.session)
        assert run.series("ppo/kl_coefficient") == [0.1, 0.1, 0.1]

    def test_some_iteration_must_be_left_to_the_policy(self):
        with pytest.raises(ConfigError, match="critic alone learns in 2 of 2"):
            check_tree(AlgorithmConfig(iterations=2, critic_warmup_iterations=2))

    @pytest.mark.parametrize(
        ("init", "name", "head"),
        [(CriticInit.reward_model, "reward_model", "keep"), (CriticInit.sft, "sft", "zero")],
    )
    def test_where_the_critic_starts(self, tmp_path: Path, init: CriticInit, name: str, head: str):
        config = small_config()
        config.algorithm = replace(config.algorithm, critic_init=init)
        run = Run(tmp_path, config)
        ppo(run.session)
        spec = run.hub.facts("critic.load")[0]["spec"]
        assert (Path(spec.checkpoint).name, spec.head) == (name, head)


class TestLedger:
    def test_every_sequence_is_trained_once_an_epoch(self, tmp_path: Path):
        config = small_config()
        config.algorithm.epochs = 3
        run = Run(tmp_path, config, policy=2, critic=2)
        ppo(run.session)
        for name in ("policy.update", "critic.update"):
            for steps, ids in zip(trained_ids(run, name), generated_ids(run), strict=True):
                assert [len(step) for step in steps] == [8] * 6
                for epoch in range(3):
                    seen = sorted(steps[2 * epoch] + steps[2 * epoch + 1])
                    assert seen == sorted(ids)
                assert {*steps[0]} != {*steps[2]}  # each epoch in another order

    def test_failed_rewards_are_dropped_with_their_reason_and_never_trained(self, tmp_path: Path):
        run = Run(tmp_path, reward=3, policy=2, critic=2)
        run.hub.faults.failed_rewards = lambda i: (
            "no answer" if i % 5 == 0 else "not finite" if i % 7 == 0 else ""
        )
        ppo(run.session)
        failed = {i for ids in generated_ids(run) for i in ids if i % 5 == 0 or i % 7 == 0}
        assert failed
        for name in ("policy.update", "critic.update"):
            for steps, ids in zip(trained_ids(run, name), generated_ids(run), strict=True):
                assert sorted(i for step in steps for i in step) == sorted(set(ids) - failed)
                assert max(map(len, steps)) - min(map(len, steps)) <= 1
        totals = run.session.findings.ledger
        assert (totals.generated, totals.trained, totals.dropped) == (
            32, 32 - len(failed), len(failed),
        )  # fmt: skip
        silent = sum(i % 5 == 0 for i in failed)
        assert run.session.findings.drops == {
            "no answer": silent, "not finite": len(failed) - silent,
        }  # fmt: skip
        per_step = zip(
            run.series("ppo/generated"), run.series("ppo/trained"), run.series("ppo/dropped"),
            strict=True,
        )  # fmt: skip
        assert all(generated == trained + dropped for generated, trained, dropped in per_step)

    def test_a_dropped_score_moves_no_statistic(self, tmp_path: Path):
        run = Run(tmp_path)
        run.hub.faults.failed_rewards = lambda i: "no answer" if i % 2 else ""
        ppo(run.session)
        for scores, mean, std in zip(
            scores_kept(run), run.series("ppo/score_mean"), run.series("ppo/score_std"), strict=True
        ):
            kept = [value for i, value in scores.items() if i % 2 == 0]
            assert mean == pytest.approx(sum(kept) / len(kept))
            assert std == pytest.approx(np.std(kept))

    def test_one_survivor_still_trains_on_every_rank(self, tmp_path: Path):
        config = small_config()
        config.algorithm.iterations = 1
        run = Run(tmp_path, config, policy=2, critic=2)
        ids = []
        run.hub.faults.failed_rewards = lambda i: ids.append(i) or "" if not ids else "no answer"
        ppo(run.session)
        assert trained_ids(run, "policy.update") == [[ids[:1]]]
        assert run.series("ppo/dropped") == [15]

    def test_an_iteration_without_a_reward_is_dropped_whole_and_the_run_goes_on(
        self, tmp_path: Path
    ):
        config = small_config()
        config.algorithm.iterations = 4
        run = Run(tmp_path, config)
        per = [set(), set()]  # sequences of the second and the third iteration

        def fails(i: int) -> str:
            number = run.hub.calls["reward.score"]
            if number in (2, 3):
                per[number - 2].add(i)
                return "service down"
            return ""

        run.hub.faults.failed_rewards = fails
        ppo(run.session)
        assert [len(ids) for ids in per] == [16, 16]
        assert run.series("ppo/dropped") == [0, 16, 16, 0]
        assert run.series("ppo/trained") == [16, 0, 0, 16]
        assert len(run.series("ppo/score_mean")) == 2
        assert len(run.hub.facts("policy.update")) == 2
        assert run.session.findings.ledger == LedgerTotals(64, 32, 32)
        for name in SCORERS:  # no pass is left behind that nobody waited for
            assert run.hub.names("result").count(name) == run.hub.names().count(name)
        assert "ppo" in run.session.checkpoints

    def test_three_iterations_in_a_row_without_a_reward_end_the_run(self, tmp_path: Path):
        config = small_config()
        config.algorithm.iterations = 9
        run = Run(tmp_path, config)
        run.hub.faults.failed_rewards = lambda _: (
            "" if run.hub.calls["reward.score"] in (1, 4) else "service down"
        )
        with pytest.raises(RewardError, match=r"in 3 consecutive .*service down") as caught:
            ppo(run.session)
        assert caught.value.where == "stage start, step 6"
        assert len(run.hub.facts("policy.update")) == 2
        assert "ppo" not in run.session.checkpoints


class TestScores:
    @pytest.mark.parametrize("bridge", TextBridge)
    def test_a_reward_that_reads_words_gets_those_of_the_prompts_of_its_part(
        self, tmp_path: Path, bridge: TextBridge
    ):
        config = small_config()
        config.reward.bridge = bridge
        config.algorithm.evaluate_every = 0
        run = Run(tmp_path, config)
        for folder in run.session.checkpoints.values():
            run.source.tokenizer.save_pretrained(folder)
        ppo(run.session)
        given = [[a.prompt_id for a in f["asked"]] for f in run.hub.facts("reward.score")]
        texts = [[a.context for a in f["asked"]] for f in run.hub.facts("reward.score")]
        prompts = run.source.prompts("ppo", 0, 16)
        if bridge is TextBridge.tokens:
            assert given == [[], []]
        else:
            assert given == [[p.id for p in prompts[:8]], [p.id for p in prompts[8:]]]
            assert texts == [[p.text for p in prompts[:8]], [p.text for p in prompts[8:]]]

    @pytest.mark.parametrize("recorded", [True, False])
    def test_only_cut_sequences_lose_and_by_deviations_of_the_reward_model(
        self, tmp_path: Path, recorded: bool
    ):
        config = small_config()
        config.rollout.max_response_tokens = 5
        config.algorithm.missing_eos_penalty = 1.5
        run = Run(tmp_path, config)
        if recorded:
            given = Path(run.session.checkpoints["reward_model"])
            made = publish(
                tmp_path / "recorded",
                lambda to: shutil.copytree(given, to, dirs_exist_ok=True),
                {"score_deviation": 4.0},
            )
            run.session.checkpoints["reward_model"] = str(made)
        raw: list[dict[int, float]] = []
        finish: dict[int, int] = {}
        score = run.roles.reward.score

        def spy(rollouts, asked):
            answer = score(rollouts, asked)
            scores = answer.result()
            raw.append(dict(zip(scores.ids.tolist(), scores.values.tolist(), strict=True)))
            summary = rollouts.summary
            finish.update(zip(summary.ids.tolist(), summary.finish.tolist(), strict=True))
            return answer

        run.roles.reward.score = spy
        run.hub.faults.failed_rewards = lambda i: "no answer" if i % 6 == 0 else ""
        ppo(run.session)
        assert set(finish.values()) == {Finish.STOP, Finish.LENGTH}
        first = np.array([value for i, value in raw[0].items() if i % 6])
        loss = 6.0 if recorded else 1.5 * first.std()
        assert loss > 0.0
        for scores, before in zip(scores_kept(run), raw, strict=True):
            for i, value in scores.items():
                if i % 6 == 0:
                    assert np.isnan(value)  # a failure is no score, cut or not
                elif finish[i] == Finish.STOP:
                    assert value == before[i]
                else:
                    assert value == pytest.approx(before[i] - loss, rel=1e-6)

    @pytest.mark.parametrize("target", [1e-6, 1e6])
    def test_adaptive_coefficient_moves_towards_the_target(self, tmp_path: Path, target: float):
        config = small_config()
        config.algorithm.iterations = 4
        kl = config.algorithm.kl
        kl.control, kl.target, kl.horizon, kl.coefficient = KLControl.adaptive, target, 160, 0.1
        run = Run(tmp_path, config)
        ppo(run.session)
        used = [f["shaping"].kl_coefficient for f in run.hub.facts("policy.build_experience")]
        assert run.series("ppo/kl_coefficient") == used
        measured = run.series("ppo/kl_sequence")
        assert measured[0] == pytest.approx(0.0, abs=1e-6)
        expected = [0.1]
        for kl_sequence in measured[:-1]:  # an error of 20 % at most, times 16 sequences of 160
            expected.append(expected[-1] * (1.02 if kl_sequence > target else 0.98))
        assert used == pytest.approx(expected)

    def test_a_horizon_too_short_for_the_batch_is_refused(self):
        check_tree(AlgorithmConfig(kl=KLConfig(control=KLControl.adaptive, horizon=26)))
        with pytest.raises(ConfigError, match="horizon=25 for 128 sequences"):
            check_tree(AlgorithmConfig(kl=KLConfig(control=KLControl.adaptive, horizon=25)))

    def test_fixed_coefficient_stays(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        assert run.series("ppo/kl_coefficient") == [0.05, 0.05]

    def test_whitening_moments_do_not_depend_on_the_shards(self, tmp_path: Path):
        moments = []
        for ranks in (1, 2):
            run = Run(tmp_path / str(ranks), policy=ranks)
            ppo(run.session)
            facts = run.hub.facts("policy.update")[0]
            shards = facts["experience"].shards
            assert len(shards) == ranks
            advantages = np.concatenate([s.advantages.values for s in shards]).astype(np.float64)
            loss = facts["loss"]
            assert loss.advantage_mean == pytest.approx(advantages.mean(), rel=1e-6)
            assert loss.advantage_std == pytest.approx(advantages.std(), rel=1e-6)
            moments.append((loss.advantage_mean, loss.advantage_std))
        assert moments[0] == pytest.approx(moments[1], rel=1e-12)

    def test_whitening_off(self, tmp_path: Path):
        config = small_config()
        config.algorithm.whiten_advantages = False
        run = Run(tmp_path, config)
        ppo(run.session)
        loss = run.hub.facts("policy.update")[0]["loss"]
        assert (loss.advantage_mean, loss.advantage_std) == (0.0, 1.0)


class TestPretrainingMix:
    def test_documents_are_used_in_order_without_a_gap(self, tmp_path: Path):
        config = small_config()
        config.algorithm.epochs = 2
        config.algorithm.ptx.documents_per_episode = 0.5
        run = Run(tmp_path, config, policy=2)
        run.hub.faults.failed_rewards = lambda i: "no answer" if i % 9 == 0 else ""
        ppo_ptx(run.session)
        used = [(start, count) for split, start, count in run.source.documents if split == "train"]
        assert [start for start, _ in used] == np.cumsum([0, *(c for _, c in used[:-1])]).tolist()
        steps = [step for update in trained_ids(run, "policy.update") for step in update]
        assert [count for _, count in used] == [max(1, round(len(s) / 2)) for s in steps]

    @pytest.mark.parametrize("apart", [True, False])
    def test_rows_asked_for_are_rows_of_so_many_tokens(self, tmp_path: Path, apart: bool):
        config = small_config()
        config.algorithm.ptx.rows_per_episode = 8.0
        config.pretrain.row_tokens = 48
        run = Run(tmp_path, config, policy=2)
        run.hub.keeps_documents_apart = apart
        ppo_ptx(run.session)
        read: list[int] = []
        for facts in run.hub.facts("policy.update"):
            for n in range(2):
                batches = [b for rank in facts["steps"] for b in rank[n].ptx.micro_batches]
                lengths = [len(row) for b in batches for row in b.tokens.rows()]
                assert lengths == [48] * 64  # 8 sequences per step, 8 rows each
                assert all((b.positions is not None) == apart for b in batches if len(b))
                read += [i for b in batches for i in b.tokens.values.tolist()]
        # four steps read the text once, from its start on
        documents = run.source.pretraining("train", 0, 2000).tokens.values[: 4 * 64 * 48]
        assert sorted(read) == sorted(documents.tolist())

    @pytest.mark.parametrize("apart", [True, False])
    def test_documents_share_rows_where_they_do_not_see_each_other(
        self, tmp_path: Path, apart: bool
    ):
        run = Run(tmp_path)
        run.hub.keeps_documents_apart = apart
        ppo_ptx(run.session)
        texts = [
            batch
            for facts in run.hub.facts("policy.update")
            for step in facts["steps"][0]
            for batch in step.ptx.micro_batches
        ]
        assert texts
        assert all((batch.positions is not None) == apart for batch in texts)

    def test_one_batch_of_documents_joins_each_optimizer_step(self, tmp_path: Path):
        run = Run(tmp_path, policy=2)
        ppo_ptx(run.session)
        for facts in run.hub.facts("policy.update"):
            assert facts["loss"].ptx_coefficient == 0.5
            for n in range(2):
                texts = [steps[n].ptx for steps in facts["steps"]]
                packed = [b for text in texts for b in text.micro_batches]
                starts = sum(int((b.tokens.values == BOS_ID).sum()) for b in packed)
                tokens = sum(b.target_count for text in texts for b in text.micro_batches)
                assert starts == 8
                assert {text.tokens for text in texts} == {tokens}
        assert len(run.series("ppo/ptx_loss")) == 2

    def test_plain_ppo_reads_no_document(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        assert run.source.documents == []
        assert run.series("ppo/ptx_loss") == []
        assert all(s.ptx is None for f in run.hub.facts("policy.update") for s in f["steps"][0])


class TestFailures:
    def test_a_wrong_checksum_admits_nothing(self, tmp_path: Path):
        run = Run(tmp_path, rollout=2)
        run.hub.faults.wrong_checksum = True
        with pytest.raises(ChecksumError) as caught:
            ppo(run.session)
        assert caught.value.where == "rollout rank 1"
        assert "rollout.admit" not in run.hub.names()
        with pytest.raises(StaleEngineError):
            run.roles.rollout.generate(
                run.session.requests(run.source.prompts("ppo", 0, 2), 1, "x"), Sampling(), 2
            ).result()

    @pytest.mark.parametrize("offset", [1e-3, float("nan")])
    def test_engines_off_parity_are_not_admitted(self, tmp_path: Path, offset: float):
        run = Run(tmp_path)
        run.hub.faults.parity_offset = offset
        with pytest.raises(ParityError, match="engine and trainer differ"):
            ppo(run.session)
        assert "rollout.admit" not in run.hub.names()
        (state,) = run.roles.rollout.states().result()
        assert state.status == "unverified"

    def test_a_nan_names_its_sequence_and_stops_before_the_update(self, tmp_path: Path):
        run = Run(tmp_path)
        run.hub.faults.nan_logprobs = {11}
        with pytest.raises(NonFiniteError, match=r"old_logprobs.*sequences 11"):
            ppo(run.session)
        assert "policy.update" not in run.hub.names()

    def test_a_nan_in_the_update_syncs_nothing(self, tmp_path: Path):
        run = Run(tmp_path)
        run.hub.faults.raising["policy.update"] = NonFiniteError("the policy loss is not finite")
        with pytest.raises(NonFiniteError):
            ppo(run.session)
        (state,) = run.roles.rollout.states().result()
        assert state.version == 2
        assert run.session.findings.first_step_seconds is None

    def test_the_first_step_is_noted_before_the_first_iteration_is_over(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        found = run.session.findings
        assert found.first_step_seconds is not None
        assert found.first_step_seconds <= sum(found.start.values())
        assert list(found.start)[-1] == "first_iteration"

    @pytest.mark.parametrize("name", [*SCORERS, "critic.update", "rollout.receive_weights"])
    def test_a_dead_role_is_named(self, tmp_path: Path, name: str):
        run = Run(tmp_path)
        run.hub.position.stage = "ppo"
        run.hub.faults.dead.add(name)
        role = name.partition(".")[0]
        with pytest.raises(RoleDiedError, match=f"{role} rank 0 ended") as caught:
            ppo(run.session)
        assert "stage ppo, step 0" in caught.value.what

    def test_a_late_role_is_named(self, tmp_path: Path):
        run = Run(tmp_path)
        run.config.run.call_seconds = 0.3
        run.hub.faults.late.add("reference.logprobs")
        with pytest.raises(DeadlineError, match="reference: logprobs") as caught:
            ppo(run.session)
        assert caught.value.where == "reference rank 0"

    def test_what_was_counted_before_a_failure_stays_counted(self, tmp_path: Path):
        run = Run(tmp_path)
        run.hub.faults.deaths["policy.update"] = {2}
        with pytest.raises(RoleDiedError):
            ppo(run.session)
        assert run.session.findings.ledger.trained == 16


class TestRecords:
    def test_the_same_seed_gives_the_same_run(self, tmp_path: Path):
        runs = [Run(tmp_path / name, policy=2) for name in ("a", "b")]
        for run in runs:
            ppo_ptx(run.session)
        assert runs[0].repeatable() == runs[1].repeatable()
        assert len(runs[0].repeatable()) > 40

    def test_another_seed_gives_another(self, tmp_path: Path):
        scores = []
        for seed in (0, 1):
            config: Config = small_config()
            config.seed = seed
            run = Run(tmp_path / str(seed), config)
            ppo(run.session)
            scores.append(run.series("ppo/score_mean"))
        assert scores[0] != scores[1]

    def test_every_phase_is_timed_once_an_iteration(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        counts = Counter(r.name for r in run.metrics() if r.name.startswith("ppo/seconds/"))
        assert len(counts) == 10
        assert set(counts.values()) == {2}
        steps = {r.step for r in run.metrics() if r.name.startswith("ppo/seconds/")}
        assert steps == {r.step for r in run.metrics() if r.name == "ppo/step_seconds"} == {1, 2}

    def test_without_a_gold_labeler_the_reward_scores_held_out_prompts(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        config = small_config()
        config.algorithm.iterations, config.algorithm.evaluate_every = 5, 2
        run = Run(tmp_path, config)
        monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
        said: list[list[float]] = []
        score = run.roles.reward.score_batch

        def spy(batch, asked):
            answer = score(batch, asked)
            said.append(answer.result().values.tolist())
            return answer

        monkeypatch.setattr(run.roles.reward, "score_batch", spy)
        ppo(run.session)
        assert run.series("ppo/gold_mean") == []
        steps = [r.step for r in run.metrics() if r.name == "ppo/heldout_score_mean"]
        assert steps == [0, 2, 4]  # before any update, then every second iteration
        assert [len(values) for values in said] == [8, 8, 8]  # evaluation_prompts
        means = [sum(values) / 8 for values in said]
        assert run.series("ppo/heldout_score_mean") == pytest.approx(means)
        assert run.series("ppo/heldout_failed") == [0, 0, 0]
        prompts = {p.tokens for p in run.source.prompts("heldout", 0, 8)}
        asked = [f["requests"] for f in run.hub.facts("rollout.generate")]
        assert {r.prompt_tokens for r in asked[0]} == prompts

    def test_a_failed_reward_of_a_held_out_prompt_is_left_out_and_counted(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        run = Run(tmp_path)
        monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
        run.hub.faults.failed_rewards = lambda i: "no answer" if i < 8 and i != 3 else ""
        ppo(run.session)  # ids 0 to 7 are the answers before the first update
        assert run.series("ppo/heldout_failed") == [7, 0, 0]
        assert np.isfinite(run.series("ppo/heldout_score_mean")).all()

    @pytest.mark.parametrize("gold", [True, False])
    def test_nothing_is_evaluated_where_that_is_off(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gold: bool
    ):
        config = small_config()
        config.algorithm.evaluate_every = 0
        run = Run(tmp_path, config)
        if not gold:
            monkeypatch.setattr(run.source, "gold", lambda prompts, texts: None)
        ppo(run.session)
        assert run.hub.names().count("rollout.generate") == 2
        assert run.series("ppo/gold_mean") == run.series("ppo/heldout_score_mean") == []

    @pytest.mark.parametrize(("kept", "lines"), [(0, 0), (3, 3), (None, 16), (99, 16)])
    def test_texts_of_every_iteration_are_kept(self, tmp_path: Path, kept: int | None, lines: int):
        config = small_config()
        config.algorithm.evaluate_every = 0
        config.samples.per_iteration, config.samples.all = kept or 0, kept is None
        run = Run(tmp_path, config)
        ppo(run.session)
        samples = read_rollouts(run.folder)
        assert Counter(s.step for s in samples) == ({1: lines, 2: lines} if lines else {})
        assert len({s.id for s in samples}) == 2 * lines
        assert run.hub.names().count("rollout.fetch") == 3 + (2 if lines else 0)  # probes

    def test_lengths_and_ends_are_those_of_what_was_sampled(self, tmp_path: Path):
        config = small_config()
        config.samples.all = True
        run = Run(tmp_path / "rewarded", config)
        ppo(run.session)
        ends = [s.finish == "stop" for s in read_rollouts(run.folder) if s.step == 1]
        assert len(ends) == 16
        assert sum(ends) not in (0, 8, 16)
        rate, mean = run.series("ppo/eos_rate")[0], run.series("ppo/response_tokens_mean")[0]
        assert rate == pytest.approx(sum(ends) / 16)
        assert 1 < mean <= config.rollout.max_response_tokens

        lost = Run(tmp_path / "lost", config)
        calls = lost.hub.calls
        lost.hub.faults.failed_rewards = lambda i: "down" if calls["reward.score"] == 1 else ""
        ppo(lost.session)
        assert lost.series("ppo/dropped")[0] == 16
        assert lost.series("ppo/eos_rate")[0] == rate
        assert lost.series("ppo/response_tokens_mean")[0] == mean

    def test_samples_tell_what_was_scored(self, tmp_path: Path):
        run = Run(tmp_path)
        run.hub.faults.failed_rewards = lambda i: "no answer" if i % 2 else ""
        ppo(run.session)
        scores = scores_kept(run)
        samples = read_rollouts(run.folder)
        assert {s.step for s in samples} == {1, 2}
        for sample in samples:
            assert sample.policy_version == sample.step + 1
            assert 1 <= (sample.tokens or 0) <= run.config.rollout.max_response_tokens
            if sample.id % 2:
                assert sample.dropped == "no answer"
                assert math.isnan(sample.score)
                assert math.isnan(sample.kl)
            else:
                assert sample.dropped == ""
                assert sample.score == scores[sample.step - 1][sample.id]
        most = run.config.samples.per_iteration // 2
        assert Counter((s.step, bool(s.dropped)) for s in samples) == {
            (step, dropped): most for step in (1, 2) for dropped in (False, True)
        }

    def test_texts_of_an_iteration_without_any_reward_are_kept(self, tmp_path: Path):
        run = Run(tmp_path)
        calls = run.hub.calls
        run.hub.faults.failed_rewards = lambda i: "down" if calls["reward.score"] == 1 else ""
        ppo(run.session)
        lost = [s for s in read_rollouts(run.folder) if s.step == 1]
        assert {s.dropped for s in lost} == {"down"}
        assert len(lost) == run.config.samples.per_iteration

    def test_the_trained_policy_is_published(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        assert Path(run.session.need("ppo")) == run.folder.checkpoints / "ppo"

    def test_a_sample_is_seeded_by_stage_iteration_prompt_and_number(self, tmp_path: Path):
        run = Run(tmp_path)
        ppo(run.session)
        size = run.config.algorithm.samples_per_prompt
        batches = [f["requests"] for f in run.hub.facts("rollout.generate")]
        trained = [batch for batch in batches if len(batch[0].ids) == size]
        for iteration in (0, 1):
            for request in trained[iteration]:
                assert request.seeds == tuple(
                    derive(run.config.seed, "ppo", iteration, request.prompt_id, k)
                    for k in range(size)
                )

    def test_skipped_steps_are_counted_where_steps_are_skipped(self, tmp_path: Path):
        config = small_config()
        config.algorithm.on_non_finite = OnNonFinite.skip
        run = Run(tmp_path / "skips", config)
        ppo(run.session)
        assert run.series("ppo/skipped_steps") == [0, 0]
        run = Run(tmp_path / "stops")
        ppo(run.session)
        assert run.series("ppo/skipped_steps") == []

    def test_repeated_prompts_are_sampled_with_seeds_of_their_own(self, tmp_path: Path):
        run = Run(tmp_path)
        (prompt,) = run.source.prompts("ppo", 0, 1)
        requests = run.session.requests([prompt, prompt], 2, "ppo", 0)
        assert len({seed for request in requests for seed in request.seeds}) == 4
