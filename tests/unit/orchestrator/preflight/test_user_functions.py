"""A run tries the functions that it will call before anything starts; so does its plan."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from composing import composed

from orchestrator.config.schema import Config
from orchestrator.preflight.dry_run import look
from orchestrator.preflight.user_functions import check_functions, check_own_parts
from workers.errors import ConfigError

SOURCE = """
import os, sys, time
print("hello" * 100_000)
{body}
def score(prompts, responses): return [0.0 for _ in responses]
def one(prompts): return []
"""


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path / "my_rewards.py"


def config(function: str, *more: str) -> Config:
    reward = ("reward=function", f"reward.function={function}")
    return composed("+experiment=pocket_tiny", *reward, *more)


def test_a_function_in_the_folder_of_the_run_is_found_and_this_process_never_imports_it(
    module: Path,
) -> None:
    module.write_text(SOURCE.format(body=f"assert os.getpid() != {os.getpid()}"))
    look(config("my_rewards:score"))


@pytest.mark.parametrize(
    ("body", "function", "says"),
    [
        ("", "my_rewards:one", r"takes \(prompts\), and is called with \(prompts, responses\)"),
        ("raise OSError('no GPU')", "my_rewards:score", r"OSError at .*/my_rewards.py:4: no GPU"),
        ("print('end', flush=True); os._exit(5)", "my_rewards:score", "with exit code 5: .*end"),
        ("os.kill(os.getpid(), 9)", "my_rewards:score", "ended its process with exit code -9"),
    ],
)
def test_a_run_with_a_function_that_cannot_be_called_ends_before_it_starts(
    module: Path, body: str, function: str, says: str
) -> None:
    module.write_text(SOURCE.format(body=body))
    with pytest.raises(ConfigError, match=says) as caught:
        look(config(function))
    assert caught.value.where == "reward.function"


def test_an_import_that_never_ends_is_given_up(module: Path) -> None:
    module.write_text(SOURCE.format(body="time.sleep(1000)"))
    with pytest.raises(ConfigError, match="did not end within 2 s"):
        check_functions(config("my_rewards:score", "run.role_start_seconds=2"))


def test_only_functions_that_a_stage_calls_are_tried() -> None:
    check_functions(config("no_such_one:f", "stages=[pretrain,sft]"))


def test_a_function_may_not_outlive_the_call_that_waits_for_it() -> None:
    with pytest.raises(ConfigError, match="can take 1261 s") as caught:
        check_plan("reward.function_seconds=300.25", "run.call_seconds=1260")
    assert caught.value.where == "reward.function_seconds"
    check_plan("reward.function_seconds=300", "run.call_seconds=1260")
    check_plan("reward.function_seconds=0", "run.call_seconds=1200")


def check_plan(*overrides: str) -> None:
    from orchestrator.planning.plan import make_plan

    make_plan(config("my_rewards:score", *overrides))


ESTIMATOR = """
import os
from workers.training.estimator import Estimator
ESTIMATOR = Estimator(of_sequences=lambda batch: {number})
{body}
"""


@pytest.mark.parametrize(
    ("number", "body", "says"),
    [
        ("batch.returns", "os._exit(5)", "with exit code 5"),
        ("batch.returns.mean()", "", r"shape \(\) instead of \(4,\)"),
        ("batch.reward", "", r"AttributeError at .*/my_rewards.py:4"),
    ],
)
def test_an_estimator_that_cannot_be_used_is_found_in_another_process(
    module: Path, number: str, body: str, says: str
) -> None:
    module.write_text(ESTIMATOR.format(number=number, body=body))
    with pytest.raises(ConfigError, match=says) as caught:
        check_own_parts(
            composed("+experiment=pocket_tiny", "algorithm.advantage=my_rewards:ESTIMATOR")
        )
    assert caught.value.where == "algorithm.advantage"


LOSS = """
import torch
from workers.ops import Surrogate
from workers.training.policy_loss import PolicyLoss
LOSS = PolicyLoss(lambda tokens, clip: Surrogate({terms}, tokens.logprobs > 0))
"""


@pytest.mark.parametrize(
    ("terms", "says"),
    [
        ("tokens.logprob", "AttributeError at .*/my_rewards.py:5"),
        ("tokens.advantages", "do not depend on the log-probabilities"),
        ("tokens.logprobs.mean()", r"shape \(\) instead of torch.float32 of \(3,\)"),
    ],
)
def test_a_policy_loss_that_cannot_be_used_is_found_in_another_process(
    module: Path, terms: str, says: str
) -> None:
    module.write_text(LOSS.format(terms=terms))
    own = "algorithm.policy_loss=my_rewards:LOSS"
    with pytest.raises(ConfigError, match=says) as caught:
        check_own_parts(composed("+experiment=pocket_tiny", own))
    assert caught.value.where == "algorithm.policy_loss"
    module.write_text(LOSS.format(terms="-tokens.advantages * tokens.logprobs"))
    check_own_parts(composed("+experiment=pocket_tiny", own))


def test_only_an_estimator_of_a_user_that_a_stage_calls_is_tried() -> None:
    check_own_parts(composed("+experiment=pocket_tiny"))
    own = "algorithm.advantage=no_such_one:E"
    check_own_parts(composed("+experiment=pocket_tiny", own, "stages=[pretrain,sft]"))
