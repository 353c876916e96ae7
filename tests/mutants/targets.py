"""Which files are mutated, and which tests look at each."""

from __future__ import annotations

from mutants.operators import Mutant

_LOSSES, _REDUCTIONS = (
    "tests/unit/workers/ops/test_ops_losses.py",
    "tests/unit/workers/ops/test_ops_reductions.py",
)
_SHAPES = "tests/unit/workers/ops/test_ops_shapes.py"
_LOOP = (
    "tests/unit/orchestrator/stages/ppo/test_ppo_record.py",
    "tests/unit/orchestrator/stages/ppo/test_ppo_course.py",
    "tests/unit/orchestrator/stages/test_wiring.py",
    "tests/unit/orchestrator/stages/ppo/test_ppo_loop.py",
)
_GOING_ON = (
    "tests/unit/orchestrator/session/test_recovery.py",
    "tests/unit/orchestrator/session/test_resume_stages.py",
    "tests/unit/orchestrator/stages/ppo/test_queue.py",
)
_TRAINERS = "tests/unit/workers/roles/test_trainer_updates.py"
_LOADED = "tests/unit/workers/roles/test_loaded_models.py"
_ENGINE, _FROZEN = (
    "tests/unit/workers/roles/test_rollout_worker.py",
    "tests/unit/workers/roles/test_frozen_roles.py",
)
_SOURCE = "tests/unit/workers/scorers/test_reward_source.py"
_LOST, _CALLS, _GROUP = (
    "tests/unit/orchestrator/roles/test_lost_engines.py",
    "tests/unit/orchestrator/roles/test_engine_calls.py",
    "tests/unit/orchestrator/roles/test_rollout_group.py",
)

