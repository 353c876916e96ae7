"""A reward source from outside our packages: the one of the documentation, and broken ones."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from composing import composed

from orchestrator.checkpoints.given_inputs import take
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.preflight.dry_run import CHECKS
from orchestrator.preflight.user_functions import check_own_parts
from workers.data.rows.asked import Asked
from workers.errors import ConfigError, RewardError
from workers.pocket.tokenizer import build_tokenizer
from workers.records.arrays import Ragged
from workers.records.generation import Finish, RolloutBatch
from workers.records.training import Scores
from workers.roles.reward import RewardWorker
from workers.scorers.source import Batch, Scored, scores_of

DOCS = Path(__file__).parents[4] / "docs" / "extending.md"
KIND = "reward.kind=lengths:SOURCE"
# Scores each response by its number of words, and asks for a bit of everything.
GREEDY = """
import numpy as np
from lengths import Settings
from workers.scorers.source import Code, Needs, RewardSource, Scored
def make(settings, spec):
    assert spec.secrets == {{"LENGTHS_KEY": "abc"}}, spec.secrets
    return lambda batch: {answer}
def needs(settings):
    return Needs(text=False, secrets=("LENGTHS_KEY",), seconds=45.5, gpu=settings.weight > 9,
                 seconds_where="reward.settings.words")
