"""Load every model of a PPO run and build its state."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from orchestrator.batching.batch_sizes import online_preference_steps
from orchestrator.config.cluster import RoleName
from orchestrator.config.run import StageName
from orchestrator.config.training import KLControl
from orchestrator.planning.backbones import critic_start
from orchestrator.planning.stage_graph import is_rewarded, stage_roles
from orchestrator.planning.threads import threads_of
from orchestrator.planning.worker_specs import (
    environment_spec,
    frozen_spec,
    reward_spec,
    train_spec,
)
from orchestrator.roles.interfaces import Answer
from orchestrator.roles.weight_sync import WeightSync
from orchestrator.session.session import Session
from orchestrator.stages.ppo.ledger import Ledger
from orchestrator.stages.ppo.queue import RolloutQueue
from orchestrator.stages.ppo.sampling import generate
from orchestrator.stages.ppo.scores import Scoring
from orchestrator.stages.ppo.state import PPORun
from orchestrator.stages.selection.heldout import Heldout
from workers.records.processes import RoleInfo
from workers.records.training import TokenBatch
from workers.training.estimator import Estimator

if TYPE_CHECKING:  # imports torch
    from workers.ops.kl import AdaptiveKLController

# Of rankings, instead of an advantage estimator: a sample alone is no pair.
RANKED = Estimator(needs_samples=2, whitens=False)


def set_up(session: Session, stage: StageName, ptx_coefficient: float, sft: str) -> PPORun:
    """Load the models of all roles at the same time, and start the engines, first if they must."""
    config, settings, fleet = session.config, session.config.algorithm, session.fleet
    roles = stage_roles(config, stage)
    fleet.release(*(role for role in RoleName if role not in roles and fleet.holds(role)))
    fleet.bring_up(*roles)
    session.reached("actors")
    rewarded = is_rewarded(config, StageName(stage))
    reward_model = _reward_checkpoint(session) if rewarded else ""
    if session.engines_first:
        session.engines_on(sft)
        fleet.rollout.sleep().result()
    loading = [
        _load_policy(session, stage, sft),
        *([_load_critic(session, stage)] if RoleName.critic in roles else []),
        *([_load_reference(session, stage)] if RoleName.reference in roles else []),
        *([fleet.reward.load(reward_spec(config, reward_model, sft))] if rewarded else []),
    ]
    if RoleName.environment in roles:
        loading.append(fleet.environment.load(environment_spec(config, config.environment, sft)))
    if not session.engines_first:
        session.engines_on(sft)
    for pending in loading:
        pending.result()
    session.reached("engines_and_models")
    probe = session.source.prompts("heldout", 0, config.rollout.parity_prompts)
    sync = WeightSync(
        fleet.policy,
        fleet.rollout,
        config.rollout,
        [p.tokens for p in probe],
        config.trainer.micro_batch_tokens,
    )
    ledger = Ledger()
    run = PPORun(
        session=session,
        stage=session.name_of(stage),
        estimator=RANKED if stage is StageName.online_dpo else settings.estimator,
        ptx_coefficient=ptx_coefficient,
        sync=sync,
        version=0,
        adaptive_kl=controller(session),
        ledger=ledger,
        scoring=Scoring.of(config, ledger, reward_model),
        heldout=Heldout(session, stage),
        queue=RolloutQueue(settings.staleness, settings.iterations, lambda n: generate(run, n)),
        text=_text(session, mixed=ptx_coefficient > 0.0),
        learns_rankings=stage is StageName.online_dpo,
    )
    return run


def _load_policy(session: Session, stage: StageName, sft: str) -> Answer[None]:
    """Start loading the policy, with the optimizer and the loss of the stage."""
    config, settings = session.config, session.config.algorithm
    ranked = stage is StageName.online_dpo
    waits = settings.critic_warmup_iterations
    taught = (settings.iterations - waits) * _steps_per_iteration(session)
    spec = train_spec(
        config,
        sft,
        config.preference.optimizer if ranked else settings.policy_optimizer,
        online_preference_steps(config) if ranked else taught,
        threads=threads_of(config, stage, RoleName.policy),
        ema_decay=settings.ema_decay,
        vocabulary=session.vocabulary,
        estimator=None if ranked else settings.estimator_spec,
        policy_loss=None if ranked else settings.policy_loss_spec,
    )
    return session.fleet.policy.load(spec)


def _load_critic(session: Session, stage: StageName) -> Answer[None]:
    """Start loading the critic."""
    config = session.config
    steps = config.algorithm.iterations * _steps_per_iteration(session)
    start = critic_start(config, session.called())
    optimizer = config.algorithm.critic_optimizer
    threads = threads_of(config, stage, RoleName.critic)
    path = session.need(start.checkpoint)
    spec = train_spec(config, path, optimizer, steps, threads=threads, head=start.head)
    return session.fleet.critic.load(spec)


def _load_reference(session: Session, stage: StageName) -> Answer[list[RoleInfo]]:
    """Start loading the frozen model that the policy is compared with."""
    path = session.reference(stage)
    spec = frozen_spec(session.config, path, stage, RoleName.reference, session.vocabulary)
    return session.fleet.reference.load(spec)


def _text(session: Session, *, mixed: bool) -> Callable[[int, int], TokenBatch]:
    """Reader of the pretraining text of a step: documents or full rows."""
    shared = mixed and session.rows_are_shared()
    if mixed and session.config.algorithm.ptx.rows_per_episode:
        return session.text_rows(shared=shared).take
    return partial(session.pretraining_rows, shared=shared)


def _reward_checkpoint(session: Session) -> str:
    return session.need("reward_model") if session.config.reward.needs.model else ""


def _steps_per_iteration(session: Session) -> int:
    settings = session.config.algorithm
    sequences = settings.prompts_per_iteration * settings.samples_per_prompt
    return settings.epochs * (sequences // settings.sequences_per_minibatch)


def controller(session: Session) -> AdaptiveKLController | None:
    """Controller of the KL coefficient; None = it is fixed."""
    kl = session.config.algorithm.kl
    if kl.control is KLControl.fixed:
        return None
    from workers.ops.kl import AdaptiveKLController

    return AdaptiveKLController(kl.coefficient, kl.target, kl.horizon)
