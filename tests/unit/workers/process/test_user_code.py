"""An import path that leads nowhere says what is wrong, in whose words, and where."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.errors import ConfigError
from workers.process.user_code import describe, load_function, split_path

KEY = "reward.function"


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    known, paths = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]
    sys.path[:] = paths


def refusal(path: str, folder: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_function(path, KEY, str(folder))
    assert caught.value.where == KEY
    assert caught.value.fix
    assert "\n" not in caught.value.what
    return caught.value


def test_functions_methods_and_nested_names_are_found(folder: Path) -> None:
    (folder / "mine_1.py").write_text("class K:\n  @staticmethod\n  def f(a, b): return 7\n")
    assert load_function("mine_1:K.f", KEY, str(folder))(1, 2) == 7
    assert load_function("math:dist", KEY) is math.dist


def test_the_folder_of_the_run_comes_before_what_python_would_find(folder: Path) -> None:
    (folder / "this.py").write_text("def f(a, b): return 'mine'\n")  # also a module of Python's
    sys.modules.pop("this", None)
    assert load_function("this:f", KEY, str(folder))(1, 2) == "mine"


@pytest.mark.parametrize(
    ("source", "says", "line"),
    [
        ("def f(a, b)\n    return 1\n", "SyntaxError at {file}:1: expected ':'", 1),
        ("\nimport numpie\n", "ModuleNotFoundError at {file}:2: No module named 'numpie'", 2),
        ("import json\njson.loads('{')\n", "JSONDecodeError at {file}:2: Expecting", 2),
        ("raise ValueError('no\\nkey')\n", "ValueError at {file}:1: no key", 1),
        ("import sys\nsys.exit('bye')\n", "SystemExit at {file}:2: bye", 2),
        ("class Own(BaseException): ...\nraise Own('odd')\n", "Own at {file}:2: odd", 2),
        ("x = \x00", "SyntaxError", 0),
    ],
)
def test_an_import_that_raises_shows_the_words_and_the_line(
    folder: Path, source: str, says: str, line: int
) -> None:
    (folder / "mine_2.py").write_text(source)
    what = refusal("mine_2:f", folder).what
    assert says.format(file=folder / "mine_2.py") in what
    assert (f":{line}" in what) == bool(line)


@pytest.mark.parametrize(
    ("path", "says", "fix"),
    [
        ("no_such_one:f", "there is no module 'no_such_one'", "folder that holds no_such_one"),
        ("mine_3.deeper:f", "there is no module 'mine_3.deeper'", "folder"),
        ("mine_3:scor", "mine_3 has no 'scor'", "did you mean 'score'?"),
        ("mine_3:number", "is not callable: it is a int", "name a function"),
        ("mine_3.py:score", "the path of a file", "write mine_3:score"),
        ("./mine_3.py:score", "the path of a file", "write mine_3:score"),
        ("C:\\rewards\\mine_3.py", "the path of a file", "write"),
        ("/abs/rewards/mine_3.py", "the path of a file", "write mine_3:NAME"),
        ("mine_3.score", "does not name a function", "write mine_3:score"),
        ("mine_3", "does not name a function", "package.module:NAME"),
        ("mine_3:", "does not name a function", "package.module:NAME"),
        (":score", "does not name a function", "package.module:NAME"),
        ("", "does not name a function", "package.module:NAME"),
        (".mine_3:score", "does not name a function", "package.module:NAME"),
        ("mine_3:score()", "does not name a function", "package.module:NAME"),
        ("mine 3:score", "does not name a function", "package.module:NAME"),
        ("mine_3:score:more", "does not name a function", "package.module:NAME"),
    ],
)
def test_a_path_that_leads_nowhere(folder: Path, path: str, says: str, fix: str) -> None:
    (folder / "mine_3.py").write_text("number = 3\ndef score(a, b): return []\n")
    error = refusal(path, folder)
    assert says in error.what
    assert fix in error.fix


def test_an_unusual_module_name_is_no_reason_to_fail_otherwise() -> None:
    assert split_path("größe.ü:f.g", KEY) == ("größe.ü", "f.g")


def test_errors_of_errors_are_shown_as_far_as_they_can_be() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise KeyError

    assert describe(Mute()) == "Mute: (its message cannot be shown)"
    assert describe(ValueError()) == "ValueError"
    assert len(describe(ValueError("x" * 10_000))) < 400


def test_a_module_whose_name_is_taken_is_told_with_both_files(folder: Path) -> None:
    (folder / "json.py").write_text(
        "def score(prompts, responses): return []\ndef loads(a, b): ..."
    )
    for name in ("score", "loads"):
        with pytest.raises(ConfigError, match=r"json is already .*and not .*json.py") as caught:
            load_function(f"json:{name}", "reward.function", str(folder))
        assert caught.value.fix == "give json.py a name that no other module has"
    assert load_function("json:loads", "reward.function", "/") is json.loads


def test_a_file_in_a_package_is_answered_with_the_name_of_the_package(folder: Path) -> None:
    for path in ("./pk/rel.py:score", "pk/rel.py:score", r"pk\rel.py:score"):
        with pytest.raises(ConfigError, match="the path of a file") as caught:
            load_function(path, "reward.function", str(folder))
        assert caught.value.fix.startswith("write pk.rel:score, ")
    (folder / "pk").mkdir()
    (folder / "pk" / "helper.py").write_text("def score(prompts, responses): return []")
    (folder / "pk" / "rel.py").write_text("from .helper import score")
    assert load_function("pk.rel:score", "reward.function", str(folder)).__module__ == "pk.helper"
