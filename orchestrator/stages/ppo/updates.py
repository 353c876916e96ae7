"""Experience building, and the updates of policy and critic from it."""

from __future__ import annotations

from orchestrator.batching import training_batches
from orchestrator.batching.batch_sizes import pretraining_examples
from orchestrator.batching.training_batches import StepPlan
from orchestrator.config.by_name import from_sections
from orchestrator.roles.interfaces import Answer, Experience, Rollouts
from orchestrator.roles.trainer_groups import TrainerGroup
from orchestrator.stages.ppo.advantages import numbers_of, rows_of
from orchestrator.stages.ppo.passes import Passes, shared
from orchestrator.stages.ppo.state import PPORun
from workers.records.arrays import IntArray
from workers.records.specs import PolicyLossSpec, ShapingSpec
from workers.records.training import Scores, StepStats, TokenBatch
from workers.training.whitening import whitening_moments


def start_experience(
    run: PPORun,
    rollouts: Rollouts,
    kept: IntArray,
    scores: Scores,
    passes: Passes,
) -> Answer[Experience]:
    """Start building token rewards, advantages and returns on the policy's ranks."""
    settings, policy = run.session.config.algorithm, run.session.fleet.policy
    works = shared(run.session, rollouts, kept, policy)
    shaping = from_sections(
        ShapingSpec,
        settings,
        kl_coefficient=run.reward_kl_coefficient,
        estimator=settings.estimator_spec,
        keeps_reference=run.loss_kl_coefficient > 0.0,
    )
    old, reference, values = passes.old_logprobs(), passes.reference_logprobs(), passes.values()
    numbers = None
    if run.estimator.of_sequences is not None:
        kl = policy.kl_sums(works, rollouts, old, reference).result()
        numbers = numbers_of(run, rollouts, kept, scores, kl)
    return policy.build_experience(
        works, rollouts, old, reference, values, scores, shaping, numbers
    )


def _step_plan(run: PPORun, iteration: int, group: TrainerGroup) -> StepPlan:
    settings = run.session.config.algorithm
    return StepPlan(
        ranks=group.size,
        token_budget=run.session.config.trainer.micro_batch_tokens,
        per_step=settings.sequences_per_minibatch,
        epochs=settings.epochs,
        seed=(run.session.seed(run.stage, "minibatches", iteration),),
        uneven=True,  # after a dropped sequence
        packed=group.packed,
    )


def _lengths(rollouts: Rollouts, kept: IntArray) -> tuple[IntArray, IntArray]:
    """Sampled and total tokens of the kept sequences."""
    summary, rows = rollouts.summary, rows_of(rollouts, kept)
    total = summary.prompt_lengths[rows] + summary.response_lengths[rows]
    return summary.sampled_lengths[rows], total


def _pretraining_mix(run: PPORun, plan: StepPlan, kept: IntArray) -> list[TokenBatch] | None:
    """One batch of pretraining text per optimizer step, or None without ptx."""
    if run.ptx_coefficient == 0.0:
        return None
    batches: list[TokenBatch] = []
    for _ in range(plan.epochs):
        for step in training_batches.minibatches(
            kept, plan.per_step, plan.seed, uneven=plan.uneven
        ):
            count = pretraining_examples(run.session.config, len(step))
            batches.append(run.text(run.documents_used, count))
            run.documents_used += count
    return batches


def update_policy(
    run: PPORun, iteration: int, rollouts: Rollouts, kept: IntArray, experience: Experience
) -> Answer[list[StepStats]]:
    """Start the optimizer steps of the policy; the published weights become invalid."""
    settings, policy = run.session.config.algorithm, run.session.fleet.policy
    plan = _step_plan(run, iteration, policy)
    steps = training_batches.policy_steps(
        kept, *_lengths(rollouts, kept), plan, _pretraining_mix(run, plan, kept)
    )
    whitens = settings.whiten_advantages and run.estimator.whitens
    mean, deviation = whitening_moments(experience.summaries) if whitens else (0.0, 1.0)
    loss = from_sections(
        PolicyLossSpec,
        settings,
        run.session.config.rollout,
        policy_loss=settings.policy_loss_spec,
        kl_coefficient=run.loss_kl_coefficient,
        kl_estimator=settings.kl.estimator.value,
        advantage_mean=mean,
        advantage_std=deviation,
        ptx_coefficient=run.ptx_coefficient,
    )
    run.sync.policy_moves()
    return policy.update(steps, experience, loss)


def update_critic(
    run: PPORun, iteration: int, rollouts: Rollouts, kept: IntArray, experience: Experience
) -> Answer[list[StepStats]]:
    """Start the optimizer steps of the critic."""
    critic = run.session.fleet.critic
    plan = _step_plan(run, iteration, critic)
    steps = training_batches.critic_steps(kept, *_lengths(rollouts, kept), plan)
    return critic.update(steps, experience, run.session.config.algorithm.value_clip)
