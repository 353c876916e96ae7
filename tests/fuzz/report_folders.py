"""Run folders that were damaged: cut, mixed up, overwritten, or never whole.

A report is accepted only if it says what it does not show, or nothing is lost by the damage.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fuzz.empty_figures import MEASURED, may_be_gone, vanishing
from fuzz.frame import Case
from orchestrator.process.printing import rendered
from orchestrator.report.build import Report, write_report
from orchestrator.report.page import render_page  # noqa: F401  imported before the clock runs
from orchestrator.report.tables import render_result
from orchestrator.results.summary import write_summary
from orchestrator.run_files.folder import RunFolder
from orchestrator.run_files.samples import (
    Comparison,
    RolloutSample,
    append_rollouts,
    write_comparisons,
)
from orchestrator.telemetry.metrics import MetricRecord

_SAID = "the page and stderr name the damaged part, the rest is shown"
_SAME = "nothing that a report shows is lost"
_ABSENT = "null or empty where a run has not measured it: the report no longer shows it"
_EARLY = "a run that ended early leaves none, and the report shows what there is"

_FILES = (
    "metrics.jsonl", "summary.json", "config.yaml", "samples/comparison.json",
    "samples/rollouts.jsonl",
)  # fmt: skip
_VALUES: list[Any] = [
    None, True, -1, 10**400, 2**63, 1.5, 1e308, float("nan"), float("inf"), "", "1", "<script>",
    "$\\frac{", "\ud800", "\x00", [], [[]], {}, {"a": 1}, [None] * 3, "x" * 100_000,
]  # fmt: skip


def cases(seed: int, count: int, folder: Path) -> Iterator[Case]:
    """`count` damaged folders."""
    rng = random.Random(seed)
    whole = whole_folder(folder / "whole")
    intact = shown(write_report(RunFolder(shutil.copytree(whole, folder / "shown"))))
    for number in range(count):
        damaged = folder / f"{number:04d}"
        shutil.copytree(whole, damaged)
        name, loses, *gone = _DAMAGES[number % len(_DAMAGES)](damaged, rng)
        assert all(text in intact for text in gone), f"{gone} was never shown"
        yield Case(f"{number}: {name}", _reporting(damaged, loses, gone), loses or _SAID)
        shutil.rmtree(damaged, ignore_errors=True)


def shown(made: Report) -> str:
    """All text that a report shows, on the page and in the terminal."""
    page = made.path.read_text(encoding="utf-8")
    return page + rendered(render_result(made.summary, made.comparisons))


def _reporting(folder: Path, reason: str, gone: Sequence[str]) -> Callable[[], None]:
    def run() -> None:
        made = write_report(RunFolder(folder))
        page = made.path.read_text(encoding="utf-8")
        text = shown(made)
        assert not any(each and each in text for each in gone), f"{gone} is still shown"
        assert not (gone and made.damage), f"not measured is no damage: {made.damage}"
        if not reason:
            assert made.damage, "accepted without a word"
            assert "Damaged parts" in page
        assert "<script>alert" not in page, "text became markup"

    return run


def whole_folder(path: Path) -> Path:
    """A run folder of whose report every figure is measured."""
    folder = RunFolder(path).create()
    names = ("ppo/score_mean", "ppo/kl_sequence", "ppo/busy_seconds/policy",
             "ppo/transfer_seconds/policy", "ppo/waiting_seconds/policy")  # fmt: skip
    records = [
        MetricRecord.make("ppo", step, name, step / 7) for step in range(4) for name in names
    ]
    folder.metrics.write_text("".join(record.to_line() for record in records))
    write_summary(folder, MEASURED)
    evil = "</script><script>alert(1)</script>"
    append_rollouts(
        folder, [RolloutSample("ppo", n, n, evil, "b", 0.5, 0.1, "stop", 1) for n in range(3)]
    )
    compared = Comparison(evil, {"sft": evil}, {"sft": 0.28})
    ranked = Comparison(evil, {"rank 1": evil}, scores={"rank 1": 0.37})
    write_comparisons(folder, [compared, ranked])
    folder.config.write_text("experiment: <b>\nseed: 0\n")
    return path


def _cut(folder: Path, rng: random.Random) -> tuple[str, str]:
    file = folder / rng.choice(_FILES)
    raw = file.read_bytes()
    end = rng.randrange(len(raw))
    file.write_bytes(raw[:end])
    # lines: the last one is what a killed run leaves; YAML: the first keys are a mapping, too
    lines = file.suffix == ".jsonl" and b"\n" in raw[:end]
    return f"{file.name} ends after {end} bytes", _SAME if lines or file.suffix == ".yaml" else ""


def _junk(folder: Path, rng: random.Random) -> tuple[str, str]:
    file = folder / rng.choice(_FILES)
    file.write_bytes(rng.randbytes(rng.choice((1, 100, 10_000))) + b"\n\xff")
    return f"{file.name} is {file.stat().st_size} random bytes", ""


def _inserted(folder: Path, rng: random.Random) -> tuple[str, str]:
    file = folder / rng.choice(("metrics.jsonl", "samples/rollouts.jsonl"))
    lines = file.read_bytes().split(b"\n")
    bad = rng.choice(
        (b"", b"{", b"null", b"[]", b"[" * 100_000, b'{"stage": 1}', b"\xfe\xff", b"9" * 5000)
    )
    at = rng.randrange(len(lines) - 1)
    file.write_bytes(b"\n".join([*lines[:at], bad, *lines[at:]]))
    return f"{file.name}:{at + 1} is {bad[:20]!r}", ""


def _field(folder: Path, rng: random.Random) -> tuple[str, str]:
    file = folder / rng.choice(("metrics.jsonl", "samples/rollouts.jsonl"))
    lines = file.read_text().splitlines()
    at = rng.randrange(len(lines))
    record = json.loads(lines[at])
    key = rng.choice(sorted(record))
    value = rng.choice(_VALUES)
    if rng.random() < 0.3:
        value = "gone"
        del record[key]
    else:
        record[key] = value
    lines[at] = json.dumps(record)
    file.write_text("\n".join(lines) + "\n")
    return f"{file.name}:{at + 1}: {key}={str(value)[:20]!r}", _harmless(record, key, value)


def _harmless(record: dict[str, Any], key: str, value: Any) -> str:
    """A value that such a field can have: as a name, a text, a number, or the default."""
    text = isinstance(value, str) and value != "gone"
    words = key in ("prompt", "response", "stage", "name", "unit", "finish")
    counts = key in ("step", "id", "policy_version")
    whole = isinstance(value, int) and not isinstance(value, bool) and abs(value) <= 2**53
    number = isinstance(value, (int, float)) and not isinstance(value, bool) and value != 10**400
    figures = key in ("score", "kl") or (key == "value" and str(value) not in ("nan", "inf"))
    return (
        "a name or a text that a run may have" if text and words
        else "a number that a run may have" if (whole and counts) or (number and figures)
        else "the default" if key == "timing" and value in ("gone", True)
        else ""
    )  # fmt: skip


def _node(folder: Path, rng: random.Random) -> tuple[str, ...]:
    """One value somewhere in a JSON file becomes another, or is gone."""
    file = folder / rng.choice(("summary.json", "samples/comparison.json"))
    plain = json.loads(file.read_text())
    path: list[str] = []
    node: Any = plain
    while True:
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = rng.choice(list(keys))
        path.append(str(key))
        if not node[key] or not isinstance(node[key], (dict, list)) or rng.random() < 0.3:
            break
        node = node[key]
    if isinstance(node, dict) and rng.random() < 0.3:
        del node[key]
        file.write_text(json.dumps(plain))
        same = "one name less in a table, or a key that is optional" if may_be_gone(path) else ""
        return f"{file.name}: {'/'.join(path)} is gone", same
    value = rng.choice(_VALUES)
    name, before = f"{file.name}: {'/'.join(path)}={str(value)[:20]!r}", node[key]
    node[key] = value
    file.write_text(json.dumps(plain))
    if value is None or value in ([], {}):
        gone = vanishing(path, before, value)
        return (name, "") if gone is None else (name, _ABSENT, gone)
    return name, _like(before, value)


def _like(before: Any, value: Any) -> str:
    finite = isinstance(value, (int, float)) and not isinstance(value, bool)
    finite = finite and value not in (10**400, float("inf")) and value == value
    if isinstance(before, str) and isinstance(value, str):
        return "a name or a text that a run may have"
    if finite and isinstance(before, float):
        return "a number that a run may have"
    if isinstance(before, int) and type(value) is int and abs(value) <= 2**53:
        return "a number that a run may have"
    return ""


def _no_file(folder: Path, rng: random.Random) -> tuple[str, str]:
    file = folder / rng.choice(_FILES)
    kind = rng.choice(("a folder", "a pipe", "a loop", "gone", "unreadable"))
    file.unlink()
    if kind == "a folder":
        file.mkdir()
    elif kind == "a pipe":
        os.mkfifo(file)
    elif kind == "a loop":
        file.symlink_to(file)
    elif kind == "unreadable":
        file.symlink_to("/proc/self/mem")
    early = file.name != "metrics.jsonl" and kind == "gone"
    return f"{file.name} is {kind}", _EARLY if early else ""


def _folder(folder: Path, rng: random.Random) -> tuple[str, str]:
    """The folders and files that the report itself writes."""
    kind = rng.choice(("plots", "report", "samples", "everything", "run", "name"))
    if kind == "plots":
        shutil.rmtree(folder / "plots")
        (folder / "plots").write_text("")
    elif kind == "report":
        (folder / "report.html" / "inside").mkdir(parents=True)
    elif kind == "samples":
        shutil.rmtree(folder / "samples")
        (folder / "samples").write_text("")
        return "samples is a file", _EARLY
    elif kind == "everything":
        for name in _FILES:
            (folder / name).unlink()
    elif kind == "run":
        shutil.rmtree(folder)
        folder.write_text("")
    else:
        (folder / "metrics.jsonl").rename(folder / "metrics.jsonl\udcff")
    return f"{kind} is in the way or gone", ""


_DAMAGES = (_cut, _junk, _inserted, _field, _node, _no_file, _folder, _field, _node, _node)
