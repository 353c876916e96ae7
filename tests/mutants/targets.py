"""Which files are mutated, and which tests look at each."""

from __future__ import annotations

from mutants.operators import Mutant

_LOSSES, _REDUCTIONS = "tests/unit/test_ops_losses.py", "tests/unit/test_ops_reductions.py"
_SHAPES = "tests/unit/test_ops_shapes.py"
_LOOP = tuple(
    f"tests/unit/test_{name}.py" for name in ("ppo_record", "ppo_course", "wiring", "ppo_loop")
)
_GOING_ON = (
    "tests/unit/test_recovery.py",
    "tests/unit/test_resume_stages.py",
    "tests/unit/test_ahead.py",
)
_TRAINERS = "tests/unit/test_trainer_updates.py"
_LOADED = "tests/unit/test_loaded_models.py"
_ENGINE, _FROZEN = "tests/unit/test_rollout_worker.py", "tests/unit/test_frozen_roles.py"

# file -> its tests, those that notice most first
TESTS: dict[str, tuple[str, ...]] = {
    "workers/ops/advantages.py": ("tests/unit/test_ops_advantages.py", _SHAPES),
    "workers/ops/kl.py": (_REDUCTIONS, _LOSSES),
    "workers/ops/linear_logprobs.py": ("tests/unit/test_ops_linear_logprobs.py",),
    "workers/ops/logprobs.py": (_REDUCTIONS, "tests/unit/test_ops_linear_logprobs.py"),
    "workers/ops/losses.py": (_LOSSES, _SHAPES),
    "workers/ops/masks.py": (_REDUCTIONS, _LOSSES, _SHAPES),
    "workers/ops/stats.py": (_LOSSES, _SHAPES),
    "workers/experience.py": ("tests/unit/test_experience.py", _TRAINERS),
    "workers/schedule.py": ("tests/unit/test_schedule.py",),
    "workers/averaging.py": (_TRAINERS,),
    "workers/policy.py": (_TRAINERS, _LOADED),
    "workers/critic.py": (_TRAINERS, _LOADED, "tests/unit/test_critic.py"),
    "workers/scoring.py": (_TRAINERS, _FROZEN),
    "workers/passes.py": ("tests/unit/test_routes.py", "tests/unit/test_passes.py"),
    "workers/padding.py": ("tests/unit/test_padding.py", "tests/unit/test_passes.py"),
    "workers/generation.py": (_ENGINE, "tests/unit/test_generation_job.py"),
    "workers/rollout.py": (_ENGINE, "tests/unit/test_rollout_calls.py"),
    "workers/reward.py": (_LOADED, _FROZEN, "tests/unit/test_reward_function.py"),
    "orchestrator/derive.py": ("tests/unit/test_wiring.py", "tests/unit/test_reward_spec.py"),
    "orchestrator/batching.py": ("tests/unit/test_batching.py",),
    "orchestrator/arithmetic.py": ("tests/unit/test_wiring.py", "tests/unit/test_arithmetic.py"),
    "orchestrator/statistics.py": ("tests/unit/test_statistics.py",),
    "orchestrator/ledger.py": ("tests/unit/test_ledger.py",),
    "orchestrator/seeds.py": ("tests/unit/test_seeds.py", "tests/unit/test_wiring.py"),
    "orchestrator/text_rows.py": ("tests/unit/test_text_rows.py",),
    "orchestrator/session.py": (*_LOOP, "tests/unit/test_seeds.py"),
    "orchestrator/stages/ppo.py": (*_LOOP, *_GOING_ON),
    "orchestrator/stages/ppo_scores.py": ("tests/unit/test_ppo_scores.py", *_LOOP),
    "orchestrator/stages/ppo_passes.py": _LOOP,
    "orchestrator/stages/ppo_record.py": _LOOP,
}

# What the generator draws from; `session` serves the listed mutants alone.
FILES = tuple(path for path in TESTS if path != "orchestrator/session.py")

