"""Reward modelling: sample K completions per prompt, have them ranked, learn the ranking."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import ranking_steps, reward_model_steps, warmup_note
from orchestrator.checkpoints import model_folder
from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import train_spec
from orchestrator.results.agreement import annotator_agreement
from orchestrator.results.reward_model_figures import Agreement
from orchestrator.run_files.folder import write_text
from orchestrator.run_files.rankings import load_rankings, save_rankings
from orchestrator.session.session import Session
from orchestrator.stages.completions import sample_completions
from orchestrator.stages.reward_model_record import record_heldout
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError
from workers.records.arrays import Ragged
from workers.records.training import Ranking, TokenBatch


def reward_model(session: Session) -> None:
    """Train the reward model from the SFT model; demonstrations then score 0 on average."""
    settings = session.config.reward_model
    sft = session.need("sft")
    planned = reward_model_steps(session.config)
    session.live.stage("reward_model", planned or 0)  # None: unknown until the file is read
    saved = session.saves.within("reward_model")
    given = _rankings(session, labeled=saved is not None)
    verdicts = [*session.source.ties(), *(ranking for split in given for ranking in split)]
    agreement = annotator_agreement(verdicts)
    train, heldout = _with_pairs(given)
    # Read before training, so that a missing held-out part fails early.
    zero = session.source.demonstrations("heldout", 0, settings.bias_demonstrations)
    total = ranking_steps(session.config, len(train))
    steps_per_epoch = total // settings.epochs
    session.live.expect(total)
    # The plan knew neither a file's rankings nor which of them contain only ties.
    if total != planned:
        for note in warmup_note(settings.optimizer, total, "reward_model.optimizer"):
            session.live.note(note)
    threads = threads_of(session.config, StageName.reward_model, RoleName.critic)
    session.fleet.critic.load(
        train_spec(session.config, sft, settings.optimizer, total, threads=threads, head="random")
    ).result()
    if saved is not None and saved.step:
        session.fleet.critic.restore(saved.folder).result()
    for step in range(saved.step if saved else 0, total):
        session.position.step = step
        _train_step(session, step, _chosen(session, train, step, steps_per_epoch))
        session.boundary("reward_model", step + 1, total, {}, session.fleet.critic)
    deviation = _evaluate(session, heldout, agreement, total)
    _centre(session, zero)
    session.publish(
        "reward_model",
        lambda path: session.fleet.critic.save(path, sft).result(),
        "reward_model",
        **{model_folder.SCORE_DEVIATION: deviation},
    )


def _rankings(session: Session, *, labeled: bool) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out rankings from the data source, or sampled and labeled once per run."""
    train = session.source.rankings("train")
    heldout = session.source.rankings("heldout")
    if train is None or heldout is None:
        rankings = load_rankings(session.folder.rankings) if labeled else _label_and_keep(session)
        count = session.config.reward_model.prompts
        train, heldout = rankings[:count], rankings[count:]
    most = session.config.reward_model.max_rankings
    return train[:most] if most else train, heldout


def _with_pairs(
    given: tuple[list[Ranking], list[Ranking]],
) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out rankings without those that contain only ties."""
    train, heldout = given
    kept = [r for r in train if r.pairs], [r for r in heldout if r.pairs]
    for name, rankings in zip(("training", "held-out"), kept, strict=True):
        if not rankings:
            raise EmptyDatasetError(
                f"no {name} ranking has two completions of different rank",
                where="reward_model",
                fix="give more rankings, or raise reward_model.prompts",
            )
    return kept


def _label_and_keep(session: Session) -> list[Ranking]:
    """Sample and label, then save the run at once, because labels are the most costly to redo."""
    settings = session.config.reward_model
    count = settings.prompts + settings.heldout_prompts
    rankings = _sample_and_label(session, session.source.prompts("reward_model", 0, count))
    save_rankings(session.folder.rankings, rankings)
    session.boundary("reward_model", 0, count, {}, always=True)
    return rankings


def _sample_and_label(session: Session, prompts: Sequence[Prompt]) -> list[Ranking]:
    """K ranked completions per prompt, most from the SFT model and some from the base model."""
    settings = session.config.reward_model
    rng = random.Random(session.seed("reward_model", "k"))
    ks = [rng.randint(settings.min_completions, settings.max_completions) for _ in prompts]
    of_base = [round(settings.base_fraction * k) for k in ks]
    of_sft = [k - b for k, b in zip(ks, of_base, strict=True)]
    completions: list[list[list[int]]] = [[] for _ in prompts]
    for name, counts in (("sft", of_sft), ("base", of_base)):
        if any(counts):
            found = sample_completions(
                session, name, prompts, counts, "reward_model", settings.temperature
            )
            for of_prompt, sampled in zip(completions, found.tokens, strict=True):
                of_prompt.extend(sampled)
    session.fleet.rollout.sleep().result()
    texts = [[session.source.detokenize(c) for c in of_prompt] for of_prompt in completions]
    ranks = session.source.label(prompts, texts)
    _write_rankings(session, prompts, texts, ranks)
    return [
        Ranking(
            prompt.id,
            Ragged.from_rows([[*prompt.tokens, *c] for c in of_prompt], np.int32),
            np.asarray(rank, dtype=np.int64),
        )
        for prompt, of_prompt, rank in zip(prompts, completions, ranks, strict=True)
    ]


def _chosen(
    session: Session, rankings: Sequence[Ranking], step: int, steps_per_epoch: int
) -> list[Ranking]:
    """The rankings of one optimizer step; each epoch has a new order of all rankings."""
    epoch, at = divmod(step, steps_per_epoch)
    rng = np.random.default_rng(session.seed("reward_model", "order", epoch))
    order = rng.permutation(len(rankings))
    size = session.config.reward_model.prompts_per_step
    return [rankings[i] for i in order[at * size : (at + 1) * size]]


def _train_step(session: Session, step: int, rankings: list[Ranking]) -> None:
    critic = session.fleet.critic
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.ranking_step(rankings, critic.size, budget, packed=critic.packed)
    stats = critic.train_rankings(shares).result()
    session.note_first_step()
    pairs = sum(r.pairs for r in rankings)
    session.telemetry.record(
        "reward_model",
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
) -> float:
    """Record the held-out figures; returns the standard deviation of all scores, reward units."""
    critic = session.fleet.critic
    budget = session.config.trainer.micro_batch_tokens
    shares = training_batches.ranking_step(heldout, critic.size, budget, packed=critic.packed)
    counts = critic.evaluate_rankings(shares).result()
    scored = [r for share in shares for batch in share.micro_batches for r in batch]
    record_heldout(session, scored, counts, agreement, step)
    return float(np.std(np.concatenate(counts.scores), dtype=np.float64))


def _centre(session: Session, demonstrations: TokenBatch) -> None:
    """Shift the bias so that demonstrations score 0 on average (InstructGPT, section 3.5)."""
    scores = session.fleet.critic.score(demonstrations).result()
    session.fleet.critic.shift_bias(float(np.mean(scores, dtype=np.float64))).result()


def _write_rankings(
    session: Session,
    prompts: Sequence[Prompt],
    texts: Sequence[Sequence[str]],
    ranks: Sequence[Sequence[int]],
) -> None:
    """Write the rankings in the format that the data source `files` reads."""
    lines = [
        json.dumps({"prompt": p.text, "completions": list(c), "ranks": [int(x) for x in r]})
        for p, c, r in zip(prompts, texts, ranks, strict=True)
    ]
    write_text(session.folder.samples / "rankings.jsonl", "\n".join(lines) + "\n")
