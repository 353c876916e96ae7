"""Judges of the evaluation: which model is preferred to which."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.checkpoints import model_folder
from orchestrator.config.data import DataSourceKind
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.reward import TextBridge
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.runs.expand import base_models, made_by
from orchestrator.planning.worker_specs import endpoint_spec, judge_spec, reward_spec
from orchestrator.process.secrets import secret
from orchestrator.results.few_shot import prompted_parts
from orchestrator.results.intervals import WinRate, preference, win_rate
from orchestrator.results.summary import MODEL_ORDER, EvaluationRow, Judging, Preference
from orchestrator.run_files.samples import read_answers
from orchestrator.session.session import Session
from orchestrator.stages.human_judge import People, read_verdicts
from workers.data.records import Gold, Prompt
from workers.data.rows.asked import plain_text
from workers.data.tokenize.fingerprint import tokenizer_fingerprint
from workers.data.tokenize.tokenizers import load_tokenizer
from workers.errors import RewardError, TokenizerMismatchError
from workers.records.arrays import FloatArray
from workers.records.gather import told
from workers.records.generation import RolloutBatch
from workers.records.specs import RewardSpec
from workers.user_functions.calls import Patience
from workers.user_functions.judge_function import Pair, call_judge, started_judge

if TYPE_CHECKING:  # seconds to import, and only a type here
    from transformers import PreTrainedTokenizerBase

_CHECKPOINT = "evaluate.judge_checkpoint"


@dataclass(frozen=True, slots=True)
class Answers:
    """One model's responses to the held-out prompts, and their scores."""

    texts: list[str]
    golds: list[Gold] | None
    scores: list[float] | None  # None: only a pairwise judge can compare
    row: EvaluationRow


