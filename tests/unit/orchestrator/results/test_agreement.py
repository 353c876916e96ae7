"""Agreement of annotators, also on rankings of ties alone, which train nothing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from data_files import Files, account, byte_tokenizer

from orchestrator.results.agreement import (
    annotator_agreement,
    fleiss_kappa,
    krippendorff_alpha,
    ordinal_distances,
)
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


@pytest.mark.parametrize("seed", range(5))
def test_ordinal_alpha_equals_that_of_the_reference_package(seed: int) -> None:
    krippendorff = pytest.importorskip("krippendorff")
    rng = np.random.default_rng(seed)
    table = rng.integers(1, 8, size=(4, 30)).astype(float)
    table[1:] = np.where(rng.random((3, 30)) < 0.5, table[0], table[1:])
    table[rng.random(table.shape) < 0.3] = np.nan
    units = [[int(v) for v in column if not np.isnan(v)] for column in table.T]
    expected = krippendorff.alpha(table, level_of_measurement="ordinal")
    assert krippendorff_alpha(units, ordinal_distances(units)) == pytest.approx(expected, rel=1e-9)
    nominal = krippendorff.alpha(table, level_of_measurement="nominal")
    assert krippendorff_alpha(units) == pytest.approx(nominal, rel=1e-9)


def test_fleiss_kappa_of_the_published_example() -> None:
    # 10 units, 14 observers, 5 values: kappa .210 (P = .378, P_e = .213)
    table = [
        (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
        (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
    ]  # fmt: skip
    units = [[value for value, n in enumerate(row) for _ in range(n)] for row in table]
    assert fleiss_kappa(units) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa([[1, 1], [1, 1]]) is None
    assert fleiss_kappa([[1], []]) is None
