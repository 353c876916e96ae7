"""A user's labeler: what it gets, and what becomes of what it returns."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from workers.data.rows.asked import Asked
from workers.errors import ConfigError
from workers.user_functions.calls import Patience
from workers.user_functions.labeler_function import (
    Answers,
    call_labeler,
    load_labeler,
    started_labeler,
)

ASKED = [
    Answers(Asked(0, "first", "first"), ["a", "bbb"]),
    Answers(Asked(1, "second", "second"), ["cc", "d", "cc"]),
]


def labeler(folder: Path, body: str, parameters: str = "prompts, completions") -> str:
    (folder / "mine.py").write_text(f"def label({parameters}):\n    {body}\n")
    return "mine:label"


@pytest.fixture(autouse=True)
def _forget(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "mine", raising=False)


LENGTHS = "return [[len(t) for t in texts] for texts in completions]"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (LENGTHS, [[1.0, 3.0], [2.0, 1.0, 2.0]]),
        ("import numpy as n; return [n.arange(len(c)) for c in completions]", [[0, 1], [0, 1, 2]]),
        (
            "return [[1, 2], None]",
            [[1, 2], "labeler function returned nothing (None) for one item"],
        ),
        (
            "return [[1, 2], [1, 2]]",
            [[1, 2], "labeler function returned a list of another length for one item"],
        ),
        (
            "return [[float('nan'), 2], [1, 2, 3]]",
            ["labeler function returned NaN for one item", [1, 2, 3]],
        ),
        ("return [[1, 2]]", ["labeler function returned the wrong number of values"] * 2),
        ("return 'ab'", ["labeler function returned the wrong number of values"] * 2),
    ],
)
def test_numbers_per_completion(
    tmp_path: Path, body: str, expected: list[list[float] | str]
) -> None:
    caller = load_labeler(labeler(tmp_path, body), str(tmp_path))
    assert call_labeler(caller, ASKED, Patience()) == expected


def test_a_prompt_that_makes_it_raise_does_not_fail_the_others(tmp_path: Path) -> None:
    body = "assert 'second' not in prompts, 'no'; return [[len(t) for t in c] for c in completions]"
    with started_labeler(labeler(tmp_path, body), str(tmp_path)) as caller:
        found = call_labeler(caller, ASKED, Patience(seconds=30.0))
    assert found[0] == [1.0, 3.0]
    assert isinstance(found[1], str)
    assert found[1].startswith("labeler function raised AssertionError at ")


def test_what_failed_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "calls = []\n"
        "def label(prompts, completions):\n"
        "    calls.append(len(prompts))\n"
        "    assert len(calls) > 3\n"
        "    return [[1] * len(texts) for texts in completions]\n"
    )
    caller = load_labeler("mine:label", str(tmp_path))
    assert call_labeler(caller, ASKED, Patience(retries=1)) == [[1.0, 1.0], [1.0, 1.0, 1.0]]


def test_it_gets_what_its_parameters_name(tmp_path: Path) -> None:
    body = "return [[len(m) + len(r)] * len(c) for m, r, c in zip(messages, rendered, completions)]"
    caller = load_labeler(labeler(tmp_path, body, "completions, messages, rendered"), str(tmp_path))
    assert call_labeler(caller, ASKED, Patience()) == [[6.0, 6.0], [7.0, 7.0, 7.0]]


def test_it_may_take_the_kept_columns_of_each_row(tmp_path: Path) -> None:
    asked = [Answers(Asked(0, "p", "p", '{"answer": "bbb"}'), ["a", "bbb"])]
    body = "return [[t == r['answer'] for t in c] for c, r in zip(completions, rows)]"
    caller = load_labeler(labeler(tmp_path, body, "completions, rows"), str(tmp_path))
    assert call_labeler(caller, asked, Patience()) == [[0.0, 1.0]]


def test_prompts_on_which_it_hangs_do_not_each_wait_for_the_deadline(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "import time\n"
        "def label(prompts, completions):\n"
        "    open('calls', 'a').write(f'{len(prompts)} ')\n"
        "    time.sleep(3600)\n"
    )
    (tmp_path / "calls").touch()
    asked = [Answers(Asked(n, f"{n}", f"{n}"), ["a", "b"]) for n in range(8)]
    with (
        contextlib.chdir(tmp_path),
        started_labeler("mine:label", str(tmp_path)) as caller,
    ):
        found = call_labeler(caller, asked, Patience(seconds=1.0))
    assert found == ["labeler function did not answer in time"] * 8
    # all at once, then two alone: after two lost calls in a row the others count as lost
    assert (tmp_path / "calls").read_text().split() == ["8", "1", "1"]


@pytest.mark.parametrize(("path", "parameters"), [("mine:none", "a, b"), ("mine:label", "prompts")])
def test_what_is_no_labeler_is_refused(tmp_path: Path, path: str, parameters: str) -> None:
    labeler(tmp_path, "return []", parameters)
    with pytest.raises(ConfigError) as caught:
        load_labeler(path, str(tmp_path))
    assert caught.value.where == "label.function"
