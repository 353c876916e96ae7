"""The driver's part of an advantage estimator: groups of sequences, and one number for each.

Sequences of one prompt may lie on different ranks, so what compares them is computed here, from
scalars; tokens stay on the ranks.
"""

# torch.from_numpy is not typed.
# pyright: reportUnknownMemberType=false

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from orchestrator.roles.interfaces import Rollouts
from orchestrator.stages.ppo.ledger import Cause
from orchestrator.stages.ppo.state import PPORun
from workers.records.arrays import IntArray
from workers.records.gather import gather_numbers, gather_scores
from workers.records.training import Scores, SequenceField
from workers.training.estimator import Sequences, sequence_numbers


def complete_groups(run: PPORun, rollouts: Rollouts, kept: IntArray) -> IntArray:
    """Drop the sequences of prompts that have too few left to compare; returns the others.

    A sequence alone has no baseline, and its reward must not stand in for an advantage.
    """
    needed = run.estimator.needs_samples
    prompts = rollouts.summary.prompt_ids[rows_of(rollouts, kept)]
    _, group, counts = np.unique(prompts, return_inverse=True, return_counts=True)
    enough = counts[group] >= needed
    if not enough.all():
        why = f"fewer than {needed} sequences of the prompt have a reward"
        run.ledger.dropped(kept[~enough], why, Cause.incomplete_group)
    return kept[enough]


def numbers_of(
    run: PPORun,
    rollouts: Rollouts,
    kept: IntArray,
    scores: Scores,
    kl: Sequence[SequenceField],
) -> SequenceField:
    """What the estimator computes on the driver, one number per kept sequence.

    Args:
        run: The PPO run.
        rollouts: The sequences of the iteration.
        kept: Ids of those that are trained on.
        scores: Their scores, penalties deducted.
        kl: Their KL to the reference, in nats, from all ranks.
    """
    import torch  # a second, which a run whose estimator compares nothing does not spend

    rows = rows_of(rollouts, kept)
    _, group = np.unique(rollouts.summary.prompt_ids[rows], return_inverse=True)
    found = sequence_numbers(
        run.estimator,
        Sequences(
            group=torch.from_numpy(group),
            scores=torch.from_numpy(gather_scores([scores], kept).values).double(),
            kl=torch.from_numpy(gather_numbers(kl, kept, "KL").values),
            lengths=torch.from_numpy(rollouts.summary.sampled_lengths[rows]),
            kl_coefficient=run.reward_kl_coefficient,
        ),
    )
    return SequenceField(kept, found.numpy())


def rows_of(rollouts: Rollouts, ids: IntArray) -> IntArray:
    """Where the sequences are in the summary of the rollouts."""
    order = np.argsort(rollouts.summary.ids)
    return order[np.searchsorted(rollouts.summary.ids, ids, sorter=order)]
