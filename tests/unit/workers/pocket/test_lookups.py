"""The pocket world of look-ups: what its texts leave out, and what the tool tells."""

from __future__ import annotations

import pytest
from composing import composed

from orchestrator.planning.plan import make_plan
from orchestrator.planning.runs.expand import environment_of
from orchestrator.session.sources import make_source
from workers.environments.tools import needed_columns, tools_factory
from workers.errors import ConfigError
from workers.pocket.labeler import judge
from workers.pocket.lookups import CALL, Groups, record
from workers.pocket.source import PocketSource
from workers.pocket.words import ANIMALS, VOCABULARY
from workers.pocket.world import World

WORLD = World(0, lookup=True)
GROUPS = Groups.of(0)
SOURCE = PocketSource(0, 0.5, 0.25, ["answer", "world"], lookup=True)


def test_each_animal_is_in_one_group() -> None:
    names = (*GROUPS.stated, *GROUPS.asked, *GROUPS.heldout)
    assert sorted(names) == sorted(ANIMALS)
    assert (len(GROUPS.stated), len(GROUPS.asked), len(GROUPS.heldout)) == (8, 4, 4)


def test_no_text_says_anything_of_the_animals_that_are_asked_for() -> None:
    hidden = {*GROUPS.asked, *GROUPS.heldout}
    for index in range(2000):
        text = f" {WORLD.web_document('train', index)} "
        for name in {*text.split()} & hidden:  # in word lists, and in wrong answers
            assert f" {name} is " not in text
            assert f" {name} eats " not in text
            assert f" {name} lives " not in text
    asked = {WORLD.question("train", n, "ppo").animal for n in range(200)}
    heldout = {WORLD.question("heldout", n, "heldout").animal for n in range(200)}
    assert (asked, heldout) == ({*GROUPS.asked}, {*GROUPS.heldout})


def test_a_demonstration_looks_up_what_is_made_up_or_answers_at_once() -> None:
    seen: dict[str, set[str]] = {}
    for index in range(800):
        found = WORLD.shown("train", index)
        question, true = found.question, WORLD.facts[found.question.animal]
        assert judge(question, found.reply).correct
        if not found.call:
            told = {true.home, true.food, true.color, question.animal}
            assert question.animal not in GROUPS.stated or question.answer[0] in told
            continue
        assert question.answer[0] in found.record
        word = found.call.removeprefix(f"{CALL} ")
        assert word in question.text
        if question.category == "home":
            seen.setdefault(word, set()).add(question.answer[0])
    assert min(map(len, seen.values())) > 2


def test_every_turn_of_the_policy_is_a_target_and_no_observation_is() -> None:
    batch = SOURCE.demonstrations("train", 0, 60)
    eos = SOURCE.tokenizer.eos_token_id
    talks = 0
    for row, mask in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
        own = SOURCE.tokenizer.decode(row[mask].tolist())
        other = SOURCE.tokenizer.decode(row[~mask].tolist())
        assert row[-1] == eos
        assert other.startswith("<bos> user :")
        if own.startswith(CALL):
            talks += 1
            assert own.count("<eos>") == 2
            assert other.count("user :") == other.count("reply :") == 2
            # A look-up in training has the ids of one in sampling.
            assert "<eos> user :" in SOURCE.tokenizer.decode(row.tolist())
    assert 20 < talks < 40


@pytest.mark.parametrize("name", ANIMALS)
def test_the_tool_tells_the_truth(name: str) -> None:
    tool = tools_factory(["lookup"], "words")({"world": "0"}, 0)
    fact = WORLD.facts[name]
    said = tool.step(f"{CALL} {name}").observation
    assert said == record(WORLD.facts, name)
    assert {fact.home, fact.food, fact.color} < set(said.split())
    assert name in tool.step(f"{CALL} {fact.home}").observation
    assert set(said.split()) <= {*VOCABULARY}


def test_what_is_unknown_and_what_is_no_call() -> None:
    tool = tools_factory(["lookup"], "words")({"world": "0"}, 0)
    assert tool.step(f"{CALL} one").observation == "i do not know ."
    assert tool.step(CALL).observation == "i do not know ."
    assert tool.step("barn .").done


def test_the_experiment_compares_a_policy_that_may_ask_with_one_that_may_not() -> None:
    config = composed("+experiment=pocket_tools")
    stages = [stage.name for stage in make_plan(config).stages]
    assert stages == ["pretrain", "sft", "ppo", "silent", "evaluate"]
    assert environment_of(config, "ppo").on
    assert not environment_of(config, "silent").on
    (prompt,) = make_source(config, {}).prompts("heldout", 0, 1)
    assert set(prompt.asked.columns()) == {"answer", "world"}


def test_a_column_that_a_tool_reads_must_be_kept() -> None:
    assert needed_columns(["calculator", "lookup", "my_tools:search"]) == ("world",)
    with pytest.raises(ConfigError, match="reads the column 'world'") as caught:
        make_plan(composed("+experiment=pocket_tools", "data.keep_columns=[answer]"))
    assert caught.value.where == "environment.tools"


def test_a_world_is_of_sums_or_of_look_ups() -> None:
    with pytest.raises(ConfigError, match="no animals to look up"):
        composed("+experiment=pocket_tools", "data.pocket.arithmetic=true")
