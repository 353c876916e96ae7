"""Every key of `reward` reaches the worker that scores, for PPO and for the evaluation."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestrator.config.engines import Packing
from orchestrator.config.reward import RewardConfig, TextBridge
from orchestrator.config.schema import Config
from orchestrator.planning.worker_specs import judge_spec, packed, reward_spec
from workers.records.specs import TermSpec


def _config(kind: str) -> Config:
    return Config(
        reward=RewardConfig(
            kind=kind,
            function="rewards:brevity",
            function_seconds=7.5,
            function_retries=3,
            bridge=TextBridge.text,
            micro_batch_tokens=321,
        )
    )


def test_a_function_gets_its_deadline_and_its_retries_in_ppo() -> None:
    spec = reward_spec(_config("function"), "", "policy")
    wanted = {"function": "rewards:brevity", "function_seconds": 7.5, "function_retries": 3}
    assert (spec.terms, spec.model) == ((TermSpec("function", wanted),), None)
    assert (spec.policy_checkpoint, spec.folder) == ("policy", str(Path.cwd()))


@pytest.mark.parametrize("kind", ["model", "function"])
def test_a_judging_model_is_a_model_whatever_rewards_ppo(kind: str) -> None:
    spec = judge_spec(_config(kind), "judge", "policy")
    assert spec.model is not None
    assert (spec.model.checkpoint, spec.model.micro_batch_tokens) == ("judge", 321)
    assert spec.terms == (TermSpec("model", {"bridge": "text"}),)
    assert spec.policy_checkpoint == "policy"


@pytest.mark.parametrize("packing", Packing)
@pytest.mark.parametrize("may", [False, True])
def test_sequences_are_packed_where_that_is_wanted_and_the_model_allows_it(
    monkeypatch: pytest.MonkeyPatch, packing: Packing, may: bool
) -> None:
    monkeypatch.setattr("orchestrator.planning.worker_specs.may_pack", lambda path, attention: may)
    config = Config()
    config.trainer.packing = packing
    assert packed(config, "folder") == (may and packing is Packing.auto)


def test_the_reward_model_of_ppo_is_the_one_given() -> None:
    spec = reward_spec(_config("model"), "reward", "policy")
    assert spec.model is not None
    assert (spec.model.checkpoint, spec.terms[0].source) == ("reward", "model")
