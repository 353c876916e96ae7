"""Which old log-probabilities the next iteration uses: the engine's or the trainer's."""

from __future__ import annotations

import math

from orchestrator.config.training import OldLogprobs
from orchestrator.roles.weight_sync import Parity
from orchestrator.stages.ppo.state import PPORun

# nats: it moves a probability ratio by 1e-4, where PPO clips at .2. In fp32 the two differ by about
# 3e-6 on every token, in bf16 by more than 1e-2.
SAME = 1e-4


def choose_old_logprobs(run: PPORun, parity: Parity) -> None:
    """Choose for the sequences that the engines sample from the weights just synced.

    With `algorithm.old_logprobs=auto` the engine's are used if no probe token differs by more than
    `SAME`; the note says what was chosen, at the first sync and at each change.

    Args:
        run: The PPO run.
        parity: What the sync measured.
    """
    if run.learns_rankings:  # of which no ratio to the old policy is a part
        return
    settings = run.session.config.algorithm
    if settings.old_logprobs is not OldLogprobs.auto:
        run.engine_logprobs = settings.old_logprobs is OldLogprobs.rollout
        return
    # Sequences sampled ahead come from an older policy than the one before the update.
    chosen = parity.max_difference <= SAME and not settings.staleness
    run.sync.promised = SAME if chosen else math.inf
    if chosen != run.engine_logprobs:
        run.session.live.note(_told(chosen, parity, ahead=settings.staleness > 0))
    run.engine_logprobs = chosen


def _told(chosen: bool, parity: Parity, *, ahead: bool) -> str:
    whose = "the engine's" if chosen else "computed by the trainer"
    why = f"the two differ by up to {parity.max_difference:.1e} nats, limit {SAME:.0e}"
    return f"old log-probabilities are {whose}: {'sequences are sampled ahead' if ahead else why}"