# Mutants that change nothing that anybody could see: file, part of the mutated line, why.
EQUIVALENT: tuple[tuple[str, str, str], ...] = (
    ("workers/passes.py", ").abs() < close", "a difference equals the bound by accident alone"),
    ("workers/experience.py", "reshape(-2", "numpy takes any number below 0 for the rest"),
    ("orchestrator/stages/ppo_passes.py", "strict=False", "columns of one record"),
    ("orchestrator/stages/ppo_passes.py", "ids.max()", "an order by ids as good as the other"),
    ("orchestrator/stages/ppo_record.py", "strict=False", "columns of one record"),
    ("orchestrator/statistics.py", "(first >= second)", "equal ones are ties before that"),
    ("workers/passes.py", "_PROBE = Ragged", "tokens of a probe: any do"),
    ("workers/passes.py", "cells = torch.tensor([", "cells of a probe: any do"),
    ("workers/ops/logprobs.py", "masked_fill(p == 0, 1.0)", "times a probability of 0"),
    ("orchestrator/batching.py", "heap = [(", "all ranks begin alike"),
    ("orchestrator/batching.py", "rows + 2", "more rows are more all the same"),
    ("workers/critic.py", "(values + returns)", "as finite as their difference"),
    ("workers/policy.py", "(new + old)", "as finite as their difference"),
    ("workers/passes.py", "torch.tensor([[[", "numbers of a probe: any do"),
    ("orchestrator/text_rows.py", "= (1, [])", "nothing is held yet"),
    ("workers/rollout.py", "self._begun = 1  #", "`start` sets it again"),
    ("orchestrator/statistics.py", "<= Z95 ** 2", "equal by accident alone"),
    ("orchestrator/statistics.py", "min(2.0, centre", "it ends at 1 but for rounding"),
    ("orchestrator/arithmetic.py", "n <= size", "`size` does not divide `whole`"),
    ("orchestrator/arithmetic.py", "n >= size", "`size` does not divide `whole`"),
    ("workers/ops/stats.py", "n == 1", "one return does not vary"),
    ("workers/critic.py", "_SCORE_TOKENS = 8193", "tokens of a pass: one more does as well"),
    ("workers/experience.py", "len(lengths) else 1", "a grid without rows"),
    ("orchestrator/statistics.py", "range(61)", "as many halvings as a float has bits"),
    ("orchestrator/text_rows.py", "_AT_ONCE = 65", "how many documents are read at a time"),
    ("workers/ops/linear_logprobs.py", "dim=1)", "the last of two axes is axis 1"),
    ("workers/ops/losses.py", "zero = (torch.ones_like(values))", "masked terms are all alike"),
    ("workers/policy.py", "ppo_stats((new),", "it takes no gradient"),
    ("workers/experience.py", "dense = (torch.ones", "masked positions may hold anything"),
    ("workers/experience.py", "ids[:9]", "how many sequences a message names"),
    ("workers/experience.py", "len(ids) > 9", "how many sequences a message names"),
    ("workers/scoring.py", "np.ones(0,", "is empty"),
    ("workers/critic.py", "value_stats((values),", "it takes no gradient"),
    ("workers/rollout.py", "GenerationRequest(1, prompt", "a token that nobody reads"),
    ("workers/padding.py", "np.ones(0,", "is empty"),
    ("workers/padding.py", "ids = (torch.ones(", "tokens of a dummy: any do"),
    ("workers/ops/linear_logprobs.py", "strict=False", "both are split alike"),
    ("orchestrator/stages/ppo_scores.py", "strict=False", "columns of one record"),
    ("orchestrator/stages/ppo.py", "version=1,", "the first sync gives it its number"),
    ("orchestrator/batching.py", "longest = used = 1", "the first item starts a group"),
    ("workers/rollout.py", "= -2", "an engine that holds nothing has any negative version"),
)


def tests_of(path: str) -> tuple[str, ...]:
    """Tests of a file, relative to the root."""
    return TESTS[path]


def reason(mutant: Mutant) -> str | None:
    """Why a mutant is no fault, or None."""
    line = mutant.source.splitlines()[mutant.line - 1]
    return next((why for p, part, why in EQUIVALENT if p == mutant.path and part in line), None)
