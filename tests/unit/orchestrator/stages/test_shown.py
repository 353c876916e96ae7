"""The texts that SFT and the reward model show where no evaluation follows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from fakes import ToyPolicy, ToyScalar
from fakes.session import Run, small_config

from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.schema import Config
from orchestrator.config.training import SFTBest, SFTConfig
from orchestrator.run_files.samples import Comparison, add_comparisons, read_comparisons
from orchestrator.stages.reward_model import reward_model
from orchestrator.stages.sft import sft
from orchestrator.stages.shown import show_scores
from workers.records.arrays import Ragged
from workers.records.training import Ranking


def config(*stages: str, **settings: object) -> Config:
    optimizer = OptimizerConfig(warmup_steps=1)
    return dataclasses.replace(
        small_config(),
        stages=list(stages),
        sft=SFTConfig(steps=3, demonstrations_per_step=10, optimizer=optimizer, **settings),
        evaluate=dataclasses.replace(small_config().evaluate, samples_shown=2),
    )


def greedy(model: ToyPolicy, prompt: np.ndarray, stop: int, limit: int) -> list[int]:
    table, last, found = model.logits(np.arange(len(model.weights))), int(prompt[-1]), []
    while len(found) < limit and (last := int(table[last].argmax())) != stop:
        found.append(last)
    return found


def test_sft_alone_shows_its_answers_beside_the_demonstrations(tmp_path: Path) -> None:
    run = Run(tmp_path, config("sft"))
    sft(run.session)
    model = ToyPolicy.load(run.session.need("sft"))
    rows, stop = run.source.demonstrations("heldout", 0, 2), run.source.tokenizer.eos_token_id
    shown = read_comparisons(run.folder)
    assert len(shown) == 2
    limit = run.session.config.rollout.max_response_tokens
    for each, tokens, targets in zip(shown, rows.tokens.rows(), rows.targets.rows(), strict=True):
        start = int(targets.argmax())
        assert each.prompt == run.source.detokenize(tokens[:start].tolist())
        answer = greedy(model, tokens[:start], stop, limit)
        assert each.responses == {
            "demonstration": run.source.detokenize(tokens[start:-1].tolist()),
            "sft": run.source.detokenize(answer),
        }


def test_of_weights_that_are_compared_those_that_are_published_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(
        "orchestrator.stages.selection.sft_candidates.supervised.mean_loss",
        lambda *_: next(losses),
    )
    told: list[np.ndarray] = []
    plain = ToyPolicy.logits
    run = Run(tmp_path, config("sft", keep_best=SFTBest.loss, keep_best_every=1))
    monkeypatch.setattr(
        ToyPolicy, "logits",
        lambda self, at: (told.append(self.weights.detach().numpy().copy()), plain(self, at))[1],
    )  # fmt: skip
    sft(run.session)
    assert len(run.hub.facts("policy.complete")) == 2  # after steps 1 and 2, not after 3
    published = ToyPolicy.load(run.session.need("sft")).weights.detach().numpy()
    assert published in np.array(told)


@pytest.mark.parametrize("stage", [sft, reward_model])
def test_an_evaluation_shows_the_answers_itself(tmp_path: Path, stage) -> None:
    run = Run(tmp_path, config("sft", "reward_model", "evaluate"))
    stage(run.session)
    assert read_comparisons(run.folder) == []
    assert run.hub.facts("policy.complete") == []


def test_a_reward_model_alone_shows_held_out_rankings_with_its_scores(tmp_path: Path) -> None:
    run = Run(tmp_path, config("reward_model"))
    reward_model(run.session)
    first, *_ = shown = read_comparisons(run.folder)
    assert len(shown) == 2
    assert len({each.prompt for each in shown}) == 2
    assert [name.split(",")[0] for name in first.responses] == sorted(
        name.split(",")[0] for name in first.responses
    )
    facts = run.hub.facts("critic.evaluate_rankings")[0]
    ranking = facts["steps"][0].micro_batches[0][0]
    model = ToyScalar.load(run.session.need("reward_model"), "keep")  # with its bias
    rows = [row.tolist() for row in ranking.sequences.rows()]
    scores = [float(model.prefix_values(row)[-1].detach()) for row in rows]
    assert sorted(first.scores.values()) == pytest.approx(sorted(scores))


def test_ties_get_names_of_their_own(tmp_path: Path) -> None:
    run = Run(tmp_path, config("reward_model"))
    rows = Ragged.from_rows([[1, 3, 4], [1, 3, 5], [1, 3, 6], [1, 3, 7]], "i4")
    ranking = Ranking(0, rows, np.array([2, 1, 2, 3]), prompt_length=2)
    again = dataclasses.replace(ranking, annotator="second")
    unknown = dataclasses.replace(ranking, prompt_id=1, prompt_length=0)
    scores = np.array([0.5, 2.0, -0.5, -1.0], np.float32)
    show_scores(run.session, [ranking, again, unknown], [scores] * 3)
    (only,) = read_comparisons(run.folder)
    assert list(only.scores.items()) == [
        ("rank 1", 2.0), ("rank 2", 0.5), ("rank 2, tied 2", -0.5), ("rank 3", -1.0),
    ]  # fmt: skip
    assert list(only.responses.values()) == [run.source.detokenize([n]) for n in (5, 4, 6, 7)]


def test_what_is_shown_again_replaces_itself_alone(tmp_path: Path) -> None:
    run = Run(tmp_path, config("sft"))
    other = Comparison("q ?", {"rank 1": "a"}, scores={"rank 1": 1.0})
    for answer in ("first", "second"):
        add_comparisons(run.folder, [other, Comparison("q ?", {"sft": answer})])
    assert read_comparisons(run.folder) == [other, Comparison("q ?", {"sft": "second"})]
