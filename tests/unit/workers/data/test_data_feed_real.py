"""The real files through the file source, every figure counted again from the raw rows."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from data_files import account, byte_tokenizer
from real_data import real_data

from workers.data.files import FileSource
from workers.data.tokenize.data_sets import DataSet, Feeding, Rendering, SetKind


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


def opened(
    checkpoint: Path,
    *sets: DataSet,
    prompt: int = 1000,
    completion: int = 1000,
    train_on: Any = "last",
) -> FileSource:
    rendering = Rendering(
        str(checkpoint), prompt, completion, chat_template="default", train_on=train_on
    )
    return FileSource(sets, rendering, Feeding())


def jsonl(name: str) -> list[dict[str, Any]]:
    path = real_data(name)
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def size(text: str) -> int:
    return len(text.encode())


MODELS = ("6b_finetuning", "6b_verification", "175b_finetuning", "175b_verification")


def test_rankings_of_four_with_ties(checkpoint: Path) -> None:
    rows = jsonl("gsm8k_model_solutions_k4.jsonl")
    columns = {
        "prompt": "question",
        "completions": [f"{model}.solution" for model in MODELS],
        "scores": [f"{model}.is_correct" for model in MODELS],
    }
    path = str(real_data("gsm8k_model_solutions_k4.jsonl"))
    source = opened(checkpoint, DataSet("gsm", SetKind.comparisons, path, columns=columns))
    counted = account(source, "gsm")

    right = [[row[model]["is_correct"] for model in MODELS] for row in rows]
    same = [len({row[model]["solution"] for model in MODELS}) for row in rows]
    ties = sum(len(set(each)) == 1 for each in right)
    assert counted.read == len(rows) == 1319
    assert counted.dropped["every completion ties"] == ties
    assert min(same) >= 1
    usable = [
        each
        for each, row in zip(right, rows, strict=True)
        if len(set(each)) == 2
        and size(row["question"]) <= 1000
        and not {row[m]["solution"] for m in MODELS if row[m]["is_correct"]}
        & {row[m]["solution"] for m in MODELS if not row[m]["is_correct"]}
    ]
    # two right and two wrong: 2 x 2 pairs kept, one tied among the right, one among the wrong
    kept = sum(sum(each) * (4 - sum(each)) for each in usable)
    assert counted.train_pairs + counted.heldout_pairs == kept
    assert counted.tied_pairs == 6 * len(usable) - kept
    rankings = [*(source.rankings("train") or ()), *(source.rankings("heldout") or ())]
    assert sum(ranking.pairs for ranking in rankings) == kept
    assert len(rankings) == len(usable)
    assert {ranking.source for ranking in rankings} == {"gsm"}
    questions = {row["question"]: row for row in rows}
    for ranking in rankings[::100]:
        texts = [source.detokenize(row) for row in ranking.sequences.rows()]
        question = next(q for q in questions if texts[0].startswith(q))
        best = [questions[question][model]["is_correct"] for model in MODELS]
        assert [rank == 1 for rank in ranking.ranks.tolist()] == best
        for text, model in zip(texts, MODELS, strict=True):
            assert text.removeprefix(question) == questions[question][model]["solution"]


def test_comparisons_as_whole_dialogues(checkpoint: Path) -> None:
    rows = jsonl("hh_rlhf_harmless_test.jsonl.gz")
    path = str(real_data("hh_rlhf_harmless_test.jsonl.gz"))
    source = opened(checkpoint, DataSet("hh", SetKind.comparisons, path), prompt=2000)
    counted = account(source, "hh")
    assert counted.read == len(rows) == 2312
    assert counted.train + counted.heldout + sum(counted.dropped.values()) == 2312
    assert counted.train + counted.heldout > 2000
    assert counted.train_pairs == counted.train
    for ranking in (source.rankings("heldout") or [])[::20]:
        # the part that both dialogues share ends where the assistant begins to speak
        better, worse = (ranking.sequences.row(i).tolist() for i in np.argsort(ranking.ranks))
        shared = 0
        while better[shared] == worse[shared]:
            shared += 1
        assert "Assistant:\n" in source.detokenize(better[:shared])
        reply = source.detokenize(better).rsplit("Assistant:\n", 1)[1]
        assert any(row["chosen"].rstrip().endswith(reply) for row in rows)


def test_questions_and_answers(checkpoint: Path) -> None:
    rows = jsonl("gsm8k_test.jsonl")
    path = str(real_data("gsm8k_test.jsonl"))
    source = opened(checkpoint, DataSet("gsm", SetKind.demonstrations, path), prompt=400)
    counted = account(source, "gsm")
    assert counted.read == 1319
    # the byte tokenizer has one token a byte; the template writes "User:\n", "\n\nAssistant:\n"
    around = len("User:\n\n\nAssistant:\n")
    long = sum(size(row["question"]) + around > 400 for row in rows)
    assert counted.dropped == {"prompt over 400 tokens": long}
    answers = {row["question"]: row["answer"] for row in rows}
    batch = source.demonstrations("train", 0, 50)
    for tokens, targets in zip(batch.tokens.rows(), batch.targets.rows(), strict=True):
        prompt, answer = (source.detokenize(tokens[targets == side]) for side in (False, True))
        question = prompt.removeprefix("User:\n").removesuffix("\n\nAssistant:\n")
        assert answers[question] == answer
        assert tokens[-1] == source.tokenizer.eos_token_id
    assert counted.cut == sum(
        size(row["answer"]) >= 1000 for row in rows if size(row["question"]) + around <= 400
    )


def test_instructions_with_instances_and_first_turns(checkpoint: Path) -> None:
    seeds, bench = (
        str(real_data(name))
        for name in ("self_instruct_seed_tasks.jsonl", "mt_bench_questions.jsonl")
    )
    source = opened(
        checkpoint,
        DataSet("seeds", SetKind.demonstrations, seeds),
        DataSet("ask", SetKind.prompts, seeds),
        DataSet("bench", SetKind.evaluation_prompts, bench),
        prompt=4000,
    )
    instances = [i for row in jsonl("self_instruct_seed_tasks.jsonl") for i in row["instances"]]
    assert account(source, "seeds").read == len(instances)
    assert account(source, "bench").heldout == 80
    first = {row["turns"][0].strip() for row in jsonl("mt_bench_questions.jsonl")}
    held = source.prompts("heldout", 0, 100)
    assert {p.text.removeprefix("User:\n").split("\n\nAssistant:")[0] for p in held} == first
    assert len(source.prompts("ppo", 0, 200)) == 200


def test_plain_text(checkpoint: Path) -> None:
    path = real_data("tinyshakespeare.txt")
    source = opened(checkpoint, DataSet("play", SetKind.pretraining, str(path)), prompt=24)
    counted = account(source, "play")
    assert counted.train + counted.heldout == counted.read
    # every byte of the file's text once, one end token a document
    assert abs(counted.tokens - path.stat().st_size) < 0.05 * path.stat().st_size
    windows = source.pretraining("train", 0, 20).tokens.lengths
    assert windows.max() <= 1024


def test_every_turn_of_a_dialogue_can_be_trained(checkpoint: Path, tmp_path: Path) -> None:
    turns = ["Hi.", "Hello!", "Why?", "Because."]
    messages = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(turns)
    ]
    other = [{"role": "user", "content": "Ho."}, *messages[1:]]  # one of the two is held out
    path = tmp_path / "chat.jsonl"
    path.write_text("".join(json.dumps({"messages": turns}) + "\n" for turns in (messages, other)))
    chat = DataSet("chat", SetKind.demonstrations, str(path))
    for train_on, wanted in (("last", ["Because."]), ("all", ["Hello!", "Because."])):
        source = opened(checkpoint, chat, train_on=train_on)
        batch = source.demonstrations("train", 0, 1)
        end = source.tokenizer.eos_token_id
        trained = batch.tokens.row(0)[batch.targets.row(0)]
        parts = np.split(trained, np.flatnonzero(trained == end)[:-1] + 1)
        assert [source.detokenize(part) for part in parts] == wanted
        assert all(part[-1] == end for part in parts)
