"""The teaching loop: what it reads from its models, and that the whole of it learns."""

from __future__ import annotations

import pytest
import torch

from examples import ppo_in_one_file as loop


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(3)
    return loop.language_model().eval()


@pytest.fixture(scope="module")
def rollout(model: torch.nn.Module) -> loop.Rollout:
    torch.manual_seed(4)
    return loop.sample(model, loop.questions("ppo", 0, 16))


def test_a_response_counts_up_to_its_end_token_and_no_further(rollout: loop.Rollout) -> None:
    end = loop.TOKENIZER.eos_token_id
    ended = 0
    for tokens, counts in zip(rollout.response_BR.tolist(), rollout.mask_BR.tolist(), strict=True):
        length = tokens.index(end) + 1 if end in tokens else len(tokens)
        ended += end in tokens[:-1]
        assert counts == [True] * length + [False] * (len(tokens) - length)
    assert ended  # by an untrained model: one of some hundred words ends it


def test_numbers_of_a_padded_batch_are_those_of_each_sequence_alone(
    model: torch.nn.Module, rollout: loop.Rollout
) -> None:
    critic = loop.ScalarModel(model.model).eval()
    with torch.no_grad():
        logprobs, values = rollout.logprobs(model), rollout.values(critic)
        scores = rollout.scores(critic)
        for row in range(len(scores)):
            tokens = rollout.tokens_BT[row][rollout.mask_BT[row]].unsqueeze(0)
            count = int(rollout.mask_BR[row].sum())
            said = torch.log_softmax(model(tokens).logits[0], -1)
            of_each = critic(tokens, torch.ones_like(tokens))[0]
            expected = [said[t - 1, tokens[0, t]] for t in range(-count, 0)]
            torch.testing.assert_close(logprobs[row, :count], torch.stack(expected))
            torch.testing.assert_close(values[row, :count], of_each[-count - 1 : -1])
            torch.testing.assert_close(scores[row], of_each[-1])


def test_supervised_steps_learn_the_text_and_not_its_context() -> None:
    torch.manual_seed(5)
    model = loop.language_model()
    loop.supervised(model, lambda _: ("the otter", "eats fish"), steps=12)
    tokens, mask = loop.encode([f"the otter eats fish {loop.EOS}"])
    with torch.no_grad():
        context, *text = loop.logprobs(model, tokens, mask)[0].exp().tolist()[1:]
    assert min(text) > 0.5 > context


def test_the_first_iteration_is_at_the_reference(capsys: pytest.CaptureFixture[str]) -> None:
    scores = loop.main(pretrain_steps=1, sft_steps=1, ranked_prompts=32, iterations=1)
    assert list(scores) == ["base", "SFT", "PPO"]
    assert "KL  0.00 nats" in capsys.readouterr().out


@pytest.mark.slow
def test_each_stage_answers_better_than_the_one_before() -> None:
    scores = loop.main()
    assert scores["base"] + 1 < scores["SFT"]
    assert scores["SFT"] + 0.5 < scores["PPO"]
