"""A null field is an absent one, and fields that change what a row means are not passed over."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fakes.chat import byte_tokenizer

from workers.data.recognise.kinds import kind_of_data
from workers.data.recognise.recognise import read_examples
from workers.data.rows.examples import Comparison, Demonstration, Message, PromptExample, Rejected
from workers.data.tokenize.render import Renderer
from workers.data.tokenize.token_rows import TokenRow
from workers.errors import DataLineError

Read = Callable[..., list[Any]]
Q = {"role": "user", "content": "q"}
A = {"role": "assistant", "content": "a"}
ASKED = (Message("user", "q"),)
CALL = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(kind: Any, *rows: object, **options: Any) -> list[Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read_examples(str(path), kind, **options)
        return [each.reason if isinstance(each, Rejected) else each for each in found]

    return reading


def table(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(list(rows)), path)
    return str(path)


def test_null_columns_of_tables_are_absent(tmp_path: Path) -> None:
    pair = {"prompt": "p", "chosen": "a", "rejected": "b", "completions": None, "scores": None}
    listed = dict.fromkeys(pair) | {"prompt": "p", "completions": ["a", None, "b"]}
    path = table(tmp_path, pair, listed | {"scores": [1.0, None, 2.0]})
    assert kind_of_data(path) == "comparisons"
    found = [e for e in read_examples(path, "comparisons") if isinstance(e, Comparison)]
    assert [(e.completions, e.ranks) for e in found] == [(("a", "b"), (1, 2)), (("a", "b"), (2, 1))]


def test_null_keys_of_turns_are_absent(tmp_path: Path) -> None:
    empty = dict.fromkeys(("from", "value", "role", "content", "tool_calls", "weight"))
    share = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
    rows = [[empty | turn for turn in turns] for turns in (share, [Q, A])]
    path = table(tmp_path, *({"conversations": [*row, None, empty]} for row in rows))
    assert kind_of_data(path) == "demonstrations"
    found = [e for e in read_examples(path, "demonstrations") if isinstance(e, Demonstration)]
    assert [(e.context, e.response) for e in found] == [(ASKED, "a"), (ASKED, "a")]


def test_a_prompt_beside_null_turns_is_the_prompt(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "turns": None}, {"prompt": None, "turns": [None, "q", "r"]}]
    found = list(read_examples(table(tmp_path, *rows), "prompts"))
    assert [e.context for e in found if isinstance(e, PromptExample)] == ["p", ASKED]


def test_empty_cells_and_nulls_in_cells_are_absent(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    turns = json.dumps([Q | {"name": None}, None, A | {"tool_calls": None}])
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["messages", "system", "label"], [turns, "", ""], [turns, "s", "False"]])
    first, second = read_examples(str(path), "demonstrations")
    assert isinstance(first, Demonstration)
    assert first.context == ASKED
    assert isinstance(second, Rejected)


def test_a_missing_key_of_a_mapped_column_is_null_too(read: Read) -> None:
    columns = {"question": "q", "answer": "a", "system": "s"}
    rows = [{"q": "q", "a": "a"}, {"q": "q", "a": "b", "s": None}, {"q": "q", "a": "c", "s": "x"}]
    found = read("demonstrations", *rows, columns=columns)
    assert [len(each.context) for each in found] == [1, 1, 2]
    with pytest.raises(DataLineError, match=r'field "answer" \(column "a"\) is missing or null'):
        read("demonstrations", *rows, {"q": "q"}, columns=columns)


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("demonstrations", {"messages": [Q, A | {"tool_calls": CALL}]}, "holds tool calls"),
        (
            "demonstrations",
            {"messages": [Q, {"role": "assistant", "content": None, "tool_calls": CALL}, A]},
            "holds tool calls",
        ),
        (
            "demonstrations",
            {"messages": [Q, {"role": "tool", "content": "t"}, A]},
            "holds tool calls",
        ),
        (
            "demonstrations",
            {"conversations": [{"from": "human", "value": "q"}, {"from": "observation"}]},
            "holds tool calls",
        ),
        ("prompts", {"messages": [Q, A | {"function_call": CALL[0]}, Q]}, "holds tool calls"),
        ("demonstrations", {"messages": [Q, A], "tools": CALL}, "holds tool calls"),
        ("demonstrations", {"messages": [Q, A], "tools": json.dumps(CALL)}, "holds tool calls"),
        ("comparisons", {"prompt": "p", "chosen": [Q, A | {"tool_calls": CALL}]}, "bad line"),
        (
            "demonstrations",
            {"messages": [{"role": "user", "content": [{"type": "tool_result"}]}, A]},
            "holds tool calls",
        ),
        (
            "demonstrations",
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, A]},
            "a turn holds more than text",
        ),
        ("prompts", {"messages": [Q | {"images": ["x.png"]}]}, "a turn holds more than text"),
        ("prompts", {"prompt": "p", "image": "x.png"}, "holds images, audio or video"),
        ("demonstrations", {"prompt": "p", "completion": "c", "label": False}, 'its "label" is'),
        ("demonstrations", {"prompt": "p", "completion": "c", "label": 0}, 'its "label" is false'),
        ("demonstrations", {"prompt": "p", "response": "c", "is_safe": False}, 'its "is_safe" is'),
        ("demonstrations", {"messages": [Q, A], "deleted": True}, 'its "deleted" is true'),
        ("demonstrations", {"messages": [Q, A], "train": False}, 'its "train" is false'),
        ("demonstrations", {"messages": [Q, A], "weight": 0.0}, 'its "weight" is 0'),
        (
            "comparisons",
            {"prompt": "p", "spam": True},
            'its "spam"',
        ),
        ("demonstrations", {"prompt": "x", "messages": [Q, A]}, "its prompt differs from its"),
        (
            "comparisons",
            {"prompt": "x", "chosen": [Q, A], "rejected": [Q, A | {"content": "b"}]},
            "its prompt differs from its dialogue",
        ),
        (
            "comparisons",
            {"prompt": "x", "chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q"},
            "its prompt differs from its dialogue",
        ),
        ("prompts", {"prompt": [Q], "messages": [Q | {"content": "x"}]}, "its prompt differs"),
    ],
)
def test_what_changes_the_meaning_drops_the_row(
    read: Read, kind: str, row: object, reason: str
) -> None:
    (found,) = read(kind, row, on_bad_line="drop")
    assert isinstance(found, str)
    assert found.startswith(reason)


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [Q, A], "tools": []},
        {"messages": [Q, A], "tools": "[]", "images": [], "deleted": False, "label": True},
        {"messages": [Q, A], "tools": "hammer", "weight": 3, "label": "class 0", "train": "x"},
        {"messages": [Q | {"name": "kim"}, A | {"tool_calls": [], "weight": 1}]},
        {"question": "q", "messages": [Q, A]},
        {"prompt": "1. q 2. r", "messages": [Q, A, Q | {"content": "r"}, A]},
        {"messages": [Q], "answer": "a"},
    ],
)
def test_what_does_not_change_the_meaning_is_no_reason(read: Read, row: object) -> None:
    (found,) = read("demonstrations", row)
    assert isinstance(found, Demonstration)
    assert found.response == "a"


def test_marks_count_also_where_other_columns_are_mapped(read: Read) -> None:
    row = {"p": "p", "c": "c", "label": False}
    columns = {"prompt": "p", "completion": "c"}
    assert read("demonstrations", row, columns=columns) == ['its "label" is false']
    ranking = {"p": "p", "c": ["a", "b"], "s": [1, 2], "label": False}
    columns = {"prompt": "p", "completions": "c", "scores": "s"}
    assert isinstance(read("comparisons", ranking, columns=columns)[0], Comparison)


def told(turn: Message) -> dict[str, str]:
    return {"role": turn.role, "content": turn.content}


def test_earlier_turns_come_first(read: Read) -> None:
    earlier = (Message("user", "q0"), Message("assistant", "a0"))
    rows = [
        {"instruction": "q", "output": "a", "history": [["q0", "a0"]]},
        {
            "prompt": "q",
            "completion": "a",
            "history": list(map(told, earlier)),
        },
        {"messages": [Q, A], "history": [["q0", "a0"]]},
    ]
    assert [e.context for e in read("demonstrations", *rows)] == [(*earlier, *ASKED)] * 3
    with pytest.raises(DataLineError, match='"history" must be a list'):
        read("demonstrations", {"prompt": "q", "completion": "a", "history": "q0"})


def test_the_input_of_a_bare_prompt_is_part_of_it(read: Read) -> None:
    (found,) = read("demonstrations", {"prompt": "p", "input": "x", "completion": "a"})
    assert found.context == "p\n\nx"
    with pytest.raises(DataLineError, match="input, context"):
        read("prompts", {"question": "q", "input": "x", "context": "y"})


def trained(rows: list[Any], train_on: Any) -> list[str]:
    tokenizer = byte_tokenizer()
    render = Renderer(
        tokenizer, train_on=train_on, max_prompt_tokens=999, max_completion_tokens=999
    )
    texts: list[str] = []
    for row in render.demonstrations(rows):
        if isinstance(row, TokenRow):
            texts.append(str(tokenizer.decode(row.tokens[row.targets].tolist())))
        else:
            texts.append(row.reason)
    return texts


def test_a_turn_of_weight_0_is_not_trained(read: Read) -> None:
    bad, good = A | {"content": "bad", "weight": 0}, A | {"content": "good", "weight": 1}
    rows = [{"messages": [Q, first, Q, last]} for first, last in ((bad, good), (good, bad))]
    rows += [{"messages": [Q, bad]}, {"messages": [Q, A | {"train": False}, Q, A]}]
    examples = read("demonstrations", *rows)
    none = "marked as not to be trained"
    assert trained(examples, "all") == ["good<|im_end|>", "good<|im_end|>", none, "a<|im_end|>"]
    assert trained(examples, "last") == ["good<|im_end|>", none, none, "a<|im_end|>"]
    with pytest.raises(DataLineError, match=r'"messages\[1\].weight" is 0.5'):
        read("demonstrations", {"messages": [Q, A | {"weight": 0.5}]})