def check_judge_ready(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Check before any training that the judge has what it needs.

    Args:
        config: The run.
        tokenizer: Tokenizer of the judged models.

    Raises:
        ConfigError: the key is not in the environment.
        CheckpointError: the judging reward model is missing or broken.
        TokenizerMismatchError: it would get the token ids of another tokenizer.
        DataError: the verdicts of people, or the answers that they judged, cannot be read.
    """
    settings = config.evaluate
    if settings.judging_model:
        model_folder.require(settings.judging_model, "judge", _CHECKPOINT)
    if settings.judge is JudgeKind.endpoint:
        _key(config)
    if settings.judge is JudgeKind.human:
        read_verdicts(settings.verdicts)
    if settings.answers:
        read_answers(Path(settings.answers))
    folder = _given_model(config)
    if folder and config.reward.bridge is TextBridge.tokens:
        _check_tokenizer(folder, tokenizer)


def _given_model(config: Config) -> str:
    """The folder of the given reward model that judges; "" if none, or if a stage trains it."""
    judge, judging = config.evaluate.judge, config.evaluate.judge_checkpoint
    by_reward = judge is JudgeKind.auto and config.data.source is DataSourceKind.files
    if judge is not JudgeKind.reward_model:
        if not by_reward or not config.reward.needs.model:
            return ""
        judging = ""
    made = StageName.reward_model in config.stages
    return judging or ("" if made else config.model.checkpoints.reward_model)


def _check_tokenizer(folder: str, tokenizer: PreTrainedTokenizerBase) -> None:
    if tokenizer_fingerprint(load_tokenizer(folder)) != tokenizer_fingerprint(tokenizer):
        raise TokenizerMismatchError(
            "the judging reward model has another tokenizer than the models that it judges, so "
            "token ids mean other words to it",
            where=folder,
            fix="set reward.bridge=text, or give a judge with the same tokenizer",
        )


def _key(config: Config) -> str:
    """The endpoint's key from the environment; "" if none is needed.

    Raises:
        ConfigError: the variable is not set.
    """
    variable = config.evaluate.endpoint.key_variable
    none = ", or set the key to '' for an endpoint without keys"
    return secret(variable, "evaluate.endpoint.key_variable", none) if variable else ""


def scores(
    session: Session,
    path: str,
    prompts: Sequence[Prompt],
    batch: RolloutBatch,
    golds: list[Gold] | None,
) -> list[float] | None:
    """Scores of one model's answers; None if a pairwise judge decides, or there is no judge.

    Raises:
        RewardError: a response could not be scored, so models cannot be compared fairly.
    """
    judge = session.config.evaluate.judge
    if judge is JudgeKind.reward_model:
        given = session.config.evaluate.judge_checkpoint
        look = session.fleet.look_after
        folder = (
            model_folder.require(given, "judge", _CHECKPOINT, look)
            if given
            else session.need("reward_model")
        )
        spec = judge_spec(session.config, str(Path(folder).resolve()), path)
    elif judge is not JudgeKind.auto:
        return None
    elif golds is not None:
        return [gold.score for gold in golds]
    elif not session.config.reward.needs.model:
        spec = reward_spec(session.config, "", path)
    elif session.checkpoints.get("reward_model"):
        spec = reward_spec(session.config, session.need("reward_model"), path)
    else:
        return None
    fix = "correct the source of the rewards"
    words = ("responses", "evaluate", fix)
    return all_scored(session, spec, prompts, batch, words, _may_fail(session.config)).tolist()


def _may_fail(config: Config) -> float:
    """Fraction of answers that may have no score: a server can fail once, a function should not."""
    by_reward = config.evaluate.judge is not JudgeKind.reward_model
    lenient = by_reward and config.reward.needs.waits and not config.evaluate.best_of
    return config.evaluate.endpoint.failed_fraction if lenient else 0.0


def all_scored(
    session: Session,
    spec: RewardSpec,
    prompts: Sequence[Prompt],
    batch: RolloutBatch,
    words: tuple[str, str, str],
    may_fail: float = 0.0,
) -> FloatArray:
    """(B,) scores of answers, reward units, in the order of the batch; NaN where there is none.

    Args:
        session: The run.
        spec: What scores; it is loaded into the reward role.
        prompts: The prompts of the answers.
        batch: The answers.
        words: For the error: what the answers are called, where, and the fix.
        may_fail: Fraction of the answers that may have no score.

    Raises:
        RewardError: more answers than that, or all, could not be scored.
    """
    session.fleet.reward.load(spec).result()
    found = session.fleet.reward.score_batch(batch, session.asked(prompts)).result()
    failures, count = told(found), len(found.failures)
    if failures and not len(failures) <= may_fail * count < count:
        what, where, fix = words
        raise RewardError(
            f"{len(failures)} of {len(found.failures)} {what} got no score: {failures[0]}",
            where=where,
            fix=fix,
        )
    return found.values


def pairs_of(
    names: Sequence[str], bases: Sequence[str] = (), tuned: Sequence[str] = ()
) -> list[tuple[str, str]]:
    """Each pair (model, over) whose win rate is reported.

    Every model that comes after SFT is compared with SFT, with the base models, with a teacher and
    with the model before it; the stages of the recipe, few as they are, with each other.

    Args:
        names: Of the evaluated models, in their order.
        bases: Further base models of the run: of other sizes, or prompted with demonstrations.
        tuned: SFT models of other sizes, with which the aligned models are compared, too.
    """
    starts = ("sft", "base", "large", "teacher", *bases)
    own = [name for name in names if name not in starts]
    aligned = [name for name in own if name not in tuned]
    pairs = [("sft", "base"), ("teacher", "sft")]
    pairs += [("sft", name) for name in (("large", *bases) if bases else ())]
    pairs += [(name, over) for over in starts for name in own]
    pairs += [(name, over) for over in tuned for name in aligned if (name, over) not in pairs]
    for number, name in enumerate(own):
        earlier = own[:number]
        known = name in MODEL_ORDER
        pairs += [(name, o) for o in earlier if o == earlier[-1] or (known and o in MODEL_ORDER)]
    pairs = [*dict.fromkeys(pairs)]
    return [(model, over) for model, over in pairs if model in names and over in names]


def _sizes(session: Session, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Base models besides those of the recipe, prompted ones included, and further SFT models."""
    made = base_models(session.config)
    bases = [n for n in names if prompted_parts(n)[0] in made and n not in ("base", "large")]
    tuned = [n for n in made_by(session.config, StageName.sft) if n != "sft"]
    return bases, tuned


def preferences(
    session: Session, prompts: Sequence[Prompt], answers: Mapping[str, Answers]
) -> tuple[list[Preference], Judging | None]:
    """Win rates of every pair of evaluated models, and which judge compared them.

    Raises:
        JudgeError: the pairwise judge failed, or gave too few verdicts.
        ConfigError: the endpoint rejects the key, or does not know the model.
        DeadlineError: the endpoint took too long.
        DataError: people judged other answers.
    """
    pairs = pairs_of([*answers], *_sizes(session, answers))
    kind = session.config.evaluate.judge
    if kind is JudgeKind.function:
        rates, judging = _by_function(session, prompts, answers, pairs)
    elif kind is JudgeKind.endpoint:
        rates, judging = _by_endpoint(session, prompts, answers, pairs)
    elif kind is JudgeKind.human:
        rates, judging = _by_people(session, prompts, answers, pairs)
    else:
        rates, judging = _by_scores(session, answers, pairs)
    found = [
        Preference(model, over, rate.rate, rate.low, rate.high, rate.n)
        for (model, over), rate in zip(pairs, rates, strict=True)
        if rate is not None
    ]
    return found, judging if found else None


def preferred(
    session: Session,
    kind: JudgeKind,
    prompts: Sequence[Prompt],
    mine: Sequence[str],
    others: Sequence[str],
) -> WinRate | None:
    """How often a function or an endpoint prefers one answer per prompt to another.

    Args:
        session: The run.
        kind: JudgeKind.function or JudgeKind.endpoint.
        prompts: The prompts.
        mine: One answer per prompt.
        others: What they are compared with.

    Returns:
        None if no pair has a verdict.

    Raises:
        JudgeError: the judge failed, or gave too few verdicts.
        ConfigError: the endpoint rejects the key, or does not know the model.
        DeadlineError: the endpoint took too long.
    """
    assert kind in (JudgeKind.function, JudgeKind.endpoint)
    answers = {
        name: Answers(list(texts), None, None, EvaluationRow())
        for name, texts in (("mine", mine), ("others", others))
    }
    ask = _by_function if kind is JudgeKind.function else _by_endpoint
    (rate,), _ = ask(session, prompts, answers, [("mine", "others")])
    return rate


_Rates = tuple[list[WinRate | None], Judging]


def _by_scores(
    session: Session, answers: Mapping[str, Answers], pairs: Sequence[tuple[str, str]]
) -> _Rates:
    rates: list[WinRate | None] = []
    failed = 0
    for model, over in pairs:
        a, b = answers[model].scores, answers[over].scores
        if a is None or b is None:
            rates.append(None)
            continue
        both = [(x, y) for x, y in zip(a, b, strict=True) if isfinite(x) and isfinite(y)]
        failed += len(a) - len(both)
        rates.append(win_rate([x for x, _ in both], [y for _, y in both]) if both else None)
    gold = any(each.golds is not None for each in answers.values())
    config = session.config
    if config.evaluate.judge is JudgeKind.reward_model:
        return rates, Judging("reward_model")
    return rates, Judging("gold" if gold else f"reward_{config.reward.label}", failed=failed)


def _by_function(
    session: Session,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Answers],
    pairs: Sequence[tuple[str, str]],
) -> _Rates:
    config = session.config
    patience = Patience(config.reward.function_seconds, config.reward.function_retries)
    rates: list[WinRate | None] = []
    failed = 0
    with started_judge(config.evaluate.judge_function, str(Path.cwd())) as judge:
        for model, over in pairs:
            both = zip(prompts, answers[model].texts, answers[over].texts, strict=True)
            asked = [Pair(prompt.asked, a, b) for prompt, a, b in both]
            outcomes = call_judge(judge, asked, patience, config.evaluate.endpoint.failed_fraction)
            known = [outcome for outcome in outcomes if outcome is not None]
            failed += len(outcomes) - len(known)
            rates.append(preference(known))
    return rates, Judging("function", failed=failed)