# file -> its tests, those that notice most first
TESTS: dict[str, tuple[str, ...]] = {
    "workers/ops/advantages.py": ("tests/unit/workers/ops/test_ops_advantages.py", _SHAPES),
    "workers/ops/kl.py": (_REDUCTIONS, _LOSSES),
    "workers/ops/linear_logprobs.py": ("tests/unit/workers/ops/test_ops_linear_logprobs.py",),
    "workers/ops/logprobs.py": (_REDUCTIONS, "tests/unit/workers/ops/test_ops_linear_logprobs.py"),
    "workers/ops/losses.py": (_LOSSES, _SHAPES),
    "workers/ops/surrogates.py": ("tests/unit/workers/ops/test_surrogates.py", _LOSSES),
    "workers/ops/groups.py": ("tests/unit/workers/ops/test_groups.py",),
    "workers/training/policy_loss.py": ("tests/unit/workers/training/test_policy_loss.py",),
    "workers/ops/masks.py": (_REDUCTIONS, _LOSSES, _SHAPES),
    "workers/ops/stats.py": (_LOSSES, _SHAPES),
    "workers/records/gather.py": ("tests/unit/workers/training/test_experience.py", _TRAINERS),
    "workers/training/experience.py": ("tests/unit/workers/training/test_experience.py", _TRAINERS),
    "workers/training/whitening.py": ("tests/unit/workers/training/test_experience.py",),
    "workers/training/estimator.py": (
        "tests/unit/workers/training/test_estimator.py",
        "tests/unit/orchestrator/stages/ppo/test_estimators.py",
    ),
    "workers/training/estimators/gae.py": (
        "tests/unit/workers/training/estimators/test_gae.py",
        "tests/unit/workers/training/test_experience.py",
    ),
    "workers/extensions/kinds.py": ("tests/unit/workers/extensions/test_kinds.py",),
    "workers/extensions/settings.py": ("tests/unit/workers/extensions/test_settings.py",),
    "orchestrator/cluster/extra_room.py": ("tests/unit/orchestrator/cluster/test_extra_room.py",),
    "orchestrator/roles/dispatch.py": ("tests/unit/orchestrator/roles/test_dispatch.py", _LOST),
    "orchestrator/roles/generation.py": (_LOST, _CALLS, _GROUP),
    "orchestrator/roles/returning_engines.py": (_LOST, _CALLS),
    "orchestrator/roles/rollout_group.py": (_LOST, _CALLS, _GROUP),
    "workers/training/schedule.py": ("tests/unit/workers/training/test_schedule.py",),
    "workers/training/weight_average.py": (_TRAINERS,),
    "workers/roles/policy.py": (_TRAINERS, _LOADED),
    "workers/roles/critic.py": (_TRAINERS, _LOADED, "tests/unit/workers/roles/test_critic.py"),
    "workers/roles/scoring.py": (_TRAINERS, _FROZEN),
    "workers/models/forward.py": (
        "tests/unit/workers/models/test_forward_routes.py",
        "tests/unit/workers/models/test_forward.py",
    ),
    "workers/models/padding.py": (
        "tests/unit/workers/models/test_padding.py",
        "tests/unit/workers/models/test_forward.py",
    ),
    "workers/generation/engine.py": (_ENGINE, "tests/unit/workers/generation/test_job.py"),
    "workers/roles/rollout.py": (_ENGINE, "tests/unit/workers/roles/test_rollout_calls.py"),
    "workers/roles/reward.py": (_FROZEN, _SOURCE),
    "workers/scorers/function.py": (_FROZEN, _SOURCE),
    "workers/scorers/model.py": (_LOADED, _FROZEN),
    "workers/scorers/source.py": (_SOURCE, _FROZEN),
    "orchestrator/planning/worker_specs.py": (
        "tests/unit/orchestrator/stages/test_wiring.py",
        "tests/unit/orchestrator/planning/test_reward_spec.py",
    ),
    "orchestrator/batching/training_batches.py": (
        "tests/unit/orchestrator/batching/test_training_batches.py",
    ),
    "orchestrator/batching/batch_sizes.py": (
        "tests/unit/orchestrator/stages/test_wiring.py",
        "tests/unit/orchestrator/batching/test_batch_sizes.py",
    ),
    "orchestrator/batching/selection.py": ("tests/unit/orchestrator/batching/test_selection.py",),
    "orchestrator/batching/margins.py": ("tests/unit/orchestrator/batching/test_margins.py",),
    "orchestrator/results/best_of.py": ("tests/unit/orchestrator/results/test_best_of.py",),
    "orchestrator/results/intervals.py": ("tests/unit/orchestrator/results/test_intervals.py",),
    "orchestrator/stages/ppo/advantages.py": (
        "tests/unit/orchestrator/stages/ppo/test_estimators.py",
        *_LOOP,
    ),
    "orchestrator/stages/ppo/ledger.py": ("tests/unit/orchestrator/stages/ppo/test_ledger.py",),
    "orchestrator/config/by_name.py": ("tests/unit/orchestrator/config/test_by_name.py",),
    "orchestrator/config/seeds.py": (
        "tests/unit/orchestrator/config/test_seeds.py",
        "tests/unit/orchestrator/stages/test_wiring.py",
    ),
    "orchestrator/batching/text_rows.py": ("tests/unit/orchestrator/batching/test_text_rows.py",),
    "orchestrator/session/session.py": (*_LOOP, "tests/unit/orchestrator/config/test_seeds.py"),
    "orchestrator/stages/ppo/loop.py": (*_LOOP, *_GOING_ON),
    "orchestrator/stages/ppo/scored.py": (
        "tests/unit/orchestrator/stages/ppo/test_dynamic_sampling.py",
        *_LOOP,
    ),
    "orchestrator/stages/ppo/setup.py": _LOOP,
    "orchestrator/stages/ppo/sampling.py": (*_LOOP, *_GOING_ON),
    "orchestrator/stages/ppo/state.py": (*_LOOP, *_GOING_ON),
    "orchestrator/stages/ppo/updates.py": _LOOP,
    "orchestrator/stages/ppo/scores.py": (
        "tests/unit/orchestrator/stages/ppo/test_ppo_scores.py",
        *_LOOP,
    ),
    "orchestrator/stages/ppo/passes.py": _LOOP,
    "orchestrator/stages/ppo/record.py": _LOOP,
}

# What the generator draws from; `session` serves the listed mutants alone.
FILES = tuple(path for path in TESTS if path != "orchestrator/session/session.py")

