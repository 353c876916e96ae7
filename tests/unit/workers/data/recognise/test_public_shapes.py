"""Rows of the shapes of public data sets: read as what they are, or refused with what to set.

The rows are written here; only the names of their fields are those of the sets.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.command import main, parse_columns
from workers.data.recognise.kinds import kind_of_data
from workers.data.recognise.recognise import read_examples
from workers.data.rows.examples import Comparison, Demonstration, Message
from workers.errors import DataLineError

Row = dict[str, Any]


def told(*texts: str) -> list[Row]:
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def said(*texts: str) -> list[Row]:
    names = ("human", "gpt")
    return [{"from": names[i % 2], "value": text} for i, text in enumerate(texts)]


HH = "\n\nHuman: Name a bird.\n\nAssistant:"
RECOGNISED: list[tuple[str, str, Row]] = [
    ("hh-rlhf", "comparisons", {"chosen": HH + " Wren.", "rejected": HH + " Bus."}),
    (
        "hh-rlhf, stripped",
        "comparisons",
        {"chosen": HH.strip() + " Wren.", "rejected": HH.strip() + " Bus."},
    ),
    (
        "ultrafeedback_binarized",
        "comparisons",
        {
            "prompt": "Name a bird.",
            "prompt_id": "a1",
            "chosen": told("Name a bird.", "Wren."),
            "rejected": told("Name a bird.", "Bus."),
            "messages": told("Name a bird.", "Wren."),
            "score_chosen": 8.0,
            "score_rejected": 2.0,
        },
    ),
    (
        "orca_dpo_pairs",
        "comparisons",
        {"system": "s", "question": "Name a bird.", "chosen": "Wren.", "rejected": "Bus."},
    ),
    (
        "openai summarize comparisons",
        "comparisons",
        {"prompt": "Name a bird.", "chosen": "Wren.", "rejected": "Bus."},
    ),
    (
        "messages and a pair",
        "comparisons",
        {"messages": told("Name a bird."), "chosen": "Wren.", "rejected": "Bus."},
    ),
    (
        "sharegpt pair",
        "comparisons",
        {
            "conversations": said("Name a bird."),
            "chosen": {"from": "gpt", "value": "Wren."},
            "rejected": {"from": "gpt", "value": "Bus."},
        },
    ),
    (
        "a prompt as text and dialogues as messages",
        "comparisons",
        {
            "prompt": "\n\nHuman: Name a bird.\n\nAssistant:",
            "chosen": told("Name a bird.", "Wren."),
            "rejected": told("Name a bird.", "Bus."),
        },
    ),
    (
        "dolly",
        "demonstrations",
        {"instruction": "Name a bird.", "context": "", "response": "Wren.", "category": "qa"},
    ),
    (
        "alpaca",
        "demonstrations",
        {"instruction": "Name a bird.", "input": "", "output": "Wren.", "text": "all of it"},
    ),
    ("sharegpt", "demonstrations", {"id": "x", "conversations": said("Name a bird.", "Wren.")}),
    (
        "openhermes",
        "demonstrations",
        {
            "conversations": [turn | {"weight": None} for turn in said("Name a bird.", "Wren.")],
            "source": "x",
            "system_prompt": None,
            "idx": None,
        },
    ),
    (
        "no_robots",
        "demonstrations",
        {
            "prompt": "Name a bird.",
            "prompt_id": "1",
            "messages": told("Name a bird.", "Wren."),
            "category": "qa",
        },
    ),
    (
        "lmsys-chat-1m",
        "demonstrations",
        {"conversation_id": "1", "conversation": told("Name a bird.", "Wren."), "turn": 1},
    ),
    ("gsm8k", "demonstrations", {"question": "Name a bird.", "answer": "Wren."}),
    ("tulu", "demonstrations", {"id": "1", "messages": told("Name a bird.", "Wren.")}),
    (
        "capybara",
        "demonstrations",
        {"source": "x", "conversation": [{"input": "Name a bird.", "output": "Wren."}]},
    ),
    (
        "magpie",
        "demonstrations",
        {
            "instruction": "Name a bird.",
            "response": "Wren.",
            "conversations": said("Name a bird.", "Wren."),
            "instruct_reward": -1.5,
        },
    ),
    ("kto", "demonstrations", {"prompt": "Name a bird.", "completion": "Wren.", "label": True}),
    ("mt-bench", "prompts", {"question_id": 1, "category": "x", "turns": ["Name a bird.", "And?"]}),
    ("chats of prompts alone", "prompts", {"messages": told("Name a bird.")}),
    ("web text", "pretraining", {"text": "Birds sing.", "url": "x", "label": 1}),
]

# what `columns` the refusal must show, so that the first of two completions, "Wren.", is the best
REFUSED: list[tuple[str, str, Row]] = [
    (
        "ultrafeedback",
        "instruction=instruction completions=completions.*.response "
        "scores=completions.*.overall_score",
        {
            "instruction": "Name a bird.",
            "models": ["m", "n"],
            "completions": [
                {"model": "m", "response": "Wren.", "overall_score": 8.5, "annotations": {}},
                {"model": "n", "response": "Bus.", "overall_score": 1.0, "annotations": {}},
            ],
        },
    ),
    (
        "helpsteer2 preferences",
        "prompt=prompt completions=response_1,response_2 better=preference_strength",
        {
            "prompt": "Name a bird.",
            "response_1": "Wren.",
            "response_2": "Bus.",
            "preference_strength": -2,
            "split": "train",
        },
    ),
    (
        "shp",
        "question=history completions=human_ref_A,human_ref_B better.column=labels "
        "better.first=1 better.second=0",
        {
            "history": "Name a bird.",
            "human_ref_A": "Wren.",
            "human_ref_B": "Bus.",
            "labels": 1,
            "score_A": 9,
            "score_B": 2,
        },
    ),
    (
        "chatbot arena",
        "completions=conversation_a,conversation_b better=winner",
        {
            "question_id": "1",
            "model_a": "x",
            "model_b": "y",
            "winner": "model_a",
            "conversation_a": told("Name a bird.", "Wren."),
            "conversation_b": told("Name a bird.", "Bus."),
            "turn": 1,
        },
    ),
    (
        "lmsys arena 55k",
        "prompt=prompt completions=response_a,response_b scores=winner_model_a,winner_model_b",
        {
            "prompt": "Name a bird.",
            "response_a": "Wren.",
            "response_b": "Bus.",
            "winner_model_a": 1,
            "winner_model_b": 0,
            "winner_tie": 0,
        },
    ),
    (
        "nectar",
        "prompt=prompt completions=answers.*.answer ranks=answers.*.rank",
        {
            "prompt": "Name a bird.",
            "answers": [
                {"answer": "Wren.", "model": "m", "rank": 1.0},
                {"answer": "Bus.", "model": "n", "rank": 2.0},
            ],
            "turns": 1,
            "num_responses": 2,
        },
    ),
    (
        "webgpt",
        "question=question.full_text completions=answer_0,answer_1 scores=score_0,score_1",
        {
            "question": {"full_text": "Name a bird.", "id": "1"},
            "answer_0": "Wren.",
            "answer_1": "Bus.",
            "score_0": 0.5,
            "score_1": -0.5,
            "tokens_0": {"x": [1]},
        },
    ),
    (
        "stack exchange paired",
        "question=question chosen=response_j rejected=response_k",
        {"qid": 1, "question": "Name a bird.", "response_j": "Wren.", "response_k": "Bus."},
    ),
    (
        "stack exchange preferences",
        "question=question completions=answers.*.text scores=answers.*.pm_score",
        {
            "qid": 1,
            "question": "Name a bird.",
            "answers": [{"text": "Wren.", "pm_score": 4}, {"text": "Bus.", "pm_score": 0}],
        },
    ),
    (
        "argilla binarized",
        "instruction=instruction chosen=chosen_response rejected=rejected_response",
        {
            "instruction": "Name a bird.",
            "chosen_response": "Wren.",
            "rejected_response": "Bus.",
            "chosen_avg_rating": 5.0,
        },
    ),
    (
        "distilabel orca",
        "question=input chosen=chosen rejected=rejected system=system",
        {"system": "", "input": "Name a bird.", "chosen": "Wren.", "rejected": "Bus."},
    ),
]
AB: Row = {"response_a": "Wren.", "response_b": "Bus."}
ASK: Row = {"prompt": "Name a bird."}
REFUSED += [
    (
        "replies by model",
        "question=question completions=answers.m-3.5,answers.n scores=rating.m-3.5,rating.n",
        {
            "question": "Name a bird.",
            "answers": {"m-3.5": "Wren.", "n": "Bus."},
            "rating": {"m-3.5": 5, "n": 2},
        },
    ),
    (
        "a winner by model",
        "question=question completions=responses.m,responses.n better=winner",
        {"question": "Name a bird.", "responses": {"m": "Wren.", "n": "Bus."}, "winner": "m"},
    ),
    (
        "a loser",
        "prompt=prompt completions=response_a,response_b better.column=loser "
        "better.first=response_b better.second=response_a",
        {**ASK, **AB, "loser": "response_b"},
    ),
    (
        "the less preferred one",
        "prompt=prompt completions=a,b better.column=less_preferred better.first=b better.second=a",
        {**ASK, "a": "Wren.", "b": "Bus.", "less_preferred": "B"},
    ),
    (
        "a truth value",
        "prompt=prompt completions=response_a,response_b better.column=b_is_better "
        "better.first=false better.second=true",
        {**ASK, **AB, "b_is_better": False},
    ),
    (
        "opposites",
        "prompt=prompt chosen=win rejected=lose",
        {**ASK, "lose": "Bus.", "win": "Wren."},
    ),
    (
        "winning and losing by a letter",
        "question=query chosen=response_w rejected=response_l system=system",
        {"query": "Name a bird.", "response_l": "Bus.", "response_w": "Wren.", "system": "s"},
    ),
    (
        "columns named in chosen and rejected",
        "prompt=prompt completions=response_a,response_b better=chosen",
        {**ASK, **AB, "chosen": "response_a", "rejected": "response_b"},
    ),
    (
        "other ids that differ by a letter",
        "question=history completions=human_ref_A,human_ref_B better.column=labels "
        "better.first=1 better.second=0",
        {
            "history": "Name a bird.",
            "c_root_id_A": "x1",
            "c_root_id_B": "x2",
            "human_ref_A": "Wren.",
            "human_ref_B": "Bus.",
            "labels": 1,
        },
    ),
    (
        "wrapped rows",
        "prompt=row.prompt completions=row.response_a,row.response_b better=row.winner",
        {"row_idx": 3, "row": {**ASK, **AB, "winner": "a"}},
    ),
    (
        "a pair inside a prompt's row",
        "prompt=prompt chosen=pair.chosen rejected=pair.rejected",
        {**ASK, "pair": {"chosen": "Wren.", "rejected": "Bus."}},
    ),
    (
        "ratings beside completions",
        "prompt=prompt completions=completions scores=rating",
        {**ASK, "completions": ["Wren.", "Bus."], "rating": [5, 1]},
    ),
    (
        "ranks by a letter",
        "prompt=prompt completions=response_a,response_b ranks=rank_a,rank_b",
        {**ASK, **AB, "rank_a": 1, "rank_b": 2},
    ),
    (
        "scores of a reranker",
        "prompt=prompt completions=response_a,response_b scores=rank_score_a,rank_score_b",
        {**ASK, **AB, "rank_score_a": 2, "rank_score_b": 1},
    ),
    (
        "right and wrong",
        "prompt=prompt chosen=correct_answer rejected=incorrect_answer",
        {**ASK, "incorrect_answer": "Bus.", "correct_answer": "Wren."},
    ),
    (
        "lists of good and bad ones",
        "prompt=prompt chosen=pos.0 rejected=neg.0",
        {**ASK, "pos": ["Wren."], "neg": ["Bus.", "Tram."]},
    ),
    (
        "replies with their scores in lists",
        "prompt=prompt completions=responses.*.0 scores=responses.*.1",
        {**ASK, "responses": [["Wren.", 2], ["Bus.", 1]]},
    ),
    (
        "a trajectory before a pair",
        "messages=trajectory chosen=chosen rejected=rejected",
        {"trajectory": said("Name a bird."), "chosen": "Wren.", "rejected": "Bus."},
    ),
]
# the same, where the label of one row alone is not enough: the rows are two
REFUSED_PAIRS: list[tuple[str, str, Row, Row]] = [
    (
        "pku-saferlhf",
        "prompt=prompt completions=response_0,response_1 better=better_response_id",
        {
            "prompt": "Name a bird.",
            "response_0": "Wren.",
            "response_1": "Bus.",
            "is_response_0_safe": True,
            "better_response_id": 0,
            "safer_response_id": 1,
        },
        {"better_response_id": 1},
    ),
    (
        "summarize_from_feedback",
        "question=info.post completions=summaries.*.text better=choice annotator=worker",
        {
            "info": {"post": "Name a bird.", "id": "1"},
            "summaries": [{"text": "Wren.", "policy": "p"}, {"text": "Bus.", "policy": "q"}],
            "choice": 0,
            "worker": "w",
        },
        {"choice": 1},
    ),
    (
        "alpaca farm",
        "instruction=instruction completions=output_1,output_2 better=preference input=input",
        {
            "instruction": "Name a bird.",
            "input": "",
            "output_1": "Wren.",
            "output_2": "Bus.",
            "preference": 1,
        },
        {"preference": 2},
    ),
]


def write(folder: Path, *rows: Row) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.parametrize(("name", "kind", "row"), RECOGNISED, ids=[c[0] for c in RECOGNISED])
def test_a_row_is_read_as_what_it_is(tmp_path: Path, name: str, kind: Any, row: Row) -> None:
    path = write(tmp_path, row)
    assert kind_of_data(path) == kind, name
    (example,) = read_examples(path, kind)
    if isinstance(example, Demonstration):
        assert example.response == "Wren."
    if isinstance(example, Comparison):
        assert (example.completions, example.ranks) == (("Wren.", "Bus."), (1, 2))
        asked = example.context
        assert asked == "Name a bird." or Message("user", "Name a bird.") in asked


@pytest.mark.parametrize(
    ("name", "columns", "row", "other"),
    [*((*case, {}) for case in REFUSED), *REFUSED_PAIRS],
    ids=[c[0] for c in (*REFUSED, *REFUSED_PAIRS)],
)
def test_what_the_refusal_says_to_set_reads_the_row(
    tmp_path: Path, name: str, columns: str, row: Row, other: Row
) -> None:
    path = write(tmp_path, row, *([row | other] if other else []))
    with pytest.raises(DataLineError) as caught:
        kind_of_data(path)
    assert caught.value.where == f"{path}:1"
    found = re.search(r"set columns ([^;]*)", caught.value.fix)
    assert found, caught.value
    assert found[1].strip() == columns, name
    mapped = parse_columns(found[1].split())
    assert kind_of_data(path, mapped) == "comparisons"
    examples = list(read_examples(path, "comparisons", columns=mapped))
    ranks = []
    for example in examples:
        assert isinstance(example, Comparison)
        assert example.completions == ("Wren.", "Bus.")
        asked = example.context
        assert asked == "Name a bird." or Message("user", "Name a bird.") in asked
        ranks.append(example.ranks)
    assert ranks == ([(1, 2), (2, 1)] if other else [(1, 2)])


def test_a_row_of_one_scored_completion_may_be_either_and_is_refused(tmp_path: Path) -> None:
    row = {"prompt": "p", "response": "r", "helpfulness": 3, "verbosity": 1}
    with pytest.raises(DataLineError, match='"helpfulness" seems to say') as caught:
        kind_of_data(write(tmp_path, row))
    assert "columns prompt=prompt completion=response score=helpfulness" in caught.value.fix
    assert "--kind" in caught.value.fix


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "completions": ["a", "b"], "ranks": [0, 1]}, r'"ranks\[0\]" is 0'),
        ({"prompt": "p", "completions": ["a", "b"]}, 'neither "ranks" nor "scores"'),
        ({"prompt": "p", "chosen": "a"}, 'field "rejected" is missing'),
        ({"prompt": "p", "completions": ["a"], "ranks": [1]}, "at least two"),
        ({"prompt": "p", "completions": ["a", 3], "ranks": [1, 2]}, r'"completions\[1\]" must be'),
        ({"prompt": "p", "completion": 3}, '"completion" must be a string'),
        ({"text": "t", "role": "prompter", "parent_id": None, "message_id": "1"}, "tree"),
        ({"prompt": "p", "target": "t"}, '"target" looks like a reply'),
        ({"text": "t", "summary": "s"}, '"summary" looks like a reply'),
        ({"prompt": "p", "Completion": "t"}, '"Completion" looks like a reply'),
        ({"prompt": "p", "result": {"completion": "t"}}, '"result.completion" looks like a reply'),
        ({"prompt": "p", "A": "x", "B": "y", "C": "z", "ranking": "B>A>C"}, '"A,B,C" look like'),
        ({"prompt": "p", "completion": "c", "rating": "4"}, '"rating" seems to say how good'),
        ({"instruction": "i", "output": ["a", "b"]}, '"output" look like replies'),
    ],
)
def test_a_row_is_never_read_as_less_than_it_is(tmp_path: Path, row: Row, message: str) -> None:
    path = write(tmp_path, row)
    with pytest.raises(DataLineError, match=message) as caught:
        kind_of_data(path)
    assert caught.value.where == f"{path}:1"


def test_inspect_shows_the_complaint_about_the_first_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"p{i}", "completions": ["a", "b"], "ranks": [i, i + 1]} for i in range(101)]
    path = write(tmp_path, *rows)
    assert main(["inspect", path]) == 3
    message = capsys.readouterr().err
    assert '"ranks[0]" is 0' in message
    assert "rows.jsonl:1" in message
    assert main(["inspect", path, "--on-bad-line", "drop"]) == 0
    assert "comparisons" in capsys.readouterr().out


def test_the_richest_of_the_first_rows_counts(tmp_path: Path) -> None:
    ranking = {"prompt": "p", "chosen": "a", "rejected": "b"}
    assert kind_of_data(write(tmp_path, {"prompt": "p", "chosen": None}, ranking)) == "comparisons"
    with pytest.raises(DataLineError, match="look like replies"):
        kind_of_data(write(tmp_path, ASK, ASK | AB), on_bad_line="drop")
    with pytest.raises(DataLineError, match="looks like a reply"):
        kind_of_data(write(tmp_path, ASK, ASK | {"target": "t"}), on_bad_line="drop")
    bad = ranking | {"chosen": 3}
    path = write(tmp_path, bad, {"prompt": "p"})
    with pytest.raises(DataLineError, match=r'"chosen"|must both'):
        kind_of_data(path, on_bad_line="drop")


def test_inspect_lists_the_columns_that_nothing_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 2, "lang": "en"}] * 2
    assert main(["inspect", write(tmp_path, rows[0], rows[1] | {"margin": None})]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "columns that nothing reads (rows) lang (2), margin (1)" in shown
    pair = ["--columns", "prompt=prompt", "chosen=chosen", "rejected=rejected"]
    assert main(["inspect", write(tmp_path, rows[0] | {"worker": "w"}), *pair]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "columns that nothing reads (rows) margin (1), lang (1), worker (1)" in shown


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        ("prompt=Prompt completion=Completion", {"Prompt": "Name a bird.", "Completion": "Wren."}),
        ("question=input answer=target", {"input": "Name a bird.", "target": "Wren."}),
        ("question=user answer=assistant", {"user": "Name a bird.", "assistant": "Wren."}),
        ("question=source answer=target", {"source": "Name a bird.", "target": "Wren."}),
        ("question=query answer=target", {"source": "web", "query": "Q", "target": "Wren."}),
        ("prompt=d.prompt completion=d.response", {"d": {"prompt": "p", "response": "Wren."}}),
    ],
)
def test_a_reply_under_another_name_is_read_by_the_columns_shown(
    tmp_path: Path, columns: str, row: Row
) -> None:
    path = write(tmp_path, row)
    with pytest.raises(DataLineError) as caught:
        kind_of_data(path)
    assert f"set columns {columns};" in caught.value.fix
    mapped = parse_columns(columns.split())
    assert kind_of_data(path, mapped) == "demonstrations"
    (example,) = read_examples(path, "demonstrations", columns=mapped)
    assert isinstance(example, Demonstration)
    assert example.response == "Wren."


def test_columns_of_several_annotators_are_shown_together(tmp_path: Path) -> None:
    row = {**ASK, **AB, "ann1_choice": "A", "ann2_choice": "B"}
    with pytest.raises(DataLineError) as caught:
        kind_of_data(write(tmp_path, row))
    assert "better=ann1_choice,ann2_choice;" in caught.value.fix


def test_marks_are_read_where_they_count(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"prompt": "p", "completion": "r", "label": True, "weight": 1, "is_safe": "unknown"}
    assert main(["inspect", write(tmp_path, row)]) == 0
    assert "nothing reads (rows) is_safe (1)" in " ".join(capsys.readouterr().out.split())
    pair = {"prompt": "p", "chosen": "r", "rejected": "s", "label": True}
    assert main(["inspect", write(tmp_path, pair)]) == 0
    assert "nothing reads (rows) label (1)" in " ".join(capsys.readouterr().out.split())


def test_unread_columns_are_counted_in_all_rows_of_a_ranking(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"p{i // 3}", "completion": f"c{i}", "score": i, "lang": i} for i in range(6)
    ]
    path = write(tmp_path, *rows)
    assert main(["inspect", path, "--kind", "comparisons"]) == 0
    assert "nothing reads (rows) lang (6)" in " ".join(capsys.readouterr().out.split())