def _by_endpoint(
    session: Session,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Answers],
    pairs: Sequence[tuple[str, str]],
) -> _Rates:
    # Imported here because no other judge needs an HTTP client.
    from workers.judging.judge_endpoint import AnswerPair, judge_pairs
    from workers.scorers.judge_cache import VerdictCache

    asked = [
        AnswerPair(plain_text(prompt.context), a, b)
        for model, over in pairs
        for prompt, a, b in zip(prompts, answers[model].texts, answers[over].texts, strict=True)
    ]
    settings = session.config.evaluate.endpoint
    session.live.note(f"{settings.model} judges {len(asked):,} pairs of answers in both orders")
    cache = VerdictCache(Path(settings.cache))
    try:
        judged = judge_pairs(endpoint_spec(session.config, _key(session.config)), cache, asked)
    finally:
        cache.close()
    rates: list[WinRate | None] = []
    for number in range(len(pairs)):
        mine = judged.outcomes[number * len(prompts) : (number + 1) * len(prompts)]
        known = [outcome for outcome in mine if outcome is not None]
        rates.append(preference(known) if known else None)
    return rates, Judging(
        "endpoint", judged.asked, judged.cached, judged.failed, judged.order_dependent
    )


def _by_people(
    session: Session,
    prompts: Sequence[Prompt],
    answers: Mapping[str, Answers],
    pairs: Sequence[tuple[str, str]],
) -> _Rates:
    """Win rates from a file; what people said of each answer by itself goes into the rows."""
    verdicts = read_verdicts(session.config.evaluate.verdicts)
    people = People(verdicts, prompts, {name: each.texts for name, each in answers.items()})
    for name in answers:
        session.findings.models[name] = people.rated(name, session.findings.models[name])
    return [people.win_rate(model, over) for model, over in pairs], Judging("human")