# Mutants that change nothing that anybody could see: file, part of the mutated line, why.
EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    (
        "workers/models/forward.py",
        ").abs() < close",
        "a difference equals the bound by accident alone",
    ),
    ("workers/records/gather.py", "reshape(-2", "numpy takes any number below 0 for the rest"),
    ("orchestrator/stages/ppo/passes.py", "strict=False", "columns of one record"),
    ("orchestrator/stages/ppo/passes.py", "ids.max()", "an order by ids as good as the other"),
    ("orchestrator/stages/ppo/record.py", "strict=False", "columns of one record"),
    ("orchestrator/results/intervals.py", "(first >= second)", "equal ones are ties before that"),
    ("workers/models/forward.py", "_PROBE = Ragged", "tokens of a probe: any do"),
    ("workers/models/forward.py", "cells = torch.tensor([", "cells of a probe: any do"),
    ("workers/ops/logprobs.py", "masked_fill(p == 0, 1.0)", "times a probability of 0"),
    ("orchestrator/batching/training_batches.py", "heap = [(", "all ranks begin alike"),
    ("orchestrator/batching/training_batches.py", "rows + 2", "more rows are more all the same"),
    ("workers/roles/critic.py", "(values + returns)", "as finite as their difference"),
    ("workers/roles/policy.py", "(new + old)", "as finite as their difference"),
    ("workers/models/forward.py", "torch.tensor([[[", "numbers of a probe: any do"),
    ("orchestrator/batching/text_rows.py", "= (1, [])", "nothing is held yet"),
    ("workers/roles/rollout.py", "self._begun = 1  #", "`start` sets it again"),
    ("orchestrator/results/intervals.py", "<= Z95 ** 2", "equal by accident alone"),
    ("orchestrator/results/intervals.py", "min(2.0, centre", "it ends at 1 but for rounding"),
    ("orchestrator/batching/batch_sizes.py", "n <= size", "`size` does not divide `whole`"),
    ("orchestrator/batching/batch_sizes.py", "n >= size", "`size` does not divide `whole`"),
    ("workers/ops/stats.py", "n == 1", "one return does not vary"),
    ("workers/roles/critic.py", "_SCORE_TOKENS = 8193", "tokens of a pass: one more does as well"),
    ("workers/training/experience.py", "len(lengths) else 1", "a grid without rows"),
    ("orchestrator/results/intervals.py", "range(61)", "as many halvings as a float has bits"),
    (
        "orchestrator/batching/text_rows.py",
        "_AT_ONCE = 65",
        "how many documents are read at a time",
    ),
    ("workers/ops/linear_logprobs.py", "dim=1)", "the last of two axes is axis 1"),
    ("workers/ops/losses.py", "zero = (torch.ones_like(values))", "masked terms are all alike"),
    ("workers/roles/policy.py", "ratio_stats((new),", "it takes no gradient"),
    ("workers/training/experience.py", "dense = (torch.ones", "masked positions may hold anything"),
    ("workers/records/gather.py", "ids[:9]", "how many sequences a message names"),
    ("workers/records/gather.py", "len(ids) > 9", "how many sequences a message names"),
    ("workers/roles/scoring.py", "np.ones(0,", "is empty"),
    ("workers/roles/critic.py", "value_stats((values),", "it takes no gradient"),
    ("workers/roles/rollout.py", "GenerationRequest(1, prompt", "a token that nobody reads"),
    ("workers/models/padding.py", "np.ones(0,", "is empty"),
    ("workers/models/padding.py", "ids = (torch.ones(", "tokens of a dummy: any do"),
    ("workers/ops/linear_logprobs.py", "strict=False", "both are split alike"),
    ("orchestrator/stages/ppo/scores.py", "strict=False", "columns of one record"),
    ("orchestrator/stages/ppo/setup.py", "version=1,", "the first sync gives it its number"),
    (
        "orchestrator/batching/training_batches.py",
        "longest = used = 1",
        "the first item starts a group",
    ),
    ("workers/roles/rollout.py", "= -2", "an engine that holds nothing has any negative version"),
)


def tests_of(path: str) -> tuple[str, ...]:
    """Tests of a file, relative to the root."""
    return TESTS[path]


def reason(mutant: Mutant) -> str | None:
    """Why a mutant is no fault, or None."""
    line = mutant.source.splitlines()[mutant.line - 1]
    return next((why for p, part, why in EQUIVALENT if p == mutant.path and part in line), None)
