"""Settings of an extension are filled by type, and anything else is refused with its key."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from typing import Any, Literal, Optional

import pytest

from workers.errors import ConfigError
from workers.extensions.settings import check_record, filled


@dataclass(kw_only=True)
class Settings:
    count: int
    share: float = 0.5
    name: str = "a"
    cap: float | None = 2.5
    words: list[str] = field(default_factory=list)
    strict: bool = False
    limit: Optional[int] = None  # noqa: UP045  as users write it
    side: Literal["left", "right"] = "left"
    weights: list[float] = field(default_factory=list)
    made: int = field(default=1, init=False)


def fill(**values: object) -> Settings:
    return filled(Settings, values, lambda name: f"key.{name}")


def test_values_take_their_places_and_the_others_are_defaults() -> None:
    assert fill(count=3) == Settings(count=3, share=0.5, name="a", cap=2.5, words=[], strict=False)
    made = fill(count=3, share=2, name="b", cap=None, words=["x"], strict=True)
    assert made == Settings(count=3, share=2.0, name="b", cap=None, words=["x"], strict=True)
    assert type(made.share) is float  # a whole number on the command line
    assert type(fill(count=3, cap=4).cap) is float
    assert fill(count=3, share=-(2**53)).share == -9007199254740992.0  # the last that is exact


@pytest.mark.parametrize(
    ("values", "where", "what"),
    [
        ({}, "key.count", "is not set"),
        ({"count": 1.5}, "key.count", "of type float, not int"),
        ({"count": True}, "key.count", "of type bool, not int"),
        ({"count": 1, "strict": 1}, "key.strict", "of type int, not bool"),
        ({"count": 1, "name": 7}, "key.name", "of type int, not str"),
        ({"count": 1, "cap": "x"}, "key.cap", "of type str, not float | None"),
        ({"count": 1, "words": "x"}, "key.words", "of type str, not list"),
        ({"count": 1, "nmae": "x"}, "key.nmae", "unknown key key.nmae"),
        ({"count": 1, "made": 2}, "key.made", "unknown key key.made"),
        ({"count": 1, "words": ["x", 1]}, "key.words", "of type list, not list[str]"),
        ({"count": 1, "limit": "x"}, "key.limit", "of type str, not Optional[int]"),
        ({"count": 1, "side": "up"}, "key.side", "not Literal['left', 'right']"),
        ({"count": 1, "share": 10**400}, "key.share", "of type int, not float"),
        ({"count": 1, "share": 2**53 + 1}, "key.share", "of type int, not float"),
    ],
)
def test_anything_else_is_refused(values: dict[str, object], where: str, what: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fill(**values)
    assert caught.value.where == where
    assert what in caught.value.what


def test_a_text_that_looks_like_a_number_can_be_quoted_and_a_typo_has_a_suggestion() -> None:
    with pytest.raises(ConfigError) as caught:
        fill(count=1, name=7)
    assert caught.value.fix.endswith("""key.name='"7"'""")
    with pytest.raises(ConfigError) as caught:
        fill(count=1, nmae="x")
    assert caught.value.fix == "did you mean key.name?"


def test_unions_choices_and_lists_of_numbers_take_their_values() -> None:
    made = fill(count=1, limit=3, side="right", weights=[1, 2.5])
    assert (made.limit, made.side, made.weights) == (3, "right", [1, 2.5])
    assert fill(count=1, limit=None).limit is None


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (dict, "must be a class with @dataclass"),
        (Settings(count=1), "must be a class with @dataclass"),
        (make_dataclass("Own", [("call", Callable[[], int])]), "Own.call is of type"),
        (make_dataclass("Own", [("pair", tuple[int, int])]), "Own.pair is of type tuple"),
        (make_dataclass("Own", [("x", "NoSuchType")]), "the type of a field of Own is unknown"),
    ],
)
def test_a_record_that_no_configuration_can_fill_is_refused(record: Any, says: str) -> None:
    check_record(Settings)
    with pytest.raises(TypeError) as caught:
        check_record(record)
    assert says in str(caught.value)
