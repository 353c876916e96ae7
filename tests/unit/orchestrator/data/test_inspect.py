from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path

import pytest
from fakes.chat import byte_tokenizer

from orchestrator.data.command import main, parse_columns
from orchestrator.data.inspection import (
    Inspection,
    Seen,
    buckets,
    inspect,
    measure_characters,
    quantile,
)
from orchestrator.data.view import follow
from workers.data.formats.lines import Meter
from workers.data.rows.examples import Comparison, PromptExample, Rejected
from workers.errors import ConfigError

PAIRS = [{"question": "q" * n, "answer": "a"} for n in (1, 2, 3, 4, 40)]


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text(
        "".join(json.dumps(row) + "\n" for row in [*PAIRS, {"question": " ", "answer": "a"}])
    )
    return path


def test_the_report_in_characters(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(rows), "--samples", "1"]) == 0
    out = capsys.readouterr().out
    for text in ("demonstrations", "5 (83.3%)", "empty prompt", "prompt characters", "⟦a⟧"):
        assert text in out
    assert "\x1b" not in out, "no escape codes in a pipe"


@pytest.mark.parametrize("name", ["[red]x.jsonl", "[/red]x.jsonl", ":smile:.jsonl"])
def test_paths_are_shown_as_they_are(
    rows: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (rows.parent / name).parent.mkdir(exist_ok=True)
    rows.rename(rows.parent / name)
    monkeypatch.chdir(rows.parent)  # a long path is folded
    assert main(["inspect", name, "--samples", "1"]) == 0
    out = "".join(line.strip() for line in capsys.readouterr().out.splitlines())
    assert out.count(name) == 3, "the data set, the first drop and the sample"


def test_a_path_is_shown_as_it_is_while_a_bar_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    stream = io.StringIO()
    inspection = Inspection("prompts", "characters")
    steps = inspect([PromptExample("p", "F:1")], inspection, measure_characters)
    follow(steps, Meter(), "[/red]x.jsonl", stream)
    assert "[/red]x.jsonl" in stream.getvalue()


def test_the_report_in_tokens(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    byte_tokenizer().save_pretrained(tmp_path / "tokenizer")
    options = ["--tokenizer", str(tmp_path / "tokenizer"), "--max-prompt-tokens", "26"]
    assert main(["inspect", str(rows), *options]) == 0
    out = capsys.readouterr().out
    # a prompt of ChatML is 20 tokens and the question; the question of 40 is over the limit
    for text in ("prompt over 26 tokens", "longest 23", "⟦a<|im_end|>⟧", "<|im_start|>user"):
        assert text in out


def test_the_kind_is_told_by_the_first_good_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    bad = '{"prompt": NaN}\n{"unknown": 1}\n'
    path.write_text(bad + "".join(json.dumps(row) + "\n" for row in PAIRS))
    assert main(["inspect", str(path)]) == 3
    capsys.readouterr()
    assert main(["inspect", str(path), "--on-bad-line", "drop"]) == 0
    out = capsys.readouterr().out
    for text in ("demonstrations", "bad line", "2 (28.6%)", "5 (71.4%)"):
        assert text in out
    path.write_text(bad)
    assert main(["inspect", str(path), "--on-bad-line", "drop"]) == 3
    assert '"prompt" is NaN' in capsys.readouterr().err


def test_kind_columns_and_limit(rows: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["inspect", str(rows), "--kind", "pretraining", "--limit", "2", "--samples", "0"]
    assert main([*arguments, "--columns", "text=question"]) == 0
    out = capsys.readouterr().out
    assert "document characters: median 1" in out
    assert "2 (100.0%)" in out
    assert main(arguments) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["none.jsonl"], 3, "cannot open"),
        (["bad.jsonl"], 3, "bad.jsonl:1"),
        (["bad.jsonl", "--kind", "prompts"], 3, "bad.jsonl:1"),
        (["rows.jsonl", "--columns", "promt=question"], 2, "did you mean 'prompt'"),
        (["rows.jsonl", "--columns", "prompt"], 2, "maps no column"),
        (["rows.jsonl", "--tokenizer", "none"], 4, "no checkpoint folder"),
    ],
)
def test_errors_are_told_without_a_traceback(
    rows: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    (rows.parent / "bad.jsonl").write_text('{"prompt": NaN}\n')
    assert main(["inspect", str(rows.parent / arguments[0]), *arguments[1:]]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
    assert "fix: " in error
    assert "Traceback" not in error


def test_columns_of_the_command_line() -> None:
    assert parse_columns(["prompt=a.b", "scores=c, d"]) == {"prompt": "a.b", "scores": ["c", "d"]}
    with pytest.raises(ConfigError):
        parse_columns(["=x"])


def test_counts_of_pairs_and_drops() -> None:
    ranked = [
        Comparison("p", tuple("abcd"), ranks, "F:1") for ranks in ((1, 2, 2, 3), (1, 1, 1, 2))
    ]
    inspection = Inspection("comparisons", "characters")
    rows = [*ranked, Rejected("no use", "F:3"), Rejected("no use", "F:4")]
    list(inspect(rows, inspection, measure_characters))
    assert (inspection.pairs, inspection.tied_pairs) == (5 + 3, 1 + 3)
    assert (inspection.read, inspection.usable) == (4, 2)
    assert inspection.drops == {"no use": 2}
    assert inspection.first_drop == {"no use": "F:3"}


def test_samples_are_drawn_from_the_whole_data_set() -> None:
    inspection = Inspection("prompts", "characters", samples_wanted=3)
    list(inspect((PromptExample("p", str(i)) for i in range(2000)), inspection, measure_characters))
    assert len({sample.where for sample in inspection.samples}) == 3
    assert all(isinstance(sample, Seen) for sample in inspection.samples)
    assert max(int(sample.where) for sample in inspection.samples) > 3


def test_quantiles_and_buckets() -> None:
    lengths = Counter({0: 1, 1: 1, 5: 7, 8: 1})
    assert [quantile(lengths, share) for share in (0.1, 0.2, 0.5, 0.9, 0.91, 1.0)] == [
        0,
        1,
        5,
        5,
        8,
        8,
    ]
    assert buckets(lengths) == [(0, 0, 1), (1, 1, 1), (2, 3, 0), (4, 7, 7), (8, 15, 1)]
    assert buckets(Counter()) == []


@pytest.mark.parametrize("number", ["-1", "9" * 25, "1.5", "many"])
def test_a_limit_that_no_count_has_is_refused(tmp_path: Path, number: str) -> None:
    with pytest.raises(SystemExit) as left:
        main(["inspect", str(tmp_path / "rows.jsonl"), "--limit", number])
    assert left.value.code == 2
