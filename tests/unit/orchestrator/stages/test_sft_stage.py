"""Supervised fine-tuning over fakes: what each optimizer step reads, and how many there are."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fakes.session import Run, small_config

from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import SFTConfig
from orchestrator.stages.sft import sft
from workers.errors import EmptyDatasetError


def config(**settings: object) -> Config:
    optimizer = OptimizerConfig(warmup_steps=1)
    return dataclasses.replace(
        small_config(),
        sft=SFTConfig(demonstrations_per_step=10, optimizer=optimizer, **settings),
    )


def batches(run: Run) -> list[list[np.ndarray]]:
    """Token rows of each optimizer step, over all ranks and micro-batches."""
    return [
        [row for share in facts["steps"] for b in share.micro_batches for row in b.tokens.rows()]
        for facts in run.hub.facts("policy.train_supervised")
    ]


def as_set(rows: list[np.ndarray]) -> set[tuple[int, ...]]:
    return {tuple(row.tolist()) for row in rows}


def test_a_share_of_each_step_is_pretraining_text(tmp_path: Path) -> None:
    run = Run(tmp_path, config(steps=3, pretraining_fraction=0.2))
    sft(run.session)
    assert run.source.documents == [("train", 0, 2), ("train", 2, 2), ("train", 4, 2)]
    for step, rows in enumerate(batches(run)):
        assert len(rows) == 10
        text = as_set(list(run.source.pretraining("train", 2 * step, 2).tokens.rows()))
        replies = as_set(list(run.source.demonstrations("train", 8 * step, 8).tokens.rows()))
        assert as_set(rows) == text | replies


def test_every_token_of_the_text_counts_and_of_a_demonstration_its_reply(tmp_path: Path) -> None:
    run = Run(tmp_path, config(steps=2, pretraining_fraction=0.2))
    sft(run.session)
    counted = [facts["steps"][0].tokens for facts in run.hub.facts("policy.train_supervised")]
    text = run.source.pretraining("train", 0, 2).target_count
    replies = run.source.demonstrations("train", 0, 8).target_count
    assert counted[0] == text + replies


@pytest.mark.parametrize("apart", [True, False])
def test_demonstrations_share_rows_where_they_do_not_see_each_other(
    tmp_path: Path, apart: bool
) -> None:
    settings = config(steps=2, pack_tokens=64, pretraining_fraction=0.2)
    settings.trainer.micro_batch_tokens = 64
    run = Run(tmp_path, settings)
    run.hub.keeps_documents_apart = apart
    sft(run.session)
    assert len(run.hub.facts("policy.shares_rows")) == 1  # not in every step
    steps = [
        [batch for share in facts["steps"] for batch in share.micro_batches]
        for facts in run.hub.facts("policy.train_supervised")
    ]
    for micro_batches in steps:
        assert all((batch.positions is not None) == apart for batch in micro_batches)
        assert (sum(map(len, micro_batches)) < 10) == apart
        # no micro-batch is larger than the budget, as the trainer lays it out
        assert all(len(b) * b.tokens.lengths.max() <= 64 for b in micro_batches)


@pytest.mark.parametrize("together", [0, 64])
@pytest.mark.parametrize("apart", [True, False])
def test_pretraining_text_in_full_rows(tmp_path: Path, apart: bool, together: int) -> None:
    settings = config(
        steps=3, pretraining_fraction=0.2, pretraining_full_rows=True, pack_tokens=together
    )
    settings.pretrain.row_tokens = 50
    run = Run(tmp_path, settings)
    run.hub.keeps_documents_apart = apart
    sft(run.session)
    stream = run.source.pretraining("train", 0, 100).tokens.values
    for step, rows in enumerate(batches(run)):
        text = {tuple(stream[50 * i : 50 * (i + 1)].tolist()) for i in (2 * step, 2 * step + 1)}
        assert text <= as_set(rows)
        replies = run.source.demonstrations("train", 8 * step, 8).tokens.values
        assert sum(map(len, rows)) == 2 * 50 + len(replies)
        assert (len(rows) < 10) == (apart and together > 0)


def test_without_a_share_no_document_is_read(tmp_path: Path) -> None:
    run = Run(tmp_path, config(steps=2))
    sft(run.session)
    assert not run.source.documents


def test_passes_over_the_demonstrations_set_the_steps(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path, config(steps=99, epochs=2))
    monkeypatch.setattr(run.source, "demonstration_count", lambda: 17)
    sft(run.session)
    assert len(batches(run)) == 4  # 34 rows in steps of 10
    assert run.hub.facts("policy.load")[0]["spec"].optimizer.total_steps == 4
    assert [r.step for r in run.metrics() if r.name == "sft/validation_loss"] == [4]


def test_passes_that_end_within_the_warm_up_cut_it(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path, config(epochs=1))
    monkeypatch.setattr(run.source, "demonstration_count", lambda: 10)
    notes: list[str] = []
    monkeypatch.setattr(run.session.live, "note", notes.append)
    sft(run.session)
    assert (
        notes[0] == "sft.optimizer.warmup_steps=1 is cut to 0: training takes 1 optimizer step(s)"
    )
    assert run.hub.facts("policy.load")[0]["spec"].optimizer.warmup_steps == 0


def test_dropout_reaches_the_trainers(tmp_path: Path) -> None:
    run = Run(tmp_path, config(steps=2, dropout=0.2))
    sft(run.session)
    assert run.hub.facts("policy.load")[0]["spec"].dropout == 0.2


def test_the_model_is_published_before_it_is_measured(tmp_path: Path, monkeypatch) -> None:
    run = Run(tmp_path, config(steps=2))

    def no_held_out(*_: object) -> object:
        raise EmptyDatasetError("no usable row for 'heldout'")

    train = run.source.demonstrations
    monkeypatch.setattr(
        run.source,
        "demonstrations",
        lambda split, *place: (train if split == "train" else no_held_out)(split, *place),
    )
    with pytest.raises(EmptyDatasetError):
        sft(run.session)
    assert (run.folder.checkpoints / "sft").is_dir()
