"""Reward modelling: sample K completions per prompt, have them ranked, learn the ranking."""

from __future__ import annotations

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import ranking_steps, reward_model_steps, warmup_note
from orchestrator.batching.margins import with_margins
from orchestrator.checkpoints import model_folder
from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.variants import stage_of
from orchestrator.planning.runs.stage_run import whole
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import train_spec
from orchestrator.results.agreement import annotator_agreement
from orchestrator.results.reward_model_figures import Agreement
from orchestrator.session.session import Session
from orchestrator.stages.labels.rankings import chosen, rankings_of, with_pairs
from orchestrator.stages.reward_model_record import record_heldout
from orchestrator.stages.shown import show_scores
from workers.records.arrays import FloatArray
from workers.records.training import Ranking, TokenBatch


def reward_model(session: Session) -> None:
    """Train the reward model from the SFT model; demonstrations then score 0 on average."""
    settings, stage = session.config.reward_model, session.name_of(StageName.reward_model)
    sft = session.need("sft")
    planned = reward_model_steps(session.config)
    session.live.stage(stage, planned or 0)  # None: unknown until the file is read
    saved = session.saves.within(stage)
    given = rankings_of(session, stage, labeled=saved is not None)
    verdicts = [*session.source.ties(), *(ranking for split in given for ranking in split)]
    agreement = annotator_agreement(verdicts)
    train, heldout = with_pairs(given, stage)
    train = with_margins(train, settings.margin)  # the held-out loss has none: it stays comparable
    # Read before training, so that a missing held-out part fails early.
    zero = session.source.demonstrations("heldout", 0, settings.bias_demonstrations)
    total = ranking_steps(session.config, len(train))
    session.live.expect(total)
    # The plan knew neither a file's rankings nor which of them contain only ties.
    if total != planned:
        for note in warmup_note(settings.optimizer, total, "reward_model.optimizer"):
            session.live.note(note)
    threads = threads_of(session.config, StageName.reward_model, RoleName.critic)
    session.fleet.critic.load(
        train_spec(
            session.config, sft, settings.optimizer, total, threads=threads, head=_head(session)
        )
    ).result()
    if saved is not None and saved.step:
        session.fleet.critic.restore(saved.folder).result()
    for step in range(saved.step if saved else 0, total):
        session.position.step = step
        _train_step(
            session, stage, step, chosen(session, stage, train, step, settings.prompts_per_step)
        )
        session.boundary(stage, step + 1, total, {}, session.fleet.critic)
    scored, scores = _evaluate(session, heldout, agreement, total)
    mean = _centre(session, zero)
    show_scores(session, scored, [own - mean for own in scores])
    session.publish(
        session.product_of(StageName.reward_model),
        lambda path: session.fleet.critic.save(path, sft).result(),
        stage,
        **{model_folder.SCORE_DEVIATION: float(np.std(np.concatenate(scores), dtype=np.float64))},
    )


def _head(session: Session) -> str:
    """The head to begin with: that of an earlier reward model, if it starts from one."""
    start = session.run.inputs.get("sft", "sft") if session.run else "sft"
    made = stage_of(whole(session.config).variants, start)
    return "keep" if made is StageName.reward_model else "random"


def _train_step(session: Session, stage: str, step: int, rankings: list[Ranking]) -> None:
    critic = session.fleet.critic
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.ranking_step(rankings, critic.size, budget, packed=critic.packed)
    stats = critic.train_rankings(shares).result()
    session.note_first_step()
    pairs = sum(r.pairs for r in rankings)
    session.telemetry.record(
        stage,
        step,
        {
            "reward_model/loss": stats.loss,
            "reward_model/pair_accuracy": stats.extra["pair_accuracy"],
            "reward_model/grad_norm": stats.grad_norm,
            "reward_model/learning_rate": stats.learning_rate,
            "reward_model/pairs_kept": pairs,
            "reward_model/pairs_tied": sum(_all_pairs(r) for r in rankings) - pairs,
        },
    )
    session.live.advance(step + 1, loss=stats.loss, pair_accuracy=stats.extra["pair_accuracy"])


def _all_pairs(ranking: Ranking) -> int:
    k = len(ranking.ranks)
    return k * (k - 1) // 2


def _evaluate(
    session: Session, heldout: list[Ranking], agreement: Agreement | None, step: int
) -> tuple[list[Ranking], tuple[FloatArray, ...]]:
    """Record the held-out figures; the rankings, and the scores of the completions of each."""
    critic = session.fleet.critic
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.ranking_step(heldout, critic.size, budget, packed=critic.packed)
    counts = critic.evaluate_rankings(shares).result()
    scored = [r for share in shares for batch in share.micro_batches for r in batch]
    record_heldout(session, scored, counts, agreement, step)
    return scored, counts.scores


def _centre(session: Session, demonstrations: TokenBatch) -> float:
    """Shift the bias so that demonstrations score 0 on average (InstructGPT, section 3.5).

    Returns:
        What every score was lowered by, reward units.
    """
    scores = session.fleet.critic.score(demonstrations).result()
    mean = float(np.mean(scores, dtype=np.float64))
    session.fleet.critic.shift_bias(mean).result()
    return mean
