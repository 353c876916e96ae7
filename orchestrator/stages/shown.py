"""Texts that a stage without engines shows in the report of its run, where no evaluation follows.

An evaluation shows the answers of all models side by side, in place of these.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.config.run import StageName
from orchestrator.config.variants import stage_of
from orchestrator.planning.runs.stage_run import whole
from orchestrator.run_files.samples import Comparison, add_comparisons
from orchestrator.session.session import Session
from workers.records.arrays import FloatArray
from workers.records.training import Ranking

DEMONSTRATION = "demonstration"


def show_answers(session: Session, model: str) -> None:
    """Greedy answers of the policy in its trainer to held-out demonstrations, beside these.

    Args:
        session: The run; its policy's trainer holds the weights.
        model: The name of the model in the report.
    """
    if _evaluated(session):
        return
    source = session.source
    rows = source.demonstrations("heldout", 0, session.config.evaluate.samples_shown)
    starts = [int(np.argmax(targets)) for targets in rows.targets.rows()]
    prompts = [
        tokens[:start].astype(np.int64)
        for tokens, start in zip(rows.tokens.rows(), starts, strict=True)
    ]
    given = [tokens[start:] for tokens, start in zip(rows.tokens.rows(), starts, strict=True)]
    stop = source.tokenizer.eos_token_id
    assert isinstance(stop, int), "a data source refuses a tokenizer without an end token"
    limit = session.config.rollout.max_response_tokens
    answers = session.fleet.policy.complete(prompts, limit, stop).result()
    add_comparisons(
        session.folder,
        [
            Comparison(
                source.detokenize(prompt.tolist()),
                {
                    DEMONSTRATION: source.detokenize(reply[reply != stop].tolist()),
                    model: source.detokenize(answer.tolist()),
                },
            )
            for prompt, reply, answer in zip(prompts, given, answers, strict=True)
        ],
    )


def show_scores(
    session: Session, rankings: Sequence[Ranking], scores: Sequence[FloatArray]
) -> None:
    """Held-out rankings, the best completion first, with the scores of the reward model.

    Args:
        session: The run.
        rankings: Held out.
        scores: Of the completions of each, reward units.
    """
    if _evaluated(session):
        return
    shown = session.config.evaluate.samples_shown
    known = ((r, s) for r, s in zip(rankings, scores, strict=True) if r.prompt_length)
    found: dict[int, Comparison] = {}
    for ranking, own in known:
        if len(found) < shown:
            found.setdefault(ranking.prompt_id, _ranked(session, ranking, own))
    add_comparisons(session.folder, list(found.values()))


def _ranked(session: Session, ranking: Ranking, scores: FloatArray) -> Comparison:
    source, cut = session.source, ranking.prompt_length
    stop = source.tokenizer.eos_token_id
    rows = ranking.sequences
    responses: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for place in np.argsort(ranking.ranks, kind="stable"):
        name = f"rank {ranking.ranks[place]}"
        tied = sum(each.split(",")[0] == name for each in responses)
        name += f", tied {tied + 1}" if tied else ""
        completion = rows.row(int(place))[cut:]
        responses[name] = source.detokenize(completion[completion != stop].tolist())
        numbers[name] = float(scores[place])
    return Comparison(source.detokenize(rows.row(0)[:cut].tolist()), responses, scores=numbers)


def _evaluated(session: Session) -> bool:
    run = whole(session.config)
    return any(stage_of(run.variants, name) is StageName.evaluate for name in run.stages)
