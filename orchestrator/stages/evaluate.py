"""Evaluation: every model answers the same held-out prompts; who is preferred, and at what tax.

In the pocket world the gold labeler judges. Elsewhere the reward model does, or a pairwise judge
function of the user's. Perplexity of pretraining-style text and cloze accuracy show what alignment
cost (InstructGPT, section 4.2).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from orchestrator.config import DataSourceKind, RewardKind
from orchestrator.derive import frozen_spec, reward_spec
from orchestrator.samples import Comparison, write_comparisons
from orchestrator.session import Session
from orchestrator.statistics import preference, win_rate
from orchestrator.summary import MODEL_ORDER, EvaluationRow, Preference
from workers.data.records import Prompt
from workers.errors import ConfigError, RewardError
from workers.messages import FloatArray, Ragged, RolloutBatch, TokenBatch
from workers.model_shape import read_shape
from workers.pocket.labeler import Gold
from workers.reward_function import load_function

# Each pair (model, over) whose win rate is reported, where both were evaluated.
PAIRS = (
    ("sft", "base"),
    ("ppo", "sft"),
    ("ppo_ptx", "sft"),
    ("ppo", "base"),
    ("ppo_ptx", "base"),
    ("ppo", "large"),
    ("ppo_ptx", "large"),
    ("ppo_ptx", "ppo"),
)


@dataclass(frozen=True, slots=True)
class _Answers:
    """What one model said to the held-out prompts, and what the judge of the run thought of it."""

    texts: list[str]
    golds: list[Gold] | None
    scores: list[float] | None  # None: only a pairwise judge can tell
    row: EvaluationRow


def evaluate(session: Session) -> None:
    """Compare all models of the run."""
    names = [name for name in MODEL_ORDER if session.checkpoints.get(name)]
    session.live.stage("evaluate", len(names))
    if not names:
        raise ConfigError(
            "there is no model to evaluate",
            where="evaluate",
            mend="give model.checkpoints.NAME=PATH or add training stages",
        )
    prompts = session.source.prompts("heldout", 0, session.config.evaluate.prompts)
    answers: dict[str, _Answers] = {}
    for number, name in enumerate(_by_architecture(session, names)):
        session.position.step = number
        answers[name] = _answer(session, name, prompts)
        session.live.advance(number + 1)
    answers = {name: answers[name] for name in names}
    session.findings.models = {name: a.row for name, a in answers.items()}
    session.findings.preferred = _preferences(session, prompts, answers)
    _keep_comparisons(session, prompts, answers)


def _by_architecture(session: Session, names: list[str]) -> list[str]:
    """The models, those of one architecture in a row: each change restarts the engines."""
    shapes = {name: read_shape(Path(session.need(name))).key for name in names}
    order = list(shapes.values())
    return sorted(names, key=lambda name: order.index(shapes[name]))


def _answer(session: Session, name: str, prompts: Sequence[Prompt]) -> _Answers:
    path = session.need(name)
    measuring = session.fleet.reference.load(
        frozen_spec(session.config, path, session.config.cluster.roles.reference)
    )
    rollout, version = session.engines_on(path)
    texts, batch = session.sample_texts(rollout, version, prompts, "evaluate", name)
    measuring.result()
    golds = session.source.gold(prompts, texts)
    scores = [g.score for g in golds] if golds is not None else _reward_scores(session, path, batch)
    return _Answers(texts, golds, scores, _row(session, batch, golds))


def _row(session: Session, batch: RolloutBatch, golds: list[Gold] | None) -> EvaluationRow:
    return EvaluationRow(
        gold_mean=_mean([g.score for g in golds]) if golds else None,
        web_perplexity=_web_perplexity(session),
        truthful_rate=_mean([g.truthful for g in golds]) if golds else None,
        rude_rate=_mean([g.rude for g in golds]) if golds else None,
        length_mean=float(batch.response_lengths.mean()),
        correct_rate=_mean([g.correct for g in golds]) if golds else None,
        cloze_accuracy=_cloze_accuracy(session),
    )


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values, dtype=np.float64))


def _web_perplexity(session: Session) -> float | None:
    """exp(mean nats a token) of held-out pretraining text; None where no text is given."""
    data = session.config.data
    if data.source is DataSourceKind.files and not data.files.pretraining:
        return None
    documents = session.source.pretraining("heldout", 0, session.config.evaluate.web_documents)
    losses = _row_losses(session, documents)
    return math.exp(float(losses.sum(dtype=np.float64)) / documents.target_count)


def _cloze_accuracy(session: Session) -> float | None:
    """Share of cloze tasks whose right candidate is the most likely one; None without tasks."""
    tasks = session.source.cloze("heldout", 0, session.config.evaluate.cloze_tasks)
    if not tasks:
        return None
    rows = [[*task.prefix, *candidate] for task in tasks for candidate in task.candidates]
    targets = [
        [False] * len(task.prefix) + [True] * len(candidate)
        for task in tasks
        for candidate in task.candidates
    ]
    batch = TokenBatch(Ragged.from_rows(rows, np.int32), Ragged.from_rows(targets, np.bool_))
    losses = _row_losses(session, batch)
    right, at = 0, 0
    for task in tasks:
        end = at + len(task.candidates)
        right += int(np.argmin(losses[at:end])) == task.answer
        at = end
    return right / len(tasks)


def _row_losses(session: Session, batch: TokenBatch) -> FloatArray:
    """Summed negative log-likelihood of each row's targets, (B,) nats."""
    reference = session.fleet.reference
    hands = [np.arange(hand, len(batch), reference.size) for hand in range(reference.size)]
    parts = reference.row_losses([batch.select(rows) for rows in hands]).result()
    losses = np.empty(len(batch), np.float32)
    for rows, part in zip(hands, parts, strict=True):
        losses[rows] = part
    return losses


