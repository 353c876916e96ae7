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
from orchestrator.stages.constitution.demonstrations import Demonstrated
from workers.records.arrays import FloatArray
from workers.records.training import Ranking

DEMONSTRATION = "demonstration"


def show_answers(session: Session, demonstrated: Demonstrated, model: str) -> None:
    """Greedy answers of the policy in its trainer to held-out demonstrations, beside these.

    Args:
        session: The run; its policy's trainer holds the weights.
        demonstrated: The demonstrations that it was trained on.
        model: The name of the model in the report.
    """
    if _evaluated(session):
        return
    shown = session.config.evaluate.samples_shown
    rows = demonstrated.demonstrations("heldout", 0, shown).split()
    source = session.source
    stop = source.tokenizer.eos_token_id
    assert isinstance(stop, int), "a data source refuses a tokenizer without an end token"
    limit = session.config.rollout.max_response_tokens
    prompts = [np.array(prompt, np.int64) for prompt, _ in rows]
    answers = session.fleet.policy.complete(prompts, limit, stop).result()
    add_comparisons(
        session.folder,
        [
            Comparison(
                source.detokenize(prompt),
                {
                    DEMONSTRATION: source.detokenize(reply),
                    model: source.detokenize(answer.tolist()),
                },
            )
            for (prompt, reply), answer in zip(rows, answers, strict=True)
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
    rows = ranking.sequences
    responses: dict[str, str] = {}
    numbers: dict[str, float] = {}
    for place in np.argsort(ranking.ranks, kind="stable"):
        name = f"rank {ranking.ranks[place]}"
        tied = sum(each.split(",")[0] == name for each in responses)
        name += f", tied {tied + 1}" if tied else ""
        responses[name] = source.detokenize(rows.row(int(place))[cut:].tolist())
        numbers[name] = float(scores[place])
    return Comparison(source.detokenize(rows.row(0)[:cut].tolist()), responses, scores=numbers)


def _evaluated(session: Session) -> bool:
    run = whole(session.config)
    return any(stage_of(run.variants, name) is StageName.evaluate for name in run.stages)