SOURCE = RewardSource(Settings, make, needs)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a run, with the module of the documentation and a tokenizer."""
    section = DOCS.read_text(encoding="utf-8").partition("## A new reward source")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    (tmp_path / "lengths.py").write_text(found[1])
    build_tokenizer().save_pretrained(tmp_path / "policy")
    monkeypatch.chdir(tmp_path)
    known, paths = set(sys.modules), list(sys.path)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name in ("lengths", "greedy"):
            del sys.modules[name]
    sys.path[:] = paths


def config(*overrides: str) -> Config:
    return composed("+experiment=pocket_tiny", *overrides)


def score(config: Config, folder: Path, responses: Sequence[str]) -> Scores:
    """Scores of responses to one prompt, by a worker."""
    worker = RewardWorker(0)
    spec = reward_spec(config, "", str(folder / "policy"))
    json.dumps(spec.terms[0].settings)  # a worker reads them before it imports the user's module
    worker.load(spec)
    tokenizer, count = build_tokenizer(), len(responses)
    prompt = tokenizer("what does the owl eat ?", add_special_tokens=False).input_ids
    answers = [tokenizer(each, add_special_tokens=False).input_ids for each in responses]
    ends = [[*answer, tokenizer.eos_token_id] for answer in answers]
    batch = RolloutBatch(
        np.arange(30, 30 + count), np.zeros(count, np.int64),
        Ragged.from_rows([[*prompt, *end] for end in ends], np.int32),
        np.full(count, len(prompt)),
        Ragged.from_rows([np.zeros(len(end)) for end in ends], np.float32),
        np.full(count, Finish.STOP), np.zeros((count, 2), np.int64),
    )  # fmt: skip
    asked = [Asked(0, "what does the owl eat ?", "what does the owl eat ?")]
    return worker.score(batch.ids[::-1], [batch], asked)


def test_the_source_of_the_documentation_scores_and_records_what_it_cannot_score(
    folder: Path,
) -> None:
    run = config(KIND, "reward.settings.words=3", "reward.settings.weight=0.5")
    scores = score(run, folder, ["owl eats mice", "", "mice", "the owl eats mice in the forest"])
    assert scores.ids.tolist() == [33, 32, 31, 30]
    np.testing.assert_array_equal(scores.values, np.float32([-2.0, -1.0, np.nan, 0.0]))
    assert scores.failures == ("", "", "lengths: no words", "")


def test_a_run_starts_with_what_the_source_needs_and_no_reward_model(folder: Path) -> None:
    run = config(KIND, "reward.settings.words=3", "stages=[pretrain,sft,ppo]")
    check_own_parts(run)
    plan = make_plan(run)
    assert {stage.name: stage.needs for stage in plan.stages}[StageName.ppo] == ("sft",)
    assert [*take(run)["reward.kind"]] == ["lengths.py"]


WORDS, WEIGHT = "reward.settings.words", "reward.settings.weight"


@pytest.mark.parametrize(
    ("overrides", "where", "what", "fix"),
    [
        (["reward.kind=modle"], "reward.kind", "no reward source 'modle'", "did you mean model?"),
        (["reward.kind=lengths:SORCE"], "reward.kind", "lengths has no 'SORCE'", "'SOURCE'"),
        (
            ["reward.kind=lengths:make"],
            "reward.kind",
            "it is a function, not",
            "RewardSource",
        ),
        ([KIND, "reward.settings.wrods=3"], "reward.settings.wrods", "unknown key", f"{WORDS}?"),
        ([KIND], WORDS, "is not set", f"{WORDS}=VALUE"),
        ([KIND, f"{WORDS}=few"], WORDS, "of type str, not int", "int"),
        ([KIND, f"{WORDS}=true"], WORDS, "of type bool, not int", "int"),
        ([KIND, f"{WORDS}=0"], WORDS, "no words", "at least 1"),
        ([KIND, f"{WORDS}=3", f"{WEIGHT}=.inf"], WEIGHT, "finite", "number"),
        (["reward.settings.bridge=text"], "reward.settings.bridge", "own", "reward.bridge"),
        ([f"{WORDS}=3"], WORDS, "unknown key", "reward.bridge"),
    ],
)
def test_a_mistake_is_refused_by_the_plan_with_its_key_and_a_way_out(
    folder: Path, overrides: list[str], where: str, what: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        make_plan(config(*overrides))
    assert caught.value.where == where
    assert what in caught.value.what
    assert fix in caught.value.fix


def test_an_import_that_fails_is_reported_from_another_process(folder: Path) -> None:
    (folder / "lengths.py").write_text("raise OSError('no GPU')")
    with pytest.raises(ConfigError, match=r"OSError at .*lengths.py:1: no GPU") as caught:
        check_own_parts(config(KIND))
    assert caught.value.where == "reward.kind"
    assert "lengths" not in sys.modules


def greedy(folder: Path, answer: str, *overrides: str) -> Config:
    (folder / "greedy.py").write_text(GREEDY.format(answer=answer))
    return config("reward.kind=greedy:SOURCE", "reward.settings.words=3", *overrides)


def test_what_a_source_needs_is_checked_before_anything_starts(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = greedy(folder, "None", "run.call_seconds=45")
    with pytest.raises(ConfigError, match=r"can take 45.5 s per batch") as caught:
        make_plan(run)
    assert caught.value.where == "reward.settings.words"
    with pytest.raises(ConfigError, match="needs a GPU"):
        make_plan(greedy(folder, "None", "reward.settings.weight=9.5"))
    monkeypatch.delenv("LENGTHS_KEY", raising=False)
    with pytest.raises(ConfigError, match="LENGTHS_KEY is not set"):
        [*CHECKS["reward"](run, None)]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ("1 / 0", r"greedy:SOURCE raised ZeroDivisionError at .*greedy.py:7"),
        (
            "Scored(np.zeros(3), [''] * 2)",
            r"shape \(3,\), 2 reasons and 2 messages for 2",
        ),
        ("Scored(np.zeros(2), ['no'])", r"1 reasons"),
    ],
)
def test_a_source_that_breaks_its_contract_ends_the_run_and_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, answer: str, says: str
) -> None:
    monkeypatch.setenv("LENGTHS_KEY", "abc")
    with pytest.raises(RewardError, match=says):
        score(greedy(folder, answer), folder, ["mice", "fish"])


def test_a_score_that_is_not_finite_is_a_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LENGTHS_KEY", "abc")
    answer = "Scored(np.array([np.inf, 2.5]), ['', ''], ['a', 'b'])"
    scores = score(greedy(folder, answer), folder, ["mice", "fish"])
    np.testing.assert_array_equal(scores.values, np.float32([np.nan, 2.5]))
    assert scores.failures == ("reward source greedy:SOURCE: not finite", "")
    assert scores.words == ("a", "b")


@pytest.mark.parametrize(
    "answer",
    ["None", "[1.0]", 'Scored(["a"], [""])', "Scored([1.0], [None])", "Scored([1.0], None)",
     "Scored([1.0], [''], [7])", "exit(0)"],
)  # fmt: skip
def test_an_answer_that_is_not_scored_names_the_source(answer: str) -> None:
    texts = {"Scored": Scored}
    batch: Any = Batch(range(1), ())  # pyright: ignore[reportArgumentType]  only its length is read
    with pytest.raises(RewardError, match="greedy:SOURCE"):
        scores_of(lambda _: eval(answer, texts), batch, "greedy:SOURCE")


@pytest.mark.parametrize(
    ("made", "says"),
    [
        ("RewardSource(Raises, make)", "ValueError at"),
        ("RewardSource(Settings, make, lambda _: 1 / 0)", "ZeroDivisionError at"),
        ("RewardSource(Settings, make, lambda _: exit(0))", "SystemExit"),
        ("RewardSource(Settings, make, lambda _: None)", "returned NoneType"),
        ("RewardSource(dict, make)", "must be a class with @dataclass"),
        ("RewardSource(Settings, 3)", "make is 3"),
    ],
)
def test_a_careless_source_is_refused_with_its_key(folder: Path, made: str, says: str) -> None:
    (folder / "greedy.py").write_text(
        "from lengths import Settings, make\nfrom workers.scorers.source import RewardSource\n"
        "class Raises(Settings):\n    def check(self, key):\n        raise ValueError('no')\n"
        f"SOURCE = {made}\n"
    )
    with pytest.raises(ConfigError) as caught:
        _ = config("reward.kind=greedy:SOURCE", "reward.settings.words=3").reward.needs
    assert says in caught.value.what
    assert caught.value.where in ("reward.kind", "reward.settings")
