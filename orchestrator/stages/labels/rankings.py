"""The rankings of a run: given as files, or sampled from its models and labeled once."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence

import numpy as np

from orchestrator.planning.stage_graph import RANKING_STAGES
from orchestrator.planning.worker_specs import judge_spec
from orchestrator.run_files.folder import write_text
from orchestrator.run_files.rankings import load_rankings, load_split, save_rankings
from orchestrator.session.session import Session
from orchestrator.stages.judging import all_scored
from orchestrator.stages.labels.completions import Completions, sample_completions
from workers.data.records import Prompt
from workers.errors import EmptyDatasetError
from workers.records.arrays import Ragged
from workers.records.training import Ranking


def rankings_of(
    session: Session, stage: str, *, labeled: bool
) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out rankings: of the stage label, of the data source, or sampled here.

    The pocket world's are sampled and labeled once per run, if there is no stage label.

    Args:
        session: The run.
        stage: The current stage.
        labeled: Whether an earlier part of this stage has sampled and labeled them.
    """
    if session.run and session.run.rankings:
        return _of_labels(session, session.run.rankings)
    train = session.source.rankings("train")
    heldout = session.source.rankings("heldout")
    if train is None or heldout is None:
        labeled |= session.has_run(*RANKING_STAGES)
        rankings = (
            load_rankings(session.folder.rankings) if labeled else _label_and_keep(session, stage)
        )
        count = session.config.reward_model.prompts
        train, heldout = rankings[:count], rankings[count:]
    settings = session.config.reward_model
    train = train[settings.skip_rankings :]
    return train[: settings.max_rankings or None], heldout


def _of_labels(session: Session, names: Sequence[str]) -> tuple[list[Ranking], list[Ranking]]:
    """The rankings of runs of the stage label, in their order."""
    train, heldout = list[Ranking](), list[Ranking]()
    for name in names:
        more, held_out = load_split(session.folder.rankings_of(name))
        train += more
        heldout += held_out
    most = session.config.reward_model.max_rankings
    return train[:most] if most else train, heldout


def with_pairs(
    given: tuple[list[Ranking], list[Ranking]], stage: str
) -> tuple[list[Ranking], list[Ranking]]:
    """Training and held-out rankings without those that contain only ties."""
    train, heldout = given
    kept = [r for r in train if r.pairs], [r for r in heldout if r.pairs]
    for name, rankings in zip(("training", "held-out"), kept, strict=True):
        if not any(ranking.ordered for ranking in rankings):
            raise EmptyDatasetError(
                f"no {name} ranking has two completions of different rank",
                where=stage,
                fix="give more rankings, or raise reward_model.prompts",
            )
    return kept


def _label_and_keep(session: Session, stage: str) -> list[Ranking]:
    """Sample and label, then save the run at once, because labels are the most costly to redo."""
    settings = session.config.reward_model
    count = settings.prompts + settings.heldout_prompts
    rankings = _sample_and_label(session, session.source.prompts("reward_model", 0, count))
    save_rankings(session.folder.rankings, rankings)
    session.boundary(stage, 0, count, {}, always=True)
    return rankings


def _sample_and_label(session: Session, prompts: Sequence[Prompt]) -> list[Ranking]:
    """K ranked completions per prompt, most from the SFT model and some from the base model."""
    settings = session.config.reward_model
    rng = random.Random(session.seed("reward_model", "k"))
    ks = [rng.randint(settings.min_completions, settings.max_completions) for _ in prompts]
    of_base = [round(settings.base_fraction * k) for k in ks]
    of_sft = [k - b for k, b in zip(ks, of_base, strict=True)]
    completions: list[list[list[int]]] = [[] for _ in prompts]
    scores: list[list[float]] = [[] for _ in prompts]
    for name, counts in (("sft", of_sft), ("base", of_base)):
        if any(counts):
            found = sample_completions(
                session, name, prompts, counts, "reward_model", settings.temperature
            )
            for of_prompt, sampled in zip(completions, found.tokens, strict=True):
                of_prompt.extend(sampled)
            if session.config.gold_model:
                for of_prompt, scored in zip(scores, _gold(session, prompts, found), strict=True):
                    of_prompt.extend(scored)
    session.fleet.rollout.sleep().result()
    texts = [[session.source.detokenize(c) for c in of_prompt] for of_prompt in completions]
    by_model = session.config.gold_model
    ranks = list(map(_ranks, scores)) if by_model else session.source.label(prompts, texts)
    _write_rankings(session, prompts, texts, ranks)
    return [
        Ranking(
            prompt.id,
            Ragged.from_rows([[*prompt.tokens, *c] for c in of_prompt], np.int32),
            np.asarray(rank, dtype=np.int64),
            prompt_length=len(prompt.tokens),
        )
        for prompt, of_prompt, rank in zip(prompts, completions, ranks, strict=True)
    ]


def _gold(session: Session, prompts: Sequence[Prompt], found: Completions) -> list[list[float]]:
    """Scores of sampled completions by the gold reward model, prompt by prompt."""
    session.fleet.rollout.sleep().result()
    spec = judge_spec(session.config, session.need("gold"), session.need("sft"))
    words = ("completions", "reward_model", "give a gold model that scores every completion")
    flat = iter(all_scored(session, spec, prompts, found.batch, words).tolist())
    return [[next(flat) for _ in of_prompt] for of_prompt in found.tokens]


def _ranks(scores: Sequence[float]) -> list[int]:
    """Ranks from 1 = best by score; equal scores tie, no rank is skipped."""
    places = {score: place for place, score in enumerate(sorted({*scores}, reverse=True), 1)}
    return [places[score] for score in scores]


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


def chosen(
    session: Session, stage: str, rankings: Sequence[Ranking], step: int, size: int
) -> list[Ranking]:
    """The rankings of one optimizer step; each epoch has a new order of all rankings.

    Args:
        session: The run.
        stage: Names the seed.
        rankings: All training rankings.
        step: Counted from 0, over all epochs.
        size: Rankings per step; the last step of an epoch may have fewer.
    """
    epoch, at = divmod(step, -(-len(rankings) // size))
    rng = np.random.default_rng(session.seed(stage, "order", epoch))
    order = rng.permutation(len(rankings))
    return [rankings[i] for i in order[at * size : (at + 1) * size]]