def _reward_scores(session: Session, path: str, batch: RolloutBatch) -> list[float] | None:
    """Scores of the run's reward; None where a pairwise judge decides.

    Raises:
        RewardError: a response could not be scored, so models cannot be compared fairly.
    """
    if session.config.evaluate.judge:
        return None
    function = session.config.reward.kind is RewardKind.function
    if not function and not session.checkpoints.get("reward_model"):
        return None
    checkpoint = "" if function else session.need("reward_model")
    session.fleet.reward.load(reward_spec(session.config, checkpoint, path)).result()
    scores = session.fleet.reward.score_batch(batch).result()
    failures = [failure for failure in scores.failures if failure]
    if failures:
        raise RewardError(
            f"{len(failures)} of {len(scores.failures)} responses got no score: {failures[0]}",
            where="evaluate",
            mend="mend the reward function; the same prompts are in samples/comparison.json",
        )
    return scores.values.tolist()


def _preferences(
    session: Session, prompts: Sequence[Prompt], answers: dict[str, _Answers]
) -> list[Preference]:
    judge = _judge(session)
    found: list[Preference] = []
    for model, over in PAIRS:
        if model not in answers or over not in answers:
            continue
        a, b = answers[model], answers[over]
        if judge is not None:
            outcomes = judge([p.text for p in prompts], a.texts, b.texts)
            if len(outcomes) != len(prompts):
                raise RewardError(
                    f"the judge returned {len(outcomes)} outcomes for {len(prompts)} prompts",
                    where="evaluate.judge",
                    mend="return 1, .5 or 0 for each prompt, in their order",
                )
            rate = preference(outcomes)
        elif a.scores is not None and b.scores is not None:
            rate = win_rate(a.scores, b.scores)
        else:
            continue
        found.append(Preference(model, over, rate.rate, rate.low, rate.high, rate.n))
    return found


def _judge(session: Session) -> Callable[[list[str], list[str], list[str]], list[float]] | None:
    """The user's pairwise judge: 1 where the first text is better, 0 the second, .5 a tie."""
    name = session.config.evaluate.judge
    return load_function(name, "evaluate.judge") if name else None


def _keep_comparisons(
    session: Session, prompts: Sequence[Prompt], answers: dict[str, _Answers]
) -> None:
    kept = range(min(session.config.evaluate.samples_shown, len(prompts)))
    write_comparisons(
        session.folder,
        [
            Comparison(
                prompt=prompts[i].text,
                responses={name: a.texts[i] for name, a in answers.items()},
                gold={name: a.golds[i].score for name, a in answers.items() if a.golds},
            )
            for i in kept
        ],
    )
