"""Rankings of ties alone train nothing, but their annotators have said something."""

from __future__ import annotations

from pathlib import Path

import pytest
from data_files import Files, account, byte_tokenizer

from orchestrator.results.agreement import annotator_agreement
from orchestrator.session.sources import left_out


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_tokenizer(tmp_path_factory.mktemp("checkpoint"))


def test_agreement_counts_the_pairs_that_annotators_call_equal(
    tmp_path: Path, checkpoint: Path
) -> None:
    # prompt -> what ann and bob say; they agree on four of six
    said = {"1": "aa", "2": "bb", "3": "==", "4": "==", "5": "a=", "6": "ab"}
    ranks = {"a": [1, 2], "b": [2, 1], "=": [1, 1]}
    rows = [
        {"prompt": f"p{n}", "completions": ["x", "y"], "ranks": ranks[label], "annotator": who}
        for n, labels in said.items()
        for who, label in zip(("ann", "bob"), labels, strict=True)
    ]
    nobody = {"prompt": "p7", "completions": ["x", "y"], "ranks": [1, 1]}
    source = Files(tmp_path, checkpoint)(rankings=[*rows, nobody])
    train, heldout = source.rankings("train"), source.rankings("heldout")
    assert train is not None
    assert heldout is not None
    assert len(train) + len(heldout) == 7, "five ties are nothing to train or measure on"
    assert all(len(set(ranking.ranks.tolist())) == 2 for ranking in [*train, *heldout])
    counted = account(source, "rankings")
    assert (counted.read, counted.dropped["every completion ties"]) == (13, 6)
    found = annotator_agreement([*source.ties(), *train, *heldout])
    assert found is not None
    assert (found.rate, found.judgements, found.annotators) == (4 / 6, 6, 2)


def test_a_source_of_other_kinds_has_no_ties(tmp_path: Path, checkpoint: Path) -> None:
    rows = [{"prompt": f"p{i}", "completion": "x"} for i in range(20)]
    assert Files(tmp_path, checkpoint)(demonstrations=rows).ties() == []


def test_the_notes_of_a_run_list_columns_that_nothing_reads(
    tmp_path: Path, checkpoint: Path
) -> None:
    rows = [
        {"prompt": f"p{i}", "completions": ["x", "y"], "better": i % 2, "lang": "en"}
        for i in range(20)
    ]
    notes = left_out(Files(tmp_path, checkpoint)(rankings=rows))
    assert "rankings: columns that nothing reads: lang" in notes
    assert any(
        note.startswith('rankings: labels in "better": 0 = the first completion') for note in notes
    )
