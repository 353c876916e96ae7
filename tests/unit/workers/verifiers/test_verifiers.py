"""Verifiers on cases that were judged by hand, and what they refuse."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from number_cases import CASES

from workers.errors import ConfigError
from workers.verifiers.number_verifier import answer_of
from workers.verifiers.verifier import KIND, Options, UnverifiableError, make_check


def right(name: str, response: str, reference: Any = None, **options: Any) -> bool:
    verifier = KIND.find(name, "verifier")
    return make_check(verifier, Options(**options), str)(response, reference)


def test_every_verifier_is_found_by_its_name() -> None:
    assert KIND.names() == ("choice", "exact", "json", "math", "number", "regex")


def test_there_are_a_hundred_hand_cases() -> None:
    assert len(CASES) >= 100
    assert len({(response, repr(answer)) for response, answer, _ in CASES}) == len(CASES)


@pytest.mark.parametrize(("response", "answer", "wanted"), CASES)
def test_numbers_are_read_as_people_read_them(response: str, answer: object, wanted: bool) -> None:
    assert right("number", response, answer) is wanted


def test_a_tolerance_is_relative() -> None:
    assert right("number", "0.3333", "1/3", tolerance=1e-3)
    assert not right("number", "0.33", "1/3", tolerance=1e-3)
    assert right("number", "33333", "33333.3", tolerance=1e-3)
    assert not right("number", "1e-9", "0", tolerance=0.5)


def test_a_pattern_cuts_out_the_answer() -> None:
    assert right("number", "answer: 5 (of 7)", "5", pattern=r"answer: (\S+)")
    assert not right("number", "of 7", "7", pattern=r"answer: (\S+)")


@pytest.mark.parametrize("bad", ["none", "", True, {"a": 1}, [], None, "x"])
def test_an_answer_that_is_no_number_cannot_be_compared_with(bad: Any) -> None:
    with pytest.raises(UnverifiableError):
        right("number", "5", bad)


@pytest.mark.parametrize(
    "text",
    ["1" * 20_000, "1,11" * 5000, "1/" * 10_000, "$(" * 10_000, "-" * 20_000, "\\frac{" * 3000,
     "0_" * 10_000, "\\boxed{" * 3000, "1.2" * 6000, "9e" * 9000],
)  # fmt: skip
def test_hostile_texts_do_no_harm(text: str) -> None:
    found = answer_of(text)
    assert found is None or abs(found.value) < 10**400


@pytest.mark.parametrize(
    ("response", "answer", "wanted"),
    [
        ("four", "four", True),
        ("  four \n", "four", True),
        ("Four", "four", False),
        ("cafe\u0301", "caf\u00e9", True),
        ("4", 4, True),
        ("five", ["four", "five"], True),
        ("four.", "four", False),
        ("", "four", False),
    ],
)
def test_exact_answers(response: str, answer: Any, wanted: bool) -> None:
    assert right("exact", response, answer) is wanted


def test_exact_answers_within_a_sentence() -> None:
    pattern = r"(?:the answer is )?(.*?) \."
    assert right("exact", "the answer is red fox . thank you", "red fox", pattern=pattern)
    assert not right("exact", "i do not know .", "red fox", pattern=pattern)
    assert not right("exact", "red fox", "red fox", pattern=pattern)
    assert right("exact", "the answer is red fox .", "red fox", pattern=pattern)


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ("B", True),
        ("(B)", True),
        ("b", False),
        ("The answer is B.", True),
        ("Answer: (b)", True),
        ("**Answer: B**", True),
        (r"\boxed{B}", True),
        (r"\boxed{\text{B}}", True),
        ("B. because A is wrong", True),
        ("A is wrong, (C) too, so the answer is B", True),
        ("(A) no, (B) yes", True),
        ("I choose B", True),
        ("A lot of Bs", False),
        ("the answer is C", False),
        ("the answer is bad", False),
        ("", False),
    ],
)
def test_choices(response: str, wanted: bool) -> None:
    assert right("choice", response, "B") is wanted
    assert right("choice", response, "(b)") is wanted


def test_a_choice_needs_a_letter() -> None:
    with pytest.raises(UnverifiableError, match="letter"):
        right("choice", "B", "blue")


def test_patterns() -> None:
    assert right("regex", "it is 12:30", pattern=r"\d+:\d+")
    assert not right("regex", "noon", pattern=r"\d+:\d+")
    assert right("regex", "noon", "^no")
    with pytest.raises(UnverifiableError, match="is none"):
        right("regex", "noon", "(")
    with pytest.raises(UnverifiableError, match="no pattern"):
        right("regex", "noon")
    with pytest.raises(ConfigError, match="no regular expression"):
        right("regex", "noon", pattern="(")


def test_a_pattern_that_backtracks_without_end_is_given_up() -> None:
    with pytest.raises(UnverifiableError, match="took over"):
        right("regex", "a" * 4000 + "!", pattern=r"(?:(a+)+b|(a|a)+c)$")


@pytest.mark.parametrize(
    ("response", "wanted"),
    [
        ('{"a": 1}', True),
        ('```json\n{"a": 1}\n```', True),
        ('Here: {"a": 1}', False),
        ('{"a": "x"}', False),
        ('{"a": NaN}', False),
        ("[" * 100_000, False),
        ("", False),
    ],
)
def test_json_by_a_schema(tmp_path: Path, response: str, wanted: bool) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}
    path = tmp_path / "schema.json"
    path.write_text(json.dumps(schema))
    assert right("json", response, schema=str(path)) is wanted
    assert right("json", response, schema) is wanted
    assert right("json", response, json.dumps(schema)) is wanted


def test_json_without_a_schema_and_schemas_that_are_none(tmp_path: Path) -> None:
    assert right("json", "3")
    path = tmp_path / "schema.json"
    for text, said in (("{", "cannot be read"), ('{"type": "objekt"}', "no JSON schema")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=said):
            right("json", "3", schema=str(path))
    with pytest.raises(ConfigError, match="cannot be read"):
        right("json", "3", schema=str(tmp_path / "none.json"))
    with pytest.raises(UnverifiableError, match="is none"):
        right("json", "3", {"type": 7})


def test_a_schema_loads_nothing() -> None:
    with pytest.raises(UnverifiableError, match="refers to"):
        right("json", "3", {"$ref": "http://127.0.0.1:9/schema.json"})


def test_an_option_that_a_verifier_does_not_read_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not read tolerance"):
        right("exact", "3", "3", tolerance=0.1)


@pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is None, reason="math-verify is not installed"
)
def test_formulas() -> None:
    from workers.verifiers.math_function import score

    rows = [{"answer": "(x+1)^2"}, {"answer": ["3", "0.5"]}, {"answer": "2"}]
    texts = [r"\boxed{x^2+2x+1}", r"so $\frac{1}{2}$", "3"]
    assert score(texts, rows) == [1.0, 1.0, 0.0]


@pytest.mark.skipif(
    importlib.util.find_spec("math_verify") is not None, reason="math-verify is installed"
)
def test_a_missing_library_is_named() -> None:
    with pytest.raises(ConfigError, match="not installed") as caught:
        right("math", "3", "3")
    assert "rehearsal[verify]" in caught.value.fix


def test_the_verifier_of_the_documentation() -> None:
    page = Path(__file__).resolve().parents[4] / "docs" / "extending.md"
    section = page.read_text(encoding="utf-8").partition("## A new verifier")[2]
    made: dict[str, Any] = {}
    exec(section.partition("```python\n")[2].partition("```")[0], made)
    check = make_check(made["SORTED"], Options(), str)
    assert check("fox red", "red fox")
    assert not check("fox", "red fox")
    with pytest.raises(UnverifiableError, match="no text"):
        check("fox", 3)
