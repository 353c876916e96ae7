"""Evaluation of the best of n answers of the SFT model, chosen by the reward."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from orchestrator.config.evaluation import JudgeKind
from orchestrator.planning.worker_specs import reward_spec
from orchestrator.results.best_of import best_of_weights, kl_bound, name_of
from orchestrator.results.intervals import preference
from orchestrator.results.summary import EvaluationRow, Preference
from orchestrator.session.session import Session
from orchestrator.stages.judging import all_scored
from workers.data.records import Gold, Prompt

MODEL = "sft"
_Figures = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class BestOf:
    """Figures of the best of n, for every configured n."""

    rows: dict[str, EvaluationRow]  # by name, e.g. sft@4
    preferred: tuple[Preference, ...]  # to one answer of the model; () where a judge compares texts


def best_of_n(
    session: Session, prompts: Sequence[Prompt], own: Sequence[float] | None, *, gold: bool
) -> BestOf:
    """Sample the SFT model, and estimate the figures of its best answers by the reward.

    One set of samples per prompt, as many as the largest n, serves every n.

    Args:
        session: The run.
        prompts: Held-out prompts.
        own: (P,) scores of one answer of the model per prompt, by the judge of the evaluation;
            None if a judge compares texts, or there is none.
        gold: Whether the judge is the gold labeler, else the reward.

    Raises:
        RewardError: an answer got no score.
    """
    numbers = session.config.evaluate.best_of
    sampled = _sample(session, prompts, max(numbers))
    rows: dict[str, EvaluationRow] = {}
    preferred: list[Preference] = []
    for n in numbers:
        weights = np.stack([best_of_weights(each, n) for each in sampled.rewards])
        rows[name_of(MODEL, n)] = _row(sampled, weights, n)
        if own is None or session.config.evaluate.judge is not JudgeKind.auto:
            continue
        scores = sampled.of_gold(lambda g: g.score) if gold else sampled.rewards
        ahead = np.sign(scores - np.asarray(own, np.float64)[:, None])
        rate = preference(np.clip((weights * (1.0 + ahead) / 2.0).sum(1), 0.0, 1.0))
        name = name_of(MODEL, n)
        preferred.append(Preference(name, MODEL, rate.rate, rate.low, rate.high, rate.n))
    return BestOf(rows, tuple(preferred))


@dataclass(frozen=True, slots=True)
class _Sampled:
    """N answers to each of P prompts."""

    rewards: _Figures  # (P, N)
    lengths: _Figures  # (P, N) tokens
    golds: list[list[Gold]] | None  # (P, N)

    def of_gold(self, figure: Callable[[Gold], float]) -> _Figures:
        """(P, N) a figure of the gold verdicts."""
        assert self.golds is not None
        return np.array([[float(figure(gold)) for gold in golds] for golds in self.golds])


def _sample(session: Session, prompts: Sequence[Prompt], samples: int) -> _Sampled:
    path = session.need(MODEL)
    rollout, version = session.engines_on(path)
    session.live.note(f"sampling {samples:,} answers of {MODEL} to {len(prompts):,} prompts")
    requests = session.requests(prompts, samples, "evaluate", MODEL, "best_of")
    rollouts = rollout.generate(requests, session.sampling(), version).result()
    batch = rollout.fetch(rollouts).result()
    rollout.sleep().result()
    row = {int(i): n for n, i in enumerate(batch.ids)}
    batch = batch.select(np.array([row[i] for request in requests for i in request.ids]))
    model = session.need("reward_model") if session.config.reward.needs.model else ""
    fix = "correct the source of the rewards, or set evaluate.best_of=[]"
    spec = reward_spec(session.config, model, path)
    rewards = all_scored(session, spec, prompts, batch, ("answers", "evaluate", fix))
    shape = (len(prompts), samples)
    golds = None
    if session.source.gold([], []) is not None:
        texts = [session.source.detokenize(batch.response(i)) for i in range(len(batch))]
        asked = [prompt for prompt in prompts for _ in range(samples)]
        flat = session.source.gold(asked, texts) or []
        golds = [flat[i : i + samples] for i in range(0, len(flat), samples)]
    return _Sampled(
        rewards.astype(np.float64).reshape(shape),
        batch.response_lengths.astype(np.float64).reshape(shape),
        golds,
    )


def _row(sampled: _Sampled, weights: _Figures, n: int) -> EvaluationRow:
    def mean(figures: _Figures) -> float:
        return float((weights * figures).sum(1).mean())

    def gold(figure: Callable[[Gold], float]) -> float | None:
        return mean(sampled.of_gold(figure)) if sampled.golds is not None else None

    return EvaluationRow(
        gold_mean=gold(lambda g: g.score),
        truthful_rate=gold(lambda g: g.truthful),
        rude_rate=gold(lambda g: g.rude),
        correct_rate=gold(lambda g: g.correct),
        length_mean=mean(sampled.lengths),
        reward_mean=mean(sampled.rewards),
        kl_bound=kl_bound(n),
    )
