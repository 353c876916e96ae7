"""Samples as they are read back."""

from __future__ import annotations

import json
from pathlib import Path

from orchestrator.run_files.damage import Damage
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import read_comparisons


def test_a_gold_score_without_a_response_is_damage(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run").create()
    good = {"prompt": "q", "responses": {"sft": "a"}, "gold": {"sft": 1.0}}
    bad = {"prompt": "q", "responses": {"sft": "a"}, "gold": {"ppo": 1.0}}
    (folder.samples / "comparison.json").write_text(json.dumps([good, bad]))
    damage = Damage()
    assert [each.gold for each in read_comparisons(folder, damage)] == [{"sft": 1.0}]
    (note,) = damage.notes()
    assert "entry 2" in note
    assert "'ppo', which has no response" in note
