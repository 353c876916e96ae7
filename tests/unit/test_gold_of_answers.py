"""Gold scores of two models' answers, compared prompt by prompt."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.gold_of_answers import differences, interval
from workers.pocket.source import PocketSource


def test_the_difference_is_that_of_each_prompt(tmp_path: Path) -> None:
    source = PocketSource(0, 0.0, 0.0)
    prompts = source.prompts("heldout", 0, 3)
    rude, polite = "shut up you fool .", "i do not know . thank you ."
    rows = [
        {"id": n, "prompt": prompt.context, "answers": {"a": polite, "b": rude if n else polite}}
        for n, prompt in enumerate(prompts)
    ]
    (tmp_path / "samples").mkdir()
    path = tmp_path / "samples" / "answers.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    # no gold for either; politeness is worth .5, rudeness -2 (workers/pocket/labeler.py)
    assert differences(tmp_path, "a", "b") == pytest.approx([0.0, 2.5, 2.5])


def test_the_interval_is_that_of_a_mean() -> None:
    mean, low, high = interval([1.0, 2.0, 3.0], 2.0)
    assert mean == 2.0
    assert (low, high) == pytest.approx((2 - 2 / 3**0.5, 2 + 2 / 3**0.5))
