"""Each figure of a run folder that may be absent is listed, and no other is absent silently."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fuzz.empty_figures import may_be_gone, vanishing
from fuzz.report_folders import shown, whole_folder
from orchestrator.report import build as report
from orchestrator.run_files.folder import RunFolder

_GONE = "gone"


def _nodes(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    entries = value.items() if isinstance(value, dict) else enumerate(value)
    for key, each in entries:
        yield (*path, str(key)), each
        if isinstance(each, (dict, list)):
            yield from _nodes(each, (*path, str(key)))


def _altered(text: str, path: tuple[str, ...], value: Any) -> str:
    plain = node = json.loads(text)
    for key in path[:-1]:
        node = node[int(key) if isinstance(node, list) else key]
    key = int(path[-1]) if isinstance(node, list) else path[-1]
    if value == _GONE:
        del node[key]
    else:
        node[key] = value
    return json.dumps(plain)


@pytest.mark.parametrize("value", [None, [], {}, _GONE])
@pytest.mark.parametrize("name", ["summary.json", "samples/comparison.json"])
def test_what_is_absent_is_damage_or_listed_and_no_longer_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    monkeypatch.setattr("orchestrator.report.charts.plots.draw_plots", lambda *_: {})
    folder = RunFolder(whole_folder(tmp_path / "run"))
    intact = shown(report.write_report(RunFolder(shutil.copytree(folder.path, tmp_path / "all"))))
    text = (folder.path / name).read_text()
    for path, before in _nodes(json.loads(text)):
        if value == _GONE and path[-1].isdecimal():  # one entry less of a list, or K
            continue
        (folder.path / name).write_text(_altered(text, path, value))
        made = report.write_report(folder)
        if value == _GONE:
            assert made.damage or may_be_gone(path), path
            continue
        gone = vanishing(path, before, value)
        assert (gone is None) == bool(made.damage), (path, made.damage)
        if gone:
            assert gone in intact, path
            assert gone not in shown(made), path
