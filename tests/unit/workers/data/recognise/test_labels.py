"""Which completion is better: by labels, by several annotators, by one completion a row."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from orchestrator.data.command import main, parse_columns
from workers.data.recognise.columns import check_columns
from workers.data.recognise.recognise import Noted, read_examples
from workers.data.rows.examples import Comparison, Rejected
from workers.errors import ConfigError, DataError, DataLineError

Read = Callable[..., list[Any]]
COLUMNS: dict[str, Any] = {"prompt": "q", "completions": ["one", "two"], "better": "label"}
SAID = {"column": "label", "first": "yes", "second": "no", "tie": ["eh", "hm"], "none": "?"}
OPTIONS = ["prompt=q", "completions=one,two", "better=label"]
FIRST, SECOND, TIE, NONE = (1, 2), (2, 1), "every completion ties", "no label"


@pytest.fixture
def read(tmp_path: Path) -> Read:
    def reading(*rows: object, **options: Any) -> list[Any]:
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        found = read_examples(str(path), "comparisons", **options)
        return [each.reason if isinstance(each, Rejected) else each for each in found]

    return reading


def labelled(*labels: object) -> list[dict[str, object]]:
    return [{"q": f"q{i}", "one": "x", "two": "y", "label": each} for i, each in enumerate(labels)]


def ranks(found: list[Any]) -> list[object]:
    return [each.ranks if isinstance(each, Comparison) else each for each in found]


@pytest.mark.parametrize(
    ("labels", "meant"),
    [
        ((0, 1, None), (FIRST, SECOND, NONE)),
        ((1, 2, 2), (FIRST, SECOND, SECOND)),
        ((2, 2), (SECOND, SECOND)),
        (("1", "2", ""), (FIRST, SECOND, NONE)),
        ((1.0, 2.0), (FIRST, SECOND)),
        (("a", "b"), (FIRST, SECOND)),
        (("A", "B", "Tie"), (FIRST, SECOND, TIE)),
        (("model_a", "model_b", "tie (bothbad)"), (FIRST, SECOND, TIE)),
        (("response_1", "response_2", "equal"), (FIRST, SECOND, TIE)),
        (("Response 0", "response 1", "both"), (FIRST, SECOND, TIE)),
        (("one", "two", "neither"), (FIRST, SECOND, TIE)),
        (("left", "second", "draw"), (FIRST, SECOND, TIE)),
        ((-3, 1, 0, -0.5), (FIRST, SECOND, TIE, FIRST)),
        (("-1", "2"), (FIRST, SECOND)),
    ],
)
def test_labels_say_which_is_better(read: Read, labels: Any, meant: Any) -> None:
    assert ranks(read(*labelled(*labels), columns=COLUMNS)) == list(meant)


@pytest.mark.parametrize(
    "labels",
    [(1, 1), (0, 0), (0, 1, 2), (1, 2, 3), (0, 0.5, 1), (0, 2), (3,), ("response_1",)],
)
def test_numbers_that_may_mean_two_things_are_refused(read: Read, labels: Any) -> None:
    for option in ("fail", "drop"):
        with pytest.raises(DataError, match="is not certain") as caught:
            read(*labelled(*labels), columns=COLUMNS, on_bad_line=option)
        assert "columns.better.first=LABEL" in caught.value.fix


@pytest.mark.parametrize("label", [True, "good", "c", "dog", [["a"]], {"a": 1}])
def test_a_label_that_says_nothing_names_its_line(read: Read, label: object) -> None:
    with pytest.raises(DataLineError) as caught:
        read(*labelled("a", label), columns=COLUMNS)
    assert caught.value.where.endswith("rows.jsonl:2")
    assert read(*labelled("a", label), columns=COLUMNS, on_bad_line="drop")[1] == "bad line"


def test_what_labels_mean_can_be_said(read: Read) -> None:
    rows = labelled("no", "YES", "hm", "?", None, "tie")
    found = ranks(read(*rows, columns=COLUMNS | {"better": SAID}))
    assert found == [SECOND, FIRST, TIE, NONE, NONE, TIE]
    turned = {"column": "label", "first": 1, "second": 0}
    assert ranks(read(*labelled(1, 0), columns=COLUMNS | {"better": turned})) == [FIRST, SECOND]
    truth = {"column": "label", "first": True, "second": False}
    assert ranks(read(*labelled(True, False), columns=COLUMNS | {"better": truth})) == [
        FIRST,
        SECOND,
    ]
    with pytest.raises(DataLineError, match="'2'"):
        read(*labelled(1, 2), columns=COLUMNS | {"better": turned})


@pytest.mark.parametrize(
    ("better", "message"),
    [
        ({"colum": "x"}, "no key"),
        ({"first": 1, "second": 0}, "names no column"),
        ({"column": "x", "first": 1}, "go together"),
        ({"column": "x", "first": 1, "second": 1}, "given twice"),
        ({"column": "x", "first": None, "second": 1}, "is no label"),
        ([], "names no column"),
        (["x", 2], "names no column"),
        (3, "names no column"),
    ],
)
def test_mappings_of_labels_are_checked(better: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_columns({"better": better})


def test_the_command_line_says_what_labels_mean() -> None:
    pairs = ["completions=a,b", "better.column=l", "better.first=1", "better.tie=tie,both"]
    assert parse_columns(pairs) == {
        "completions": ["a", "b"],
        "better": {"column": "l", "first": "1", "tie": ["tie", "both"]},
    }
    with pytest.raises(ConfigError, match="given twice"):
        parse_columns([*pairs, "better=l"])
    written_out = [f"columns.{pair}" for pair in pairs[:2]] + [f"data.columns.{pairs[2]}"]
    assert parse_columns([*written_out, pairs[3]]) == parse_columns(pairs)


def test_several_columns_of_labels_are_one_ranking_an_annotator(read: Read) -> None:
    rows = [
        {"q": "p", "one": "x", "two": "y", "ann": "a", "bob": "tie", "cy": "b"},
        {"q": "r", "one": "x", "two": "y", "ann": "b", "bob": None, "cy": "b"},
    ]
    found = read(*rows, columns=COLUMNS | {"better": ["ann", "bob", "cy"]})
    assert [(each.context, each.annotator, each.ranks) for each in found] == [
        ("p", "annotator 1", FIRST),
        ("p", "annotator 2", (1, 1)),
        ("p", "annotator 3", SECOND),
        ("r", "annotator 1", SECOND),
        ("r", "annotator 3", SECOND),
    ]


def test_how_numbers_were_read_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled(0, 1, 1, None)))
    noted = Noted()
    list(read_examples(str(path), "comparisons", columns=COLUMNS, noted=noted))
    assert noted.labels == (
        '"label": 0 = the first completion is better, 1 = the second (if they mean otherwise set '
        "better.first and better.second): 1 for the first, 2 for the second, 1 without a label"
    )
    assert main(["inspect", str(path), "--columns", *OPTIONS]) == 0
    assert "1 for the first, 2 for the second" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (("a", "B", "b", "tie"), "1 for the first, 2 for the second, 1 ties"),
        (
            (-2, -1, 3),
            "below 0 = the first is better, above 0 = the second, 0 = tie: "
            "2 for the first, 1 for the second",
        ),
        (
            ("b", "dog", ""),
            "0 for the first, 1 for the second, 1 without a label, 1 not understood",
        ),
        ((["a", "b"], ["b", "b"]), "1 for the first, 3 for the second"),
    ],
)
def test_how_many_labels_are_for_which_completion_is_said(
    tmp_path: Path, labels: Any, said: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labelled(*labels)))
    noted = Noted()
    rows = read_examples(str(path), "comparisons", columns=COLUMNS, noted=noted, on_bad_line="drop")
    list(rows)
    assert noted.labels == f'"label": {said}'


def test_the_best_of_several(read: Read) -> None:
    rows = [{"prompt": "p", "completions": list("abcd"), "better": best} for best in (0, 3, "c")]
    assert ranks(read(*rows)) == [(1, 2, 2, 2), (2, 2, 2, 1), (2, 2, 1, 2)]


def test_labels_of_the_rows_themselves(read: Read) -> None:
    row = {"prompt": "p", "completions": ["x", "y"]}
    rows = [row | {"better": label} for label in (None, 1, 2)]
    assert ranks(read(*rows)) == [NONE, FIRST, SECOND]
    both = row | {"ranks": [2, 1], "better": 1}
    assert ranks(read(both, both)) == [SECOND, SECOND]
    pair = {"prompt": "p", "chosen": "x", "rejected": "y", "better": 1}
    assert ranks(read(pair)) == [FIRST]
    with pytest.raises(ConfigError, match="together with better"):
        read(both, columns={"completions": "completions", "ranks": "ranks", "better": "better"})


def test_lists_of_any_length_are_read_by_paths(read: Read) -> None:
    answers = [{"text": t, "rank": r} for t, r in (("x", 2), ("y", 1), ("z", 3), (None, None))]
    rows = [{"q": "p", "answers": answers[:k]} for k in (2, 3, 4)]
    columns = {"prompt": "q", "completions": "answers.*.text", "ranks": "answers.*.rank"}
    assert ranks(read(*rows, columns=columns)) == [(2, 1), (2, 1, 3), (2, 1, 3)]
    unranked = {"q": "p", "answers": [{"text": "x", "rank": 1}, {"text": "y"}]}
    assert read(unranked, columns=columns) == [NONE]
    with pytest.raises(DataError, match=r'no row of the data set has .* "answers\.\*\.by"'):
        read(*rows, columns=columns | {"annotator": "answers.*.by"})


def test_each_annotator_ranks_anew(read: Read) -> None:
    said = [{"who": "ann", "label": "a"}, {"who": "bob", "label": "tie"}, {"who": "cy"}]
    row = {"q": "p", "one": "x", "two": "y", "said": said}
    columns = COLUMNS | {"better": "said.*.label", "annotator": "said.*.who"}
    found = read(row, columns=columns)
    assert [(each.annotator, each.ranks) for each in found] == [("ann", FIRST), ("bob", (1, 1))]
    row = {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [[1, 2, 3], None, [2, 1, 3]]}
    found = read(row | {"annotator": ["ann", None, 7.0]})
    assert [(e.annotator, e.ranks) for e in found] == [("ann", (1, 2, 3)), ("7", (2, 1, 3))]
    found = read(row)
    assert [each.annotator for each in found] == ["annotator 1", "annotator 3"]
    with pytest.raises(DataLineError, match="2 entries for 3 rankings"):
        read(row | {"annotator": ["ann", "bob"]})


def test_rows_of_one_prompt_become_a_ranking(read: Read) -> None:
    given = ("p", "a", 1), ("q", "c", 3), ("p", "b", 4), ("q", "d", 3), ("r", "e", 1), ("p", "z", 4)
    rows = [
        {"prompt": p, "response": r, "helpful": s, "id": i} for i, (p, r, s) in enumerate(given)
    ]
    columns = {"prompt": "prompt", "completion": "response", "score": "helpful"}
    found = read(*rows, columns=columns)
    assert found[:2] == [TIE, "the only completion of its prompt"]
    (ranking,) = found[2:]
    assert (ranking.context, ranking.completions) == ("p", ("a", "b", "z"))
    assert ranking.ranks == (2, 1, 1)
    assert ranking.where.endswith("rows.jsonl:1")


def test_rows_of_one_prompt_are_apart_by_annotator(read: Read) -> None:
    rows = [
        {"question": "p", "answer": text, "rank": rank, "annotator": who}
        for text, rank, who in [("a", 1, "ann"), ("a", 2, "bob"), ("b", 1, "bob"), ("b", 2, "ann")]
    ]
    found = read(*rows)
    assert {(e.annotator, e.completions, e.ranks) for e in found} == {
        ("ann", ("a", "b"), FIRST),
        ("bob", ("a", "b"), SECOND),
    }
    with pytest.raises(DataLineError, match="several users"):
        read(*(row | {"annotator": None, "user": i} for i, row in enumerate(rows)))
    with pytest.raises(DataLineError, match="is missing or null"):
        read(rows[0], {key: value for key, value in rows[3].items() if key != "rank"})


def test_a_bad_row_does_not_take_the_others_of_its_prompt_along(read: Read) -> None:
    rows = [{"prompt": "p", "completion": text, "score": i} for i, text in enumerate("abcd")]
    bad = [rows[0], rows[1] | {"score": None}, rows[2], rows[3] | {"deleted": True}]
    found = read(*bad, on_bad_line="drop")
    reasons = [each for each in found if isinstance(each, str)]
    assert reasons == [NONE, 'its "deleted" is true']
    (ranking,) = (each for each in found if isinstance(each, Comparison))
    assert (ranking.completions, ranking.ranks) == (("a", "c"), SECOND)


def test_a_row_without_its_score_is_left_out_of_the_ranking(read: Read) -> None:
    rows = [
        {"prompt": "p", "completion": t, "score": s}
        for t, s in zip("abc", (None, 1, 2), strict=True)
    ]
    assert ranks(read(*rows)) == [NONE, SECOND]
    assert ranks(read(rows[1], rows[0], rows[2])) == [NONE, SECOND]


def test_numbers_at_the_end_of_paths_are_no_names(read: Read) -> None:
    rows = [{"q": "p", "two": ["x", "y"], "label": label} for label in (1, 2)]
    columns = COLUMNS | {"completions": ["two.0", "two.1"]}
    assert ranks(read(*rows, columns=columns)) == [FIRST, SECOND]
    named = [{"q": "p", "by": {"m-3.5": "x", "n-3.5": "y"}, "label": "n-3.5"}]
    columns = COLUMNS | {"completions": ["by.m-3.5", "by.n-3.5"]}
    assert ranks(read(*named, columns=columns)) == [SECOND]
    deep = [{"q": "p", "by": {"m-3.5": {"t": "x"}, "n-3.5": {"t": "y"}}, "label": "n-3.5.t"}]
    columns = COLUMNS | {"completions": ["by.m-3.5.t", "by.n-3.5.t"]}
    assert ranks(read(*deep, columns=columns)) == [SECOND]


def test_inspect_takes_a_first_row_without_label(read: Read, tmp_path: Path) -> None:
    read(*labelled(None, "a"), columns=COLUMNS)
    assert main(["inspect", str(tmp_path / "rows.jsonl"), "--columns", *OPTIONS]) == 0
    with (tmp_path / "rows.csv").open("w") as file:
        file.write("q,one,two,label\np,x,y,\np,x,y,b\n")
    assert main(["inspect", str(tmp_path / "rows.csv"), "--columns", *OPTIONS]) == 0


def test_pairs_whose_scores_are_against_them_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = {"prompt": "p", "chosen": "x", "rejected": "y", "len_chosen": 1, "len_rejected": 2}
    scores = ((7, 2), (1, 2), (3, 4.5), (2, 2), (None, 2))
    rows = [pair | {"score_chosen": a, "score_rejected": b} for a, b in scores]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    noted = Noted()
    found = list(read_examples(str(path), "comparisons", noted=noted))
    assert ranks(found) == [FIRST] * 5
    assert noted.labels == (
        '"score_chosen" and "score_rejected": by these the rejected completion is the better one '
        "in 2 of 5 rows (read as the worse one)"
    )
    assert main(["inspect", str(path)]) == 0
    assert "in 2 of 5 rows" in " ".join(capsys.readouterr().out.split())
