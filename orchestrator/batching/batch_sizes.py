"""Derived batch sizes and step counts of a run, and their divisibility checks. Pure arithmetic.

Units are in the names: prompts, sequences (one prompt with one response, also called an episode),
tokens, optimizer steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import OptimizerConfig
from orchestrator.config.rejection import Keep, Start
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from workers.errors import BatchArithmeticError

PPO_STAGES = (StageName.ppo, StageName.ppo_ptx)
# The stages that train on sequences which the policy samples meanwhile.
ONLINE_STAGES = (*PPO_STAGES, StageName.online_dpo, StageName.rejection_sampling)
# They train nothing.
SAMPLING_STAGES = (
    StageName.constitution, StageName.label, StageName.collect, StageName.evaluate,
    StageName.overoptimization,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PPOArithmetic:
    """The sizes of one PPO stage."""

    sequences_per_iteration: int
    sequences_per_engine: int  # largest share of a rollout worker
    minibatches: int
    steps_per_iteration: int
    optimizer_steps: int
    episodes: int
    most_tokens_per_iteration: int  # prompts and responses at their limits
    most_micro_batches_per_step: int  # per policy rank, at these limits
    documents_per_step: int  # pretraining documents of ptx; 0 without ptx or with full rows
    text_rows_per_step: int  # full rows of pretraining text of ptx; 0 without ptx or with documents


def started_prompts(config: Config) -> int:
    """Prompts that the engines start per iteration, including those that will be aborted."""
    needed = config.algorithm.prompts_per_iteration
    return needed + math.ceil(needed * config.rollout.overprovision)


def ppo_arithmetic(config: Config, stage: StageName) -> PPOArithmetic:
    """Derive PPO's sizes.

    Raises:
        BatchArithmeticError: minibatches do not divide the batch, or are smaller than the ranks.
    """
    algorithm, roles = config.algorithm, config.cluster.roles
    sequences = algorithm.prompts_per_iteration * algorithm.samples_per_prompt
    size = algorithm.sequences_per_minibatch
    if sequences % size:
        raise BatchArithmeticError(
            f"{algorithm.prompts_per_iteration} prompts x {algorithm.samples_per_prompt} samples = "
            f"{sequences} sequences per iteration do not divide into minibatches of {size}",
            where="algorithm.sequences_per_minibatch",
            fix=f"use {_nearest(size, sequences)}, or change algorithm.prompts_per_iteration",
        )
    critic = (RoleName.critic,) if algorithm.estimator.needs_values else ()
    for role in (RoleName.policy, *critic):
        _enough(config, role, size, "algorithm.sequences_per_minibatch", "sequences")
    _enough(config, RoleName.rollout, sequences, "algorithm.prompts_per_iteration", "sequences")
    longest = config.rollout.max_prompt_tokens + config.rollout.max_response_tokens
    per_rank = math.ceil(size / roles.policy.workers)
    rows = max(1, config.trainer.micro_batch_tokens // longest)
    minibatches = sequences // size
    mixed = pretraining_examples(config, size) if stage is StageName.ppo_ptx else 0
    in_rows = algorithm.ptx.rows_per_episode > 0
    return PPOArithmetic(
        sequences_per_iteration=sequences,
        sequences_per_engine=math.ceil(started_prompts(config) / roles.rollout.workers)
        * algorithm.samples_per_prompt,
        minibatches=minibatches,
        steps_per_iteration=minibatches * algorithm.epochs,
        optimizer_steps=minibatches * algorithm.epochs * algorithm.iterations,
        episodes=sequences * algorithm.iterations,
        most_tokens_per_iteration=sequences * longest,
        most_micro_batches_per_step=math.ceil(per_rank / rows),
        documents_per_step=0 if in_rows else mixed,
        text_rows_per_step=mixed if in_rows else 0,
    )


def pretraining_examples(config: Config, sequences: int) -> int:
    """Pretraining documents, or full rows, for `sequences` sequences of a PPO step."""
    ptx = config.algorithm.ptx
    return max(1, round((ptx.rows_per_episode or ptx.documents_per_episode) * sequences))


def reward_model_steps(config: Config) -> int | None:
    """Optimizer steps of reward modelling; None if the number of rankings depends on a file.

    Rankings with only ties are left out, so a run may take fewer steps.

    Raises:
        BatchArithmeticError: a step is smaller than the number of ranks, or larger than the data.
    """
    settings = config.reward_model
    _enough(
        config, RoleName.critic, settings.prompts_per_step, "reward_model.prompts_per_step",
        "prompts",
    )  # fmt: skip
    sampled = config.samples_rankings
    known = {"max_rankings": settings.max_rankings} if settings.max_rankings else {}
    if sampled:
        known["prompts"] = settings.prompts - settings.skip_rankings
    if not known:
        return None
    name = min(known, key=known.__getitem__)
    rankings = known[name]
    if rankings < settings.prompts_per_step:
        skipped = (
            f", {settings.skip_rankings} skipped," if sampled and settings.skip_rankings else ""
        )
        raise BatchArithmeticError(
            f"{max(rankings, 0)} rankings{skipped} are fewer than one step of "
            f"{settings.prompts_per_step}",
            where=f"reward_model.{name}",
            fix=f"raise reward_model.{name} or lower reward_model.prompts_per_step",
        )
    return ranking_steps(config, rankings) if sampled else None


def preference_steps(config: Config) -> int | None:
    """Optimizer steps of the stage dpo; None if the number of rankings depends on a file.

    Raises:
        BatchArithmeticError: a step is smaller than the number of ranks.
    """
    settings = config.preference
    _enough(
        config, RoleName.policy, settings.rankings_per_step, "preference.rankings_per_step",
        "rankings",
    )  # fmt: skip
    if not config.samples_rankings:
        return None
    rankings = config.reward_model.prompts - config.reward_model.skip_rankings
    if config.reward_model.max_rankings:
        rankings = min(rankings, config.reward_model.max_rankings)
    if rankings < 1:
        raise BatchArithmeticError(
            f"all {config.reward_model.prompts} rankings are skipped",
            where="reward_model.skip_rankings",
            fix="lower it, or raise reward_model.prompts",
        )
    return math.ceil(rankings / settings.rankings_per_step) * settings.epochs


def online_preference_steps(config: Config) -> int:
    """Most optimizer steps of the stage online_dpo; prompts without a pair are left out.

    Raises:
        BatchArithmeticError: a step or an iteration is smaller than the ranks that share it.
    """
    settings, algorithm = config.preference, config.algorithm
    size = min(settings.rankings_per_step, algorithm.prompts_per_iteration)
    _enough(config, RoleName.policy, size, "preference.rankings_per_step", "rankings")
    sequences = algorithm.prompts_per_iteration * algorithm.samples_per_prompt
    _enough(config, RoleName.rollout, sequences, "algorithm.prompts_per_iteration", "sequences")
    each = math.ceil(algorithm.prompts_per_iteration / settings.rankings_per_step)
    return each * settings.epochs * algorithm.iterations


def rejection_steps(config: Config) -> list[int]:
    """Optimizer steps of each iteration of rejection sampling, at most.

    Prompts that repeat, or whose rewards fail, leave fewer samples to train on.

    Raises:
        BatchArithmeticError: a batch or a step is smaller than the number of workers.
    """
    settings, where = config.rejection, "rejection.sequences_per_step"
    _enough(config, RoleName.policy, settings.sequences_per_step, where, "sequences")
    sampled = settings.prompts_per_iteration * settings.samples
    where = "rejection.prompts_per_iteration"
    _enough(config, RoleName.rollout, sampled, where, "sequences")
    kept = sampled if settings.keep is Keep.above else settings.prompts_per_iteration
    return [
        math.ceil(kept * (n if settings.from_all_iterations else 1) / settings.sequences_per_step)
        * settings.epochs
        for n in range(1, settings.iterations + 1)
    ]


def ranking_steps(config: Config, rankings: int) -> int:
    """Optimizer steps of all passes over `rankings`; the last step of a pass may be smaller."""
    settings = config.reward_model
    return math.ceil(rankings / settings.prompts_per_step) * settings.epochs


def sft_rows(config: Config) -> tuple[int, int]:
    """Demonstrations and pretraining documents per optimizer step of SFT.

    Raises:
        BatchArithmeticError: the fraction rounds to no document, or leaves no demonstration.
    """
    rows, share = config.sft.demonstrations_per_step, config.sft.pretraining_fraction
    documents = round(share * rows)
    if share > 0.0 and not 0 < documents < rows:
        raise BatchArithmeticError(
            f"a share of {share:g} of {rows} rows is {documents} documents",
            where="sft.pretraining_fraction",
            fix="raise sft.demonstrations_per_step, or choose a share that leaves both",
        )
    return rows - documents, documents


def stage_steps(config: Config, stage: StageName) -> int | None:
    """Optimizer steps of a stage; None if they depend on the data.

    Raises:
        BatchArithmeticError: batch sizes do not divide, or leave a rank without work.
    """
    if stage in SAMPLING_STAGES:
        return 0
    if stage in PPO_STAGES:
        return ppo_arithmetic(config, stage).optimizer_steps
    if stage is StageName.reward_model:
        return reward_model_steps(config)
    if stage is StageName.dpo:
        return preference_steps(config)
    if stage is StageName.online_dpo:
        return online_preference_steps(config)
    if stage is StageName.rejection_sampling:
        return sum(rejection_steps(config))
    if stage is StageName.sft:
        sft_rows(config)
        _enough(
            config, RoleName.policy, config.sft.demonstrations_per_step,
            "sft.demonstrations_per_step", "demonstrations",
        )  # fmt: skip
        return None if config.sft.epochs else config.sft.steps
    _enough(
        config, RoleName.policy, config.pretrain.documents_per_step,
        "pretrain.documents_per_step", "documents",
    )  # fmt: skip
    return config.pretrain.steps


def _enough(config: Config, role: RoleName, amount: int, key: str, unit: str) -> None:
    workers = config.cluster.roles.of(role).workers
    if amount < workers:
        raise BatchArithmeticError(
            f"{amount} {unit} cannot give work to {workers} {role.value} workers",
            where=key,
            fix=f"raise {key} to {workers} or more, or lower cluster.roles.{role.value}.workers",
        )


def fitting_warmup(warmup: int, steps: int) -> int:
    """Warm-up steps, shortened to half of `steps` if the warm-up would not end before training."""
    return warmup if warmup < steps else steps // 2


def warmup_note(optimizer: OptimizerConfig, steps: int | None, where: str) -> list[str]:
    """One sentence if the warm-up is shortened to fit, else none.

    Args:
        optimizer: settings with the warm-up.
        steps: optimizer steps of the training; None = not known yet.
        where: configuration key of the optimizer, for the sentence.
    """
    if steps is None or optimizer.warmup_steps < steps or not optimizer.warmup_steps:
        return []
    fits = fitting_warmup(optimizer.warmup_steps, steps)
    return [
        f"{where}.warmup_steps={optimizer.warmup_steps} is cut to {fits}: training takes "
        f"{steps} optimizer step(s)"
    ]


def cut_warmups(config: Config) -> list[str]:
    """One sentence per warm-up of the run that does not end within its stage."""
    notes: list[str] = []
    for stage in config.stage_names:
        for where, optimizer, steps in optimizers(config, stage):
            notes += warmup_note(optimizer, steps, where)
    return list(dict.fromkeys(notes))


def optimizers(
    config: Config, stage: StageName
) -> Iterator[tuple[str, OptimizerConfig, int | None]]:
    """Key, settings and steps of each optimizer of a stage."""
    steps = stage_steps(config, stage)
    algorithm = config.algorithm
    if stage in PPO_STAGES:
        assert steps is not None
        each = ppo_arithmetic(config, stage).steps_per_iteration
        taught = steps - algorithm.critic_warmup_iterations * each
        yield "algorithm.policy_optimizer", algorithm.policy_optimizer, taught
        if algorithm.estimator.needs_values:
            yield "algorithm.critic_optimizer", algorithm.critic_optimizer, steps
    elif stage is StageName.reward_model:
        yield "reward_model.optimizer", config.reward_model.optimizer, steps
    elif stage is StageName.rejection_sampling:
        each = rejection_steps(config)
        alone = config.rejection.start is Start.sft
        yield "rejection.optimizer", config.rejection.optimizer, min(each) if alone else sum(each)
    elif stage in (StageName.dpo, StageName.online_dpo):
        yield "preference.optimizer", config.preference.optimizer, steps
    elif stage is StageName.sft:
        yield "sft.optimizer", config.sft.optimizer, steps
    elif stage not in SAMPLING_STAGES:
        yield "pretrain.optimizer", config.pretrain.optimizer, steps


def _nearest(size: int, whole: int) -> str:
    """The divisors of `whole` nearest to `size`, in words."""
    low = [n for n in range(1, math.isqrt(whole) + 1) if whole % n == 0]
    choices = sorted({*low, *(whole // n for n in low)})
    below = [n for n in choices if n < size]
    above = [n for n in choices if n > size]
    return " or ".join(str(n) for n in (*below[-1:], *above[:1]))
