"""The pocket world of sums: its words, texts, answers and models."""

from __future__ import annotations

from pathlib import Path

import pytest
from composing import composed

from orchestrator.planning.model_sizes import pocket_size, policy_size
from orchestrator.planning.plan import make_plan
from orchestrator.session.sources import make_source
from workers.pocket.labeler import judge
from workers.pocket.model import create_model
from workers.pocket.questions import MOST_ADDEND, sum_question, wrong_answer
from workers.pocket.seeding import keyed_random
from workers.pocket.source import PocketSource
from workers.pocket.tokenizer import build_tokenizer
from workers.pocket.words import ARITHMETIC, NUMERALS, VOCABULARY
from workers.pocket.world import World, polite_reply, terse_reply
from workers.verifiers.number_verifier import VERIFIER
from workers.verifiers.verifier import Options

WORLD = World(0, arithmetic=True)


def test_its_words_follow_those_of_the_other_world() -> None:
    assert ARITHMETIC[: len(VOCABULARY)] == VOCABULARY
    assert len(set(ARITHMETIC)) == len(ARITHMETIC)
    tokenizer = build_tokenizer(arithmetic=True)
    assert len(tokenizer) == len(ARITHMETIC)
    ids = tokenizer("what is 7 plus 12 ?", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "what is 7 plus 12 ?"
    assert len(build_tokenizer()) == len(VOCABULARY)


def test_every_text_is_made_of_its_words_and_every_statement_is_true() -> None:
    words = set(ARITHMETIC)
    for index in range(300):
        text = WORLD.web_document("train", index)
        assert set(text.split()) <= words
        for sentence in text.split(" . "):
            if sentence.count(" plus ") == 1 and " is " in sentence and "what" not in sentence:
                left, _, right = sentence.removesuffix(" .").partition(" is ")
                assert sum(int(each) for each in left.split(" plus ")) == int(right)


@pytest.mark.parametrize(("a", "b"), [(0, 0), (7, 5), (MOST_ADDEND, MOST_ADDEND)])
def test_an_answer_is_right_for_the_labeler_and_for_the_verifier(a: int, b: int) -> None:
    question = sum_question(a, b)
    check = VERIFIER.make(Options())
    for reply in (terse_reply(question.answer), polite_reply(question.answer)):
        assert judge(question, reply).correct
        assert check(reply, " ".join(question.answer))
    for index in range(40):
        wrong = wrong_answer(keyed_random(index), question)
        assert wrong[0] in NUMERALS
        assert not judge(question, terse_reply(wrong)).correct
        assert not check(terse_reply(wrong), " ".join(question.answer))
    assert not check("i do not know .", "12")


def test_prompts_carry_their_answers() -> None:
    source = PocketSource(0, 0.5, 0.25, ["answer"], arithmetic=True)
    for prompt in source.prompts("ppo", 0, 20):
        numbers = [int(w) for w in prompt.text.split() if w.isdigit()]
        assert prompt.asked.columns() == {"answer": str(sum(numbers))}
        assert source.detokenize(prompt.tokens) == prompt.text


def test_the_models_have_its_vocabulary(tmp_path: Path) -> None:
    config = composed("+experiment=pocket_arithmetic")
    shape = config.model.pocket
    made = create_model(
        tmp_path, hidden_size=shape.hidden_size, layers=shape.layers, heads=shape.heads,
        kv_heads=shape.kv_heads, intermediate_size=shape.intermediate_size,
        max_position_embeddings=shape.max_position_embeddings,
        tie_word_embeddings=shape.tie_word_embeddings, seed=0, arithmetic=True,
    )  # fmt: skip
    assert made == pocket_size(shape, arithmetic=True).parameters
    size = policy_size(config)
    assert size is not None
    assert size.vocabulary == len(ARITHMETIC)


def test_the_experiment_has_no_reward_model_and_no_critic() -> None:
    config = composed("+experiment=pocket_arithmetic")
    assert config.reward.needs.columns == ("answer",)
    assert [str(stage.name) for stage in make_plan(config).stages] == [
        "pretrain", "sft", "ppo", "evaluate",
    ]  # fmt: skip
    source = make_source(config, {})
    assert "plus" in source.prompts("heldout", 0, 1)[0].text
