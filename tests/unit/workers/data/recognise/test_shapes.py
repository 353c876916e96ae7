"""Every recognised shape, on rows written by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from workers.data.formats.line import Line
from workers.data.recognise.columns import ColumnMap, check_found
from workers.data.recognise.kinds import kind_of_data
from workers.data.recognise.recognise import read_examples
from workers.data.rows.examples import (
    Comparison,
    Context,
    Demonstration,
    Document,
    Example,
    Message,
    PromptExample,
    Rejected,
)
from workers.errors import ConfigError, DataError, DataLineError

Read = Callable[..., list[Example | Rejected]]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(kind: Any, *rows: object, **options: Any) -> list[Example | Rejected]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return list(read_examples(str(path), kind, **options))

    return reading


def user(text: str) -> Message:
    return Message("user", text)


def bot(text: str) -> Message:
    return Message("assistant", text)


def system(text: str) -> Message:
    return Message("system", text)


CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "q1"},
    {"role": "assistant", "content": "a1"},
    {"role": "user", "content": [{"type": "text", "text": "q"}, {"type": "text", "text": "2"}]},
    {"role": "assistant", "content": "a2"},
]
SHARE = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
Q = {"role": "user", "content": "q"}
HH = "\n\nHuman: q1\n\nAssistant: a1\n\nHuman: q2\n\nAssistant:"
HH_CONTEXT = (user("q1"), bot("a1"), user("q2"))


@pytest.mark.parametrize(
    ("row", "context", "response"),
    [
        ({"messages": CHAT}, (system("s"), user("q1"), bot("a1"), user("q2")), "a2"),
        ({"conversations": SHARE}, (user("q"),), "a"),
        ({"conversations": SHARE, "system": "s"}, (system("s"), user("q")), "a"),
        ({"messages": HH + " a2"}, HH_CONTEXT, "a2"),
        ({"prompt": "p ", "completion": " c"}, "p ", " c"),
        ({"prompt": "p", "response": "c"}, "p", "c"),
        ({"prompt": [Q], "completion": [{"role": "assistant", "content": "c"}]}, (user("q"),), "c"),
        ({"system": "s", "prompt": "p", "completion": "c"}, (system("s"), user("p")), "c"),
        ({"instruction": "i", "input": "x", "output": "o"}, (user("i\n\nx"),), "o"),
        ({"instruction": "i", "input": "", "output": "o"}, (user("i"),), "o"),
        ({"instruction": "i", "input": None, "output": "o"}, (user("i"),), "o"),
        ({"instruction": "i", "context": "x", "response": "o"}, (user("i\n\nx"),), "o"),
        ({"question": "q", "answer": "a"}, (user("q"),), "a"),
        ({"system_prompt": "s", "question": "q", "response": "a"}, (system("s"), user("q")), "a"),
    ],
)
def test_demonstrations(read: Read, row: object, context: Context, response: str) -> None:
    (example,) = read("demonstrations", row, name="set")
    assert isinstance(example, Demonstration)
    assert (example.context, example.response) == (context, response)
    assert example.where.endswith("rows.jsonl:1")
    assert example.source == "set"


def test_each_instance_is_a_demonstration(read: Read) -> None:
    instances = [{"input": "x", "output": "o"}, {"input": "", "output": "p"}]
    row = {"id": "t0", "instruction": "i", "instances": instances}
    found = [
        (e.context, e.response) for e in read("demonstrations", row) if type(e) is Demonstration
    ]
    assert found == [((user("i\n\nx"),), "o"), ((user("i"),), "p")]
    assert [e.context for e in read("prompts", row) if isinstance(e, PromptExample)] == [
        (user("i\n\nx"),),
        (user("i"),),
    ]


PAIR = {"chosen": HH + " good", "rejected": HH + " bad"}
A, B = ([Q, {"role": "assistant", "content": text}] for text in "ab")


@pytest.mark.parametrize(
    ("row", "context", "completions", "ranks"),
    [
        (PAIR, HH_CONTEXT, ("good", "bad"), (1, 2)),
        ({"chosen": A, "rejected": B}, (user("q"),), ("a", "b"), (1, 2)),
        ({"prompt": "q", "chosen": A, "rejected": B}, (user("q"),), ("a", "b"), (1, 2)),
        ({"prompt": "q", "chosen": A[1:], "rejected": B[1:]}, (user("q"),), ("a", "b"), (1, 2)),
        ({"prompt": [Q], "chosen": A[1:], "rejected": B[1:]}, (user("q"),), ("a", "b"), (1, 2)),
        ({"prompt": HH} | PAIR, HH_CONTEXT, ("good", "bad"), (1, 2)),
        ({"prompt": HH.strip()} | PAIR, HH_CONTEXT, ("good", "bad"), (1, 2)),
        ({"prompt": "q1"} | PAIR, HH_CONTEXT, ("good", "bad"), (1, 2)),
        ({"question": "q1"} | PAIR, HH_CONTEXT, ("good", "bad"), (1, 2)),
        ({"prompt": CHAT[1:4]} | PAIR, HH_CONTEXT, ("good", "bad"), (1, 2)),
        (
            {"prompt": HH[:-12], "chosen": "\n\nAssistant: a", "rejected": "\n\nAssistant: b"},
            HH[:-12],
            ("\n\nAssistant: a", "\n\nAssistant: b"),
            (1, 2),
        ),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "p", ("a", "b"), (1, 2)),
        ({"question": "p", "chosen": "a", "rejected": "b"}, (user("p"),), ("a", "b"), (1, 2)),
        ({"prompt": "p", "completions": ["a", "b"], "ranks": [2, 1]}, "p", ("a", "b"), (2, 1)),
        (
            {"prompt": "p", "completions": list("abcdefghi"), "ranks": [9, 8, 7, 6, 5, 4, 3, 1, 1]},
            "p",
            tuple("abcdefghi"),
            (8, 7, 6, 5, 4, 3, 2, 1, 1),
        ),
        (
            {"prompt": "p", "completions": list("abcd"), "scores": [0.5, 2, -1, 0.5]},
            "p",
            tuple("abcd"),
            (2, 1, 3, 2),
        ),
        (
            {"messages": [Q], "completions": list("abc"), "scores": [True, False, True]},
            (user("q"),),
            tuple("abc"),
            (1, 2, 1),
        ),
    ],
)
def test_comparisons(
    read: Read, row: object, context: Context, completions: object, ranks: object
) -> None:
    (example,) = read("comparisons", row)
    assert isinstance(example, Comparison)
    assert (example.context, example.completions, example.ranks) == (context, completions, ranks)


def test_who_wrote_and_who_ranked(read: Read) -> None:
    rows = [PAIR | {"user_id": 7, "annotator": "ann"}, PAIR | {"user": "u", "worker_id": 3}, PAIR]
    found = [(e.user, e.annotator) for e in read("comparisons", *rows) if type(e) is Comparison]
    assert found == [("7", "ann"), ("u", "3"), ("", "")]


@pytest.mark.parametrize(
    ("value", "typed", "name"),
    [
        (7, True, "7"),
        (7.0, True, "7"),
        (-7.0, True, "-7"),
        (2.0**53, True, "9007199254740992"),
        ("7.0", True, "7.0"),
        ("7.0", False, "7"),
        ("v7.0", False, "v7.0"),
        ("7.05", False, "7.05"),
        (None, True, ""),
    ],
)
def test_whole_numbers_name_somebody_by_their_digits(value: object, typed: bool, name: str) -> None:
    assert Line({"user": value}, "F:1", typed).name("user") == name


@pytest.mark.parametrize("value", [7.5, math.nan, math.inf, True, 2.0**54])
def test_numbers_that_name_nobody(value: float) -> None:
    with pytest.raises(DataLineError, match='"user"'):
        Line({"user": value}, "F:1").name("user")


@pytest.mark.parametrize(
    ("row", "context"),
    [
        ({"prompt": "p"}, "p"),
        ({"question": "q"}, (user("q"),)),
        ({"instruction": "i", "input": "x"}, (user("i\n\nx"),)),
        ({"question_id": 81, "turns": ["t1", "t2"]}, (user("t1"),)),
        ({"messages": CHAT}, (system("s"), user("q1"), bot("a1"), user("q2"))),
        ({"messages": HH}, HH_CONTEXT),
        ({"prompt": [Q]}, (user("q"),)),
    ],
)
def test_prompts(read: Read, row: object, context: Context) -> None:
    (example,) = read("prompts", row)
    assert isinstance(example, PromptExample)
    assert example.context == context


def test_pretraining(read: Read) -> None:
    first, second = read("pretraining", {"text": " a "}, {"text": " \n"}, name="web")
    assert first == Document(" a ", first.where, source="web")
    assert second == Rejected("empty text", second.where, "web")


TIE = {"prompt": "p", "completions": ["a", "b"], "ranks": [1, 1]}


@pytest.mark.parametrize(
    ("kind", "row", "reason"),
    [
        ("demonstrations", {"messages": CHAT[:-1]}, "last turn is not the assistant's"),
        ("demonstrations", {"messages": CHAT[2:3]}, "no user turn before the reply"),
        ("demonstrations", {"prompt": " ", "completion": "c"}, "empty prompt"),
        ("demonstrations", {"prompt": "p", "completion": "\n"}, "empty completion"),
        ("demonstrations", {"question": "", "answer": "a"}, "empty prompt"),
        (
            "demonstrations",
            {"messages": [{"role": "tool", "content": "t"}, *CHAT]},
            "holds tool calls",
        ),
        (
            "demonstrations",
            {"messages": [{"role": "narrator", "content": "t"}, *CHAT]},
            "a speaker besides system, user and assistant",
        ),
        (
            "demonstrations",
            {"messages": [{"role": "user", "content": [{"type": "image"}]}, CHAT[2]]},
            "a turn holds more than text",
        ),
        ("comparisons", TIE, "every completion ties"),
        (
            "comparisons",
            {"prompt": "p", "chosen": "a", "rejected": "a"},
            "equal completions ranked apart",
        ),
        (
            "comparisons",
            PAIR | {"chosen": HH.replace("q2", "Q2") + " good"},
            "dialogues differ before the last reply",
        ),
        ("comparisons", PAIR | {"chosen": HH}, "empty completion"),
        ("prompts", {"messages": CHAT[2:3]}, "no user turn before the reply"),
        (
            "prompts",
            {"messages": [*CHAT[:2], {"role": "assistant", "content": ""}, *CHAT[3:]]},
            "empty turn",
        ),
    ],
)
def test_rows_of_no_use_are_counted_by_reason(
    read: Read, kind: str, row: object, reason: str
) -> None:
    (rejected,) = read(kind, row, name="set")
    assert rejected == Rejected(reason, rejected.where, "set")
    assert rejected.where.endswith("rows.jsonl:1")


def test_a_repeated_id_is_counted(read: Read) -> None:
    rows = [{"id": i, "text": "t"} for i in (1, 2, 1, "2", None, None)]
    found = [getattr(e, "reason", "") for e in read("pretraining", *rows)]
    assert found == ["", "", "duplicate id", "duplicate id", "", ""]


def test_rankings_of_one_prompt_may_share_its_id(read: Read) -> None:
    ann, bob = {"id": 7, "annotator": "ann"}, {"id": 7, "annotator": "bob"}
    ab, ac = ({"prompt": "p", "chosen": "a", "rejected": other} for other in "bc")
    rows = [ann | ab, bob | ab, ann | ac, bob | ab, {"id": 8, "annotator": "ann"} | ab]
    found = [getattr(e, "reason", "") for e in read("comparisons", *rows)]
    assert found == ["", "", "", "duplicate id", ""]


def test_the_id_of_a_question_is_not_that_of_a_row(read: Read) -> None:
    rows = [{"question_id": 81, "question": "q", "answer": answer} for answer in "ab"]
    assert [getattr(e, "response", "") for e in read("demonstrations", *rows)] == ["a", "b"]


RANKED = {"prompt": "p", "completions": ["a", "b"]}


@pytest.mark.parametrize(
    ("kind", "row", "message"),
    [
        ("demonstrations", {}, "whose fields are nothing"),
        ("demonstrations", {"foo": 1, "bar": 2}, 'whose fields are "foo", "bar"'),
        ("demonstrations", {"prompt": "p"}, 'field "completion" is missing'),
        ("demonstrations", {"question": "p"}, 'field "answer" is missing'),
        ("demonstrations", {"prompt": None, "completion": "c"}, "string, not null"),
        ("demonstrations", {"prompt": 3, "completion": "c"}, "string, not a number"),
        ("demonstrations", {"prompt": "p", "question": "q", "answer": "a"}, "prompt, question"),
        ("demonstrations", {"prompt": "p", "answer": "a", "output": "o"}, "answer, output"),
        ("demonstrations", {"messages": []}, "empty list"),
        ("demonstrations", {"messages": "hi"}, '"messages" must be a list, not a string'),
        ("demonstrations", {"messages": ["hi"]}, r'"messages\[0\]" must be an object'),
        ("demonstrations", {"messages": [{"role": "user"}]}, 'lacks "content"'),
        ("demonstrations", {"messages": [Q | {"content": None}]}, r"\[0\]. lacks .content"),
        ("demonstrations", {"instruction": "i", "instances": []}, "empty list"),
        ("comparisons", {"chosen": "a", "rejected": "b"}, 'fields are "chosen", "rejected"'),
        ("comparisons", {"chosen": A, "rejected": "b", "prompt": "p"}, "must both be"),
        ("comparisons", RANKED, 'neither "ranks" nor "scores"'),
        ("comparisons", RANKED | {"ranks": [1]}, "1 entries for 2"),
        ("comparisons", RANKED | {"ranks": [1, math.nan]}, r'"ranks\[1\]" is NaN'),
        ("comparisons", RANKED | {"ranks": [1, 0]}, "start at 1"),
        ("comparisons", RANKED | {"scores": [1, math.inf]}, r'"scores\[1\]" is Infinity'),
        ("comparisons", RANKED | {"scores": [1, 10**400]}, r'"scores\[1\]" is inf'),
        ("comparisons", RANKED | {"scores": [1, "2"]}, r'"scores\[1\]" must be a number'),
        ("comparisons", RANKED | {"completions": [], "ranks": []}, "at least two"),
        ("prompts", {"turns": []}, "empty list"),
        ("pretraining", {"text": ["t"]}, "string, not a list"),
        ("pretraining", {"id": 1.5, "text": "t"}, '"id" must be a string'),
    ],
)
def test_bad_rows_are_named(read: Read, kind: str, row: object, message: str) -> None:
    with pytest.raises(DataLineError, match=message) as caught:
        read(kind, row)
    assert caught.value.where.endswith("rows.jsonl:1")
    (rejected,) = read(kind, row, on_bad_line="drop")
    assert rejected == Rejected("bad line", caught.value.where)


def test_the_accepted_shapes_are_told(read: Read) -> None:
    with pytest.raises(DataLineError) as caught:
        read("comparisons", {"foo": 1})
    assert "prompt + completions + ranks or scores" in caught.value.fix


def test_reading_goes_on_after_a_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": \n\xff\n{"text": NaN}\n{"text": "b"}\n')
    found = list(read_examples(str(path), "pretraining", on_bad_line="drop"))
    assert [getattr(e, "text", "-") for e in found] == ["a", "-", "-", "-", "b"]


def test_numbers_that_are_not_finite_in_tables(tmp_path: Path) -> None:
    rows = [RANKED | {"scores": [1.0, 2.0]}, RANKED | {"scores": [1.0, math.nan]}]
    path = str(tmp_path / "rows.parquet")
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataLineError, match=r'"scores\[1\]" is nan') as caught:
        list(read_examples(path, "comparisons"))
    assert caught.value.where == f"{path} row 2"


def test_tables_of_text(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(
        'q,a,b,sa,sb\nwhy,x,y,0.5,1\nwhy,x,y,nan,1\nwhy,x,y,true,false\n"why",x,y,?,1\n'
    )
    columns = {"prompt": "q", "completions": ["a", "b"], "scores": ["sa", "sb"]}
    read = read_examples(str(path), "comparisons", columns=columns, on_bad_line="drop")
    assert [getattr(e, "ranks", "-") for e in read] == [(2, 1), "-", (1, 2), "-"]
    path.write_text('messages\n"[{""role"": ""user"", ""content"": ""q""}]"\n')
    (prompt,) = read_examples(str(path), "prompts")
    assert isinstance(prompt, PromptExample)
    assert prompt.context == (user("q"),)


NESTED = Line({"a.b": 1, "c": {"d": [10, {"e": 11}]}, "f": 2}, "FILE:1")


def test_columns() -> None:
    columns = {"prompt": "a.b", "completions": ["c.d.0", "c.d.1.e"], "text": "f"}
    mapping = ColumnMap(columns)
    assert mapping.map(NESTED).fields == {"prompt": 1, "completions": [10, 11], "text": 2}
    check_found(mapping, "FILE")
    assert ColumnMap({}).map(NESTED) == NESTED
    assert ColumnMap({"user": "f"}).map(NESTED).fields == {**NESTED.fields, "user": 2}
    for path in ("c.d.-1", "f.g"):
        with pytest.raises(DataLineError, match=f'column "{path}" is missing'):
            ColumnMap({"prompt": path}).map(NESTED)
    for path in ("c.x", "c.d.2"):  # another row may have it
        lacking = ColumnMap({"prompt": path})
        assert lacking.map(NESTED).nulls == ("prompt",)
        with pytest.raises(DataError, match=f'no row of the data set has the column "{path}"'):
            check_found(lacking, "FILE")


def test_mapped_columns_alone_are_seen(read: Read) -> None:
    row = {"messages": "not a dialogue", "prompt": 3, "text": "t", "reply": "r"}
    (example,) = read("demonstrations", row, columns={"prompt": "text", "completion": "reply"})
    assert isinstance(example, Demonstration)
    assert (example.context, example.response) == ("t", "r")


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"promt": "q"}, "did you mean 'prompt'"), ({"prompt": ["a", "b"]}, "holds one value")],
)
def test_bad_columns(read: Read, columns: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read("prompts", {"prompt": "p"}, columns=columns)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (PAIR, "comparisons"),
        (TIE, "comparisons"),
        ({"question": "q", "answer": "a"}, "demonstrations"),
        ({"messages": CHAT}, "demonstrations"),
        ({"turns": ["t"]}, "prompts"),
        ({"text": "t"}, "pretraining"),
    ],
)
def test_the_kind_is_told_by_a_row(tmp_path: Path, row: dict[str, object], kind: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert kind_of_data(str(path)) == kind


@pytest.mark.parametrize(
    ("kind", "row", "begins"),
    [
        ("demonstrations", {"question": "a", "completions": ["b", "c"], "ranks": [1, 2]},
         "rows with these fields are rankings: give the file as data.files.rankings; accepted"),
        ("demonstrations", {"prompt": "a", "chosen": "b", "rejected": "c"},
         "rows with these fields are rankings: give the file as data.files.rankings; accepted"),
        ("demonstrations", {"text": "a"},
         "rows with these fields are texts to pretrain on: give the file as data.files.pre"),
        ("pretraining", {"messages": []},
         "rows with these fields are demonstrations: give the file as data.files.demonstrations"),
        ("pretraining", {"question": "a"},
         "rows with these fields are prompts: give the file as data.files.prompts"),
        ("demonstrations", {"mesages": []},
         'did you mean "messages" in place of "mesages"? accepted shapes'),
        ("prompts", {"promt": "a"}, 'did you mean "prompt" in place of "promt"? accepted'),
        ("demonstrations", {"foo": 1}, "accepted shapes: messages |"),
    ],
)  # fmt: skip
def test_a_row_of_another_kind_or_a_misspelt_field_is_named(
    read: Read, kind: str, row: object, begins: str
) -> None:
    with pytest.raises(DataLineError) as caught:
        read(kind, row)
    assert caught.value.fix.startswith(begins)


def test_a_reply_that_is_missing_alone_is_no_other_kind(read: Read) -> None:
    with pytest.raises(DataLineError, match='field "answer" is missing or null'):
        read("demonstrations", {"question": "a", "source": "b"})
