import contextlib
import time
from pathlib import Path

import pytest

from fuzz.frame import Case, judge
from fuzz.kinds import COUNTS, run_kind
from workers.errors import ConfigError

SMOKE = 20  # cases of each kind in the default suite; `make fuzz` runs all of them


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize("kind", sorted(COUNTS))
def test_no_hostile_input_ends_untyped_hangs_or_is_accepted_without_a_reason(
    kind: str, tmp_path: Path
) -> None:
    tally = run_kind(kind, seed=1, count=min(SMOKE, COUNTS[kind]), folder=tmp_path)
    assert len(tally.results) == min(SMOKE, COUNTS[kind])
    assert [f"{each.case.name}: {each.detail}" for each in tally.faults] == []


def test_outcomes_are_told_apart() -> None:
    assert judge(Case("typed", lambda: _raise(ConfigError("no such key")))).outcome == "typed"
    untyped = judge(Case("untyped", lambda: _raise(KeyError("model"))))
    assert (untyped.outcome, untyped.fault) == ("untyped", True)
    assert "KeyError at test_fuzz.py" in untyped.detail
    assert judge(Case("mute", lambda: _raise(ConfigError(" ")))).outcome == "untyped"
    silent = judge(Case("accepted", lambda: None))
    assert (silent.outcome, silent.fault) == ("accepted", True)
    assert not judge(Case("accepted", lambda: None, "a comment")).fault


def test_a_case_without_an_answer_is_a_hang() -> None:
    def swallows() -> None:
        while True:
            with contextlib.suppress(Exception):
                time.sleep(5)

    assert judge(Case("waits", swallows), seconds=0.2).outcome == "hang"
