from __future__ import annotations

import numpy as np
import pytest

from workers.data.source import DataSource
from workers.data.tokenize.fingerprint import tokenizer_fingerprint
from workers.pocket.source import PocketSource
from workers.pocket.tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def source() -> PocketSource:
    return PocketSource(0, label_noise=0.5, tie_width=0.25)


def test_it_is_a_data_source(source: PocketSource) -> None:
    typed: DataSource = source
    assert typed.rankings("train") is None


def test_documents(source: PocketSource) -> None:
    batch = source.pretraining("train", 5, 3)
    assert len(batch) == 3
    for i, row in enumerate(batch.tokens.rows()):
        assert (row[0], row[-1]) == (1, 2)
        text = source.world.web_document("train", 5 + i)
        assert source.detokenize(row) == text
        # The direct word look-up and the tokenizer must agree.
        assert row[:-1].tolist() == source.tokenizer.encode(text)
    assert batch.targets.values.all()
    assert batch.target_count == len(batch.tokens.values) - 3


def test_demonstrations_count_the_reply_alone(source: PocketSource) -> None:
    batch = source.demonstrations("heldout", 0, 20)
    for i in range(20):
        question, reply = source.world.demonstration("heldout", i)
        row, target = batch.tokens.row(i), batch.targets.row(i)
        assert source.detokenize(row[~target]) == source.world.prompt(question)
        assert source.detokenize(row[target]) == reply
        assert row[-1] == 2
        assert target[-1]
        assert np.all(np.diff(target.astype(int)) >= 0), "prompt first, then reply"


def test_a_cursor_is_the_whole_state(source: PocketSource) -> None:
    fresh = PocketSource(0, label_noise=0.5, tie_width=0.25)
    whole = source.pretraining("train", 10**9, 6).tokens
    resumed = fresh.pretraining("train", 10**9 + 4, 2).tokens
    assert np.array_equal(whole.select([4, 5]).values, resumed.values)
    assert fresh.prompts("ppo", 3, 4) == source.prompts("ppo", 0, 7)[3:]


def test_prompts_of_the_splits(source: PocketSource) -> None:
    splits = {s: source.prompts(s, 0, 50) for s in ("reward_model", "ppo", "heldout")}
    keys = [p.key for prompts in splits.values() for p in prompts]
    assert len(set(keys)) == 150
    for prompts in splits.values():
        assert [p.id for p in prompts] == list(range(50))
        for p in prompts:
            assert p.tokens[0] == 1
            assert source.detokenize(p.tokens) == p.text
            assert p.text == source.world.prompt(source.question(p))
    assert splits["reward_model"][0].text != splits["ppo"][0].text


def test_labels_and_gold_speak_of_the_same_question(source: PocketSource) -> None:
    prompts = source.prompts("heldout", 0, 30)
    right = [" ".join((*source.question(p).answer, ".")) for p in prompts]
    verdicts = source.gold(prompts, right)
    assert verdicts is not None
    assert all(v.correct for v in verdicts)
    # Four units of score apart: beyond eight standard deviations of the noise.
    ranks = source.label(prompts, [["shut up you fool .", text] for text in right])
    assert ranks == [[2, 1]] * 30


def test_cloze_candidates_are_single_tokens(source: PocketSource) -> None:
    tasks = source.cloze("heldout", 0, 50)
    assert tasks is not None
    for i, task in enumerate(tasks):
        cloze = source.world.cloze("heldout", i)
        assert task.prefix[0] == 1
        assert source.detokenize(task.prefix) == cloze.prefix
        assert source.detokenize(task.candidates[task.answer]) == cloze.answer
        assert {len(c) for c in task.candidates} == {1}


def test_fingerprints() -> None:
    tokenizer = build_tokenizer()
    same = tokenizer_fingerprint(tokenizer)
    assert same == tokenizer_fingerprint(build_tokenizer())
    assert len(same) == 64
    tokenizer.eos_token = "."
    assert tokenizer_fingerprint(tokenizer) != same
    tokenizer = build_tokenizer()
    tokenizer.add_tokens(["zebra"])
    assert tokenizer_fingerprint(tokenizer) != same
