"""The mutants themselves: that they can be made, and change what they say."""

from __future__ import annotations

from pathlib import Path

from mutants import listed, targets
from mutants.operators import mutants

ROOT = Path(__file__).parents[2]
SOURCE = '''"""Words 1."""
import b


def f(x: int, y: "1" = 2) -> int | None:
    """More words 1."""
    if x < y and not b.ready:
        raise ValueError(1 + 1)
    z: int | None = min(x, y)
    b.log(z)
    return b.make(z=x, y=b.y)[:-1]
'''


def test_every_listed_mutant_is_in_its_file() -> None:
    # A changed line needs its mutant changed with it: `replaced` says which text is gone.
    found = listed.mutants_of(ROOT)
    assert len({m.key for m in found}) == len({m.name for m in found}) == len(found) > 70
    assert {m.path for m in found} <= set(targets.TESTS)


def test_every_target_and_its_tests_are_there() -> None:
    for path, tests in targets.TESTS.items():
        assert (ROOT / path).is_file()
        assert tests
        assert all((ROOT / test).is_file() for test in tests)


def test_generated_mutants_change_one_place(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text(SOURCE)
    after = {f"{m.line} {m.before} -> {m.after}" for m in mutants(tmp_path, "a.py")}
    assert after == {
        "7 x < y and not b.ready -> x < y or not b.ready",
        "7 x < y -> x <= y",
        "7 not b.ready -> b.ready",
        "9 min(x, y) -> max(x, y)",
        "10 b.log(z) -> pass",
        "11 b.make(z=x, y=b.y) -> b.make(z=b.y, y=x)",
        "11 -1 -> 1",
        "11 1 -> 2",
    }


def test_every_mutant_that_is_called_equivalent_can_be_made() -> None:
    for path, part, _ in targets.EQUIVALENT:
        lines = (m.source.splitlines()[m.line - 1] for m in mutants(ROOT, path))
        assert any(part in line for line in lines), (path, part)
