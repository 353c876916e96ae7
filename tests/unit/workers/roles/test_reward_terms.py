"""A reward of several terms: configuration, plan, and what a worker returns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed

from orchestrator.config.schema import Config
from orchestrator.planning.checks.scoring import check_reward, check_sft_choice
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.stages.ppo.record import Marks, term_values
from orchestrator.stages.ppo.scores import Scoring
from workers.data.rows.asked import Asked
from workers.errors import ConfigError, RehearsalError
from workers.pocket.tokenizer import build_tokenizer
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.training import Scores
from workers.roles.reward import RewardWorker
from workers.scorers.source import Needs

TERMS = """
from dataclasses import dataclass
import numpy as np
from workers.scorers.source import Needs, RewardSource, Scored

@dataclass(kw_only=True)
class Settings:
    word: str
    column: str = ""
    seconds: float = 1.0

def make(settings, spec):
    def score(batch):
        values = np.array([float(settings.word in each.response) for each in batch.texts])
        failed = [each.response == settings.word for each in batch.texts]
        return Scored(values, ["too short" if each else "" for each in failed])
    return score

def needs(settings):
    columns = (settings.column,) if settings.column else ()
    return Needs(seconds=settings.seconds, columns=columns)

SOURCE = RewardSource(Settings, make, needs)
"""
OWL = ("reward.terms.owl.kind=words_of:SOURCE", "reward.terms.owl.word=owl",
       "reward.terms.owl.weight=2")  # fmt: skip
MICE = ("reward.terms.mice.kind=words_of:SOURCE", "reward.terms.mice.word=mice")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "words_of.py").write_text(TERMS)
    build_tokenizer().save_pretrained(tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("words_of", None)


def config(*overrides: str) -> Config:
    return composed("+experiment=pocket_tiny", *overrides)


def score(run: Config, folder: Path, responses: list[str]) -> Scores:
    worker = RewardWorker(0)
    worker.load(reward_spec(run, "", str(folder / "policy")))
    tokenizer, count = build_tokenizer(), len(responses)
    ends = [
        [*tokenizer(each, add_special_tokens=False).input_ids, tokenizer.eos_token_id]
        for each in responses
    ]
    batch = RolloutBatch(
        np.arange(count), np.zeros(count, np.int64),
        Ragged.from_rows([[1, *e] for e in ends], np.int32),
        np.ones(count, np.int64), Ragged.from_rows([np.zeros(len(e)) for e in ends], np.float32),
        np.full(count, Finish.STOP), np.zeros((count, 2), np.int64),
    )  # fmt: skip
    return worker.score(batch.ids, [batch], [Asked(0, "?", "?")])


def test_terms_are_summed_by_weight_and_each_is_kept(folder: Path) -> None:
    found = score(config(*OWL, *MICE), folder, ["the owl eats mice", "owl .", "mice", "fish ."])
    np.testing.assert_array_equal(found.values, np.float32([3.0, 2.0, np.nan, 0.0]))
    assert found.failures == ("", "", "mice: too short", "")
    assert found.terms is not None
    assert found.terms.names == ("owl", "mice")
    np.testing.assert_array_equal(found.terms.of("owl"), np.float32([1, 1, 0, 0]))
    np.testing.assert_array_equal(found.terms.of("mice"), np.float32([1, 0, np.nan, 0]))
    values = term_values(found, "ppo")
    assert values["ppo/reward/owl"] == 0.5
    assert values["ppo/reward_failed/mice"] == 1.0
    marks = Marks().with_terms(found)
    assert marks.terms[2] == {"owl": 0.0, "mice": None}


def test_a_term_of_weight_zero_fails_no_sequence(folder: Path) -> None:
    run = config(*OWL, *MICE, "reward.terms.mice.weight=0")
    found = score(run, folder, ["mice", "the owl"])
    assert found.failures == ("", "")
    np.testing.assert_array_equal(found.values, np.float32([0.0, 2.0]))


def test_one_term_scores_as_the_same_source_alone_does(folder: Path) -> None:
    texts = ["the owl eats mice", "fish ."]
    alone = score(config("reward.kind=words_of:SOURCE", "reward.settings.word=owl"), folder, texts)
    one = score(config(OWL[0], OWL[1]), folder, texts)
    np.testing.assert_array_equal(alone.values, one.values)
    assert alone.terms is None


@pytest.mark.parametrize(
    ("overrides", "where", "said"),
    [
        (["reward.terms.a.weight=2"], "reward.terms.a.kind", "no kind"),
        ([*OWL, "reward.terms.owl.weight=nan"], "reward.terms.owl.weight", "finite"),
        ([*OWL, "reward.terms.owl.weight=heavy"], "reward.terms.owl.weight", "finite"),
        ([*OWL, "reward.terms.owl.weight=0"], "reward.terms", "weight 0"),
        ([*OWL, "reward.terms.owl.wort=b"], "reward.terms.owl.wort", "unknown key"),
        ([OWL[0]], "reward.terms.owl.word", "is not set"),
        (["reward.terms.a.kind=modell"], "reward.terms.a.kind", "no reward source"),
        ([*OWL, "reward.terms.owl.bridge=text"], "reward.terms.owl.bridge", "whole reward"),
        ([*OWL, "reward.settings.word=b"], "reward.settings", "beside terms"),
        (["reward.combine=normalised"], "reward.combine", "several terms"),
        (["reward.terms.9a.kind=model"], "reward.terms", "cannot name"),
        (["reward.terms.a=3"], "reward.terms.a", "is no term"),
        ([*OWL, "reward.terms.owl.column=answer"], "data.keep_columns", "'answer'.*not kept"),
        ([*OWL, "reward.terms.owl.seconds=1e6"], "reward.terms.owl.kind", "per batch"),
        (
            ["reward.terms.a.kind=model", "reward.terms.b.kind=model"],
            "reward.terms.b",
            "reward.terms.a and reward.terms.b both",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_the_plan(
    folder: Path, overrides: list[str], where: str, said: str
) -> None:
    with pytest.raises(RehearsalError, match=said) as caught:
        check_reward(config(*overrides))
    assert caught.value.where == where


def test_weights_of_sft_cannot_be_chosen_by_columns(folder: Path) -> None:
    terms = (*OWL, "reward.terms.owl.column=answer", "reward.terms.rm.kind=model")
    run = config(
        *terms, "data.keep_columns=[answer]", "sft.keep_best=reward_model", "stages=[sft]",
        "sft.keep_best_every=2",
        "model.checkpoints.base=B", "model.checkpoints.reward_model=R",
    )  # fmt: skip
    with pytest.raises(ConfigError, match="reads the column 'answer'") as caught:
        check_sft_choice(run)
    assert caught.value.where == "sft.keep_best"


def test_needs_are_joined(folder: Path) -> None:
    run = config(*OWL, *MICE, "reward.terms.mice.seconds=5", "reward.terms.rm.kind=model")
    needs = run.reward.needs
    assert isinstance(needs, Needs)
    assert (needs.text, needs.model, needs.seconds) == (True, True, 5.0)
    assert needs.seconds_where == "reward.terms.mice.kind"


@pytest.mark.parametrize(
    ("more", "wanted"),
    [([], 0.5 * 3.0 * 2.0), (["reward.combine=normalised"], 0.5 * 3.0)],
)
def test_a_cut_response_loses_deviations_of_the_weighted_reward_model(
    folder: Path, more: list[str], wanted: float
) -> None:
    run = config(*OWL, "reward.terms.rm.kind=model", "reward.terms.rm.weight=0.5",
                 "algorithm.missing_eos_penalty=3", *more)  # fmt: skip
    ledger: Any = None
    assert Scoring(run, ledger, deviation=2.0).penalty() == wanted


def test_a_function_of_a_term_is_found_and_named_by_its_key(folder: Path) -> None:
    run = config("reward.terms.own.kind=function", "reward.terms.own.function=mine:score")
    (code,) = run.reward.needs.code
    assert (code.path, code.where) == ("mine:score", "reward.terms.own.function")
    assert reward_spec(run, "", "policy").terms[0].settings["function_retries"] == 1
    bad = config("reward.terms.own.kind=function", "reward.terms.own.function=mine:score",
                 "reward.terms.own.function_seconds=-1")  # fmt: skip
    with pytest.raises(ConfigError, match="at least 0"):
        _ = bad.reward.needs
