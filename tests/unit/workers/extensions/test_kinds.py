"""Extensions are found by the name of a module of the package, or by an import path."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.data.formats.kinds import FORMATS
from workers.errors import ConfigError
from workers.extensions.kinds import Kind

KEY = "algorithm.colour"


@pytest.fixture
def colours(tmp_path: Path) -> Iterator[Kind[int]]:
    """Kind of extension whose parts are integers, with two modules and a helper."""
    package = tmp_path / "colours"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "red.py").write_text("COLOUR = 16\n")
    (package / "blue.py").write_text("COLOUR: int = 1\n")
    (package / "helper.py").write_text("raise RuntimeError('helpers are not imported')\n")
    (tmp_path / "mine.py").write_text("COLOUR = 255\nWORD = 'grey'\nclass Blank: ...\n")
    known, paths = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(tmp_path))
    yield Kind("colour", int, "colours", "COLOUR")
    for name in set(sys.modules) - known:
        del sys.modules[name]
    sys.path[:] = paths


def test_a_module_is_a_part_by_the_constant_that_it_assigns(colours: Kind[int]) -> None:
    assert colours.names() == ("blue", "red")
    assert colours.find("red", KEY) == 16
    assert colours.find("blue", KEY) == 1


def test_a_part_of_a_user_is_found_by_its_import_path(colours: Kind[int]) -> None:
    assert colours.find("mine:COLOUR", KEY) == 255


@pytest.mark.parametrize(
    ("name", "what", "fix"),
    [
        ("rad", "there is no colour 'rad'", "did you mean red? choose one of blue, red, or name"),
        ("helper", "there is no colour 'helper'", "choose one of blue, red"),
        ("", "there is no colour ''", "choose one of blue, red"),
        (
            "mine:WORD",
            "'mine:WORD' is no colour: it is a str, not an object of int",
            "builtins.int",
        ),
        (
            "mine:Blank",
            "'mine:Blank' is no colour: it is the class Blank, not an object of int",
            "builtins.int",
        ),
        ("mine:COLOR", "cannot import 'mine:COLOR': mine has no 'COLOR'", "did you mean 'COLOUR'?"),
        ("absent:COLOUR", "there is no module 'absent'", "PYTHONPATH"),
    ],
)
def test_what_is_no_part_is_refused_with_the_key_and_a_way_out(
    colours: Kind[int], name: str, what: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        colours.find(name, KEY)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == KEY


def test_a_part_that_refuses_its_fields_names_the_line_that_makes_it(tmp_path: Path) -> None:
    own = tmp_path / "refused_part.py"
    own.write_text("from workers.data.formats.kinds import Format\n\nF = Format(3)\n")
    with pytest.raises(ConfigError, match=f"TypeError at {own}:3: scan is 3"):
        FORMATS.find("refused_part:F", "format", str(tmp_path))
