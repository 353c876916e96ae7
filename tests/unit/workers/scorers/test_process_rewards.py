"""Process rewards: a list of numbers per response, each at the token where its step ends."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from composing import composed
from test_remote_reward import send, serving

from orchestrator.config.ranges import check_tree
from orchestrator.planning.worker_specs import reward_spec
from workers.data.rows.asked import Asked
from workers.errors import ConfigError
from workers.ops import kl_shaped_rewards
from workers.pocket.tokenizer import build_tokenizer
from workers.records.arrays import Ragged
from workers.records.gather import gather_scores
from workers.records.generation import Finish, RolloutBatch
from workers.records.training import Scores
from workers.roles.reward import RewardWorker
from workers.scorers.steps import place_steps, split_steps
from workers.user_functions.answers import Reply
from workers.user_functions.messages import pack, unpack

TEXTS = ["the owl eats mice . the fox is red . mice", "owl .", "owl . fox . bear"]
FUNCTION = """
def score(prompts, responses):
    return [[1.0, 2.0, 0.5], 3.0, [1.0, 1.0]]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    build_tokenizer().save_pretrained(tmp_path / "policy")
    (tmp_path / "stepwise.py").write_text(FUNCTION)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def scored(folder: Path, *overrides: str) -> Scores:
    given = ("+experiment=pocket_tiny", "reward.step_separator=' . '", *overrides)
    worker = RewardWorker(0)
    worker.load(reward_spec(composed(*given), "", str(folder / "policy")))
    tokenizer, count = build_tokenizer(), len(TEXTS)
    ends = [
        [*tokenizer(each, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for each in TEXTS
    ]
    batch = RolloutBatch(
        np.arange(count), np.zeros(count, np.int64),
        Ragged.from_rows([[1, *e] for e in ends], np.int32), np.ones(count, np.int64),
        Ragged.from_rows([np.zeros(len(e)) for e in ends], np.float32),
        np.full(count, Finish.STOP), np.zeros((count, 2), np.int64),
    )  # fmt: skip
    return worker.score(batch.ids, [batch], [Asked(0, "?", "?")])


def test_a_step_is_rewarded_at_the_token_in_which_it_ends(folder: Path) -> None:
    found = scored(folder, "reward.kind=function", "reward.function=stepwise:score",
                   "reward.function_retries=0")  # fmt: skip
    assert found.values[:2].tolist() == [3.5, 3.0]
    assert found.failures == ("", "", "another number of step rewards than steps")
    assert found.steps is not None
    # the owl eats mice | . the fox is red | . mice <eos>
    assert found.steps.row(0).tolist() == [0, 0, 0, 1, 0, 0, 0, 0, 2, 0, 0, 0.5]
    assert found.steps.row(1).tolist() == [0, 0, 0]
    again = gather_scores([found], np.array([1, 0])).steps
    assert again is not None
    assert again.row(1).tolist() == found.steps.row(0).tolist()


def test_a_server_gives_them_and_terms_are_weighted(folder: Path) -> None:
    def answer(handler: Any, body: Any) -> None:
        send(handler, {"scores": [[1, 2, 4], {"score": [5]}, [1, math.nan]]})

    with serving(answer) as server:
        found = scored(folder, "reward.terms.a.kind=remote", f"reward.terms.a.url={server.url}",
                       "reward.terms.a.weight=0.5")  # fmt: skip
    assert found.values[:2].tolist() == [3.5, 2.5]
    assert found.failures[2] == "a: remote reward: a score is not finite"
    assert found.steps is not None
    assert found.steps.row(0).tolist() == [0, 0, 0, 0.5, 0, 0, 0, 0, 1, 0, 0, 2]
    assert found.steps.row(1).tolist() == [0, 0, 2.5]


def test_without_a_separator_a_list_is_no_reward(folder: Path) -> None:
    found = scored(folder, "reward.kind=function", "reward.function=stepwise:score",
                   "reward.step_separator=''", "reward.function_retries=0")  # fmt: skip
    assert found.failures[0] == "reward function returned a list for one item"
    assert found.values[1] == 3.0
    assert found.steps is None


def test_steps_of_a_text() -> None:
    assert split_steps("a\n\nb\n\n", "\n\n") == ["a", "b"]
    assert split_steps("a", "\n\n") == ["a"]
    assert split_steps("", "\n\n") == [""]
    assert split_steps("\n\na", "\n\n") == ["", "a"]


@pytest.mark.parametrize("width", [1, 2, 3, 5, 100])
def test_placement_for_any_length_of_tokens(width: int) -> None:
    text = "first step;second;;last"
    pieces = [text[at : at + width] for at in range(0, len(text), width)]

    def decode(ids: Any) -> str:
        return "".join(pieces[i] for i in ids)

    rewards = (1.0, 2.0, 4.0, 8.0)
    placed = place_steps(range(len(pieces)), text, rewards, ";", decode)
    assert placed is not None
    assert placed.sum() == 15.0
    ends, at = [], 0
    for step in text.split(";")[:-1]:
        at += len(step)
        ends.append(max(0, math.ceil(at / width) - 1))
        at += 1
    wanted = np.zeros(len(pieces))
    for end, reward in zip([*ends, len(pieces) - 1], rewards, strict=True):
        wanted[end] += reward
    np.testing.assert_array_equal(placed, wanted)
    assert place_steps(range(len(pieces)), text, rewards[1:], ";", decode) is None


def test_token_rewards_by_hand() -> None:
    mask = torch.tensor([[True, True, True], [True, True, False]])
    zeros = torch.zeros(2, 3)
    steps = torch.tensor([[1.0, 0.0, 2.0], [4.0, 0.0, 99.0]])
    # the scores hold a penalty of 1 beside the steps, which the last token gets
    found = kl_shaped_rewards(torch.tensor([2.0, 3.0]), zeros, zeros, mask, 0.1, steps)
    assert found.tolist() == [[1.0, 0.0, 1.0], [4.0, -1.0, 0.0]]
    plain = kl_shaped_rewards(torch.tensor([2.0, 3.0]), zeros, zeros, mask, 0.1)
    assert found.sum(1).tolist() == plain.sum(1).tolist()
    with pytest.raises(ValueError, match="token_scores"):
        kl_shaped_rewards(torch.zeros(2), zeros, zeros, mask, 0.1, torch.zeros(2, 2))


def test_messages_carry_steps() -> None:
    replies = [Reply(3.0, steps=(1.0, 2.0)), Reply(math.nan, "no", "why"), Reply(1.0)]
    assert repr(unpack(pack(replies), 3)) == repr(replies)
    for bad in (
        [3.0, "", "", None],
        [math.nan, "no", "", "x"],
        [3.0, "", "", math.nan],
        [math.nan, "no", "", 1.0],
    ):
        assert unpack({"each": [bad]}, 1) is None


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["reward.terms.a.kind=remote", "reward.terms.a.url=http://h/s",
          "reward.combine=normalised"], "cannot be whitened"),
        (["reward.kind=model"], "a number per response alone"),
    ],
)  # fmt: skip
def test_what_has_no_steps_is_refused_by_the_plan(overrides: list[str], said: str) -> None:
    run = composed("+experiment=pocket_tiny", *overrides)
    run.reward.step_separator = "\n\n"
    with pytest.raises(ConfigError, match=said) as caught:
        check_tree(run)
    assert caught.value.where == "reward.step_separator"
