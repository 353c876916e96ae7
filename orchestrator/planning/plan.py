"""The plan of a run: its derivation from the configuration, its checks and its text form."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from orchestrator.batching.batch_sizes import (
    PPO_STAGES,
    cut_warmups,
    stage_steps,
)
from orchestrator.checkpoints.best import check_keep_best
from orchestrator.config.cluster import Accelerator, ClusterConfig, RoleName
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.activations import smaller_passes
from orchestrator.planning.backbones import check_backbones, plan_critic
from orchestrator.planning.checks.devices import (
    check_ahead,
    check_devices,
    check_extra_engines,
    check_head_sizes,
    check_sharing,
)
from orchestrator.planning.checks.environment import check_environment, environment_notes
from orchestrator.planning.checks.lengths import check_lengths, check_rows
from orchestrator.planning.checks.overoptimization import (
    check_overoptimization,
    overoptimization_notes,
)
from orchestrator.planning.checks.scoring import (
    check_estimator,
    check_judge,
    check_online_rankings,
    check_reward,
    check_sft_choice,
    loss_notes,
    unused_critic_keys,
)
from orchestrator.planning.checks.stages import check_stages, unused_sets
from orchestrator.planning.gpu_memory import check_gpu_memory
from orchestrator.planning.model_sizes import (
    ModelSize,
    RoleMemory,
    policy_size,
    sequences_in_cache,
)
from orchestrator.planning.placement import Layout, counted, known_nodes, place_roles, usable_nodes
from orchestrator.planning.runs.expand import expand, run_roles
from orchestrator.planning.runs.facts import stage_facts, thread_facts
from orchestrator.planning.runs.memory import most_memory
from orchestrator.planning.runs.stage_run import StageRun, named
from orchestrator.planning.speed.first_change import estimate_lines
from orchestrator.planning.speed.processor import precision_notes
from orchestrator.planning.threads import too_few_cores


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its inputs, product, roles, and sizes in words."""

    name: str  # of the stage run
    stage: StageName
    needs: tuple[str, ...]  # names of the checkpoints that it starts from
    makes: str  # the name of the checkpoint that it produces, or ""
    roles: tuple[RoleName, ...]
    optimizer_steps: int | None  # None: depends on the data
    facts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked run. `layout` has the resources to reserve in the cluster."""

    experiment: str
    seed: int
    folder: str
    stages: tuple[StagePlan, ...]
    layout: Layout
    size: ModelSize | None  # of the policy; None when its folder cannot be read yet
    memory: tuple[RoleMemory, ...]  # one worker of each role; () without `size`
    notes: tuple[str, ...]
    estimate: tuple[str, ...] = ()  # of a PPO iteration on GPUs, in lines


def make_plan(config: Config) -> Plan:
    """Derive the plan and check the configuration across its sections.

    Raises:
        BatchArithmeticError: batch sizes, token limits or models do not fit together.
        ResourceError: the roles do not fit on the configured cluster.
        ConfigError: a stage's input is neither given nor produced, and other contradictions.
    """
    stages, runs = plan_stages(config), expand(config)
    layout = place_roles(config.cluster, {*run_roles(config)})
    check_devices(config, layout)
    stages = tuple(
        replace(each, facts=(*each.facts, *thread_facts(run)))
        for each, run in zip(stages, runs, strict=True)
    )
    size = policy_size(config)
    memory = most_memory(config, runs, layout, size)
    return Plan(
        experiment=config.experiment,
        seed=config.seed,
        folder=config.run.dir,
        stages=stages,
        layout=layout,
        size=size,
        memory=memory,
        notes=(
            *unused_sets(config),
            *environment_notes(config),
            *_own_notes(config, runs),
            *overoptimization_notes(config, runs),
            *_limits(config.cluster),
            *too_few_cores(config.cluster),
            *_notes(config, layout, size),
            *precision_notes(config, size.parameters if size else None),
            *_unknown(config, layout, memory),
            *check_gpu_memory(config, layout, memory),
            *smaller_passes(config, memory),
        ),
        estimate=estimate_lines(_estimated(config, runs), layout, size)
        if config.cluster.accelerator is Accelerator.cuda
        else (),
    )


def plan_stages(config: Config) -> tuple[StagePlan, ...]:
    """The stages of the plan, and all checks that do not depend on the nodes.

    Raises:
        BatchArithmeticError: batch sizes, token limits or models do not fit together.
        ConfigError: a stage's input is neither given nor produced, and other contradictions.
    """
    check_stages(config)
    runs = expand(config)
    check_overoptimization(config, runs)
    _check_settings(config)
    stages: list[StagePlan] = []
    for run in runs:
        with named(run):
            if run.variant:
                _check_settings(run.config)
            stages.append(_plan_stage(run))
    samples = any(RoleName.rollout in run.roles for run in runs)
    _check_models(config, samples=samples)
    for run in runs:
        with named(run):
            if run.variant:
                sampled = RoleName.rollout in run.roles
                _check_models(run.config, samples=sampled, reference=run.compared_with)
    return tuple(stages)


def _check_settings(config: Config) -> None:
    check_ahead(config)
    check_keep_best(config)
    check_sharing(config)
    check_extra_engines(config)
    check_reward(config)
    check_environment(config)
    check_sft_choice(config)
    check_estimator(config)
    check_online_rankings(config)
    check_judge(config)


def _check_models(config: Config, *, samples: bool, reference: str = "") -> None:
    size = policy_size(config)
    if samples:
        check_lengths(config, size)
        check_head_sizes(config)
    check_rows(config)
    check_backbones(config, size, reference)


def _own_notes(config: Config, runs: Sequence[StageRun]) -> list[str]:
    """Notes on the settings of stages; those of a variant begin with its name."""
    notes = [*unused_critic_keys(config), *loss_notes(config), *cut_warmups(config)]
    for run in runs:
        if run.variant:
            own = run.config
            more = [*unused_critic_keys(own), *loss_notes(own), *cut_warmups(own)]
            notes += [f"{run.name}: {note}" for note in more if note not in notes]
    return notes


def _estimated(config: Config, runs: Sequence[StageRun]) -> Config:
    """The configuration whose PPO iteration is estimated: that of the first PPO stage."""
    return next((run.config for run in runs if run.stage in PPO_STAGES), config)


def _limits(cluster: ClusterConfig) -> list[str]:
    """What the plan leaves unused of nodes that have sizes of their own, or what they lack."""
    if not cluster.sizes:
        return []
    used = usable_nodes(cluster)
    notes = [f"the cluster has {counted(known_nodes(cluster))}; the plan may use {counted(used)}"]
    for key, least in (
        ("cpus_per_node", min(size.cpus for size in used)),
        ("gpus_per_node", min(size.gpus for size in used)),
    ):
        typed = getattr(cluster, key)
        if typed is not None and typed > least:
            notes.append(
                f"cluster.{key}={typed:g} is more than a node has: the plan uses what is there"
            )
    return notes


def _unknown(config: Config, layout: Layout, memory: tuple[RoleMemory, ...]) -> list[str]:
    known = {each.role for each in memory}
    if known:
        known.add(RoleName.environment)  # holds no model
    if known and not config.reward.needs.model:
        known.add(RoleName.reward)  # holds no model in this case
    names = [role.value for role in layout.roles if role not in known]
    if not known or not names:
        return []
    return [
        f"no memory estimate of {' and '.join(names)}: no checkpoint that can be read from here"
    ]


def _plan_stage(run: StageRun) -> StagePlan:
    return StagePlan(
        name=run.name,
        stage=run.stage,
        needs=run.reads,
        makes=run.product,
        roles=run.roles,
        optimizer_steps=stage_steps(run.config, run.stage),
        facts=stage_facts(run),
    )


def _notes(config: Config, layout: Layout, size: ModelSize | None) -> list[str]:
    notes: list[str] = []
    rollout = config.rollout
    longest = rollout.max_prompt_tokens + rollout.max_response_tokens
    engines = RoleName.rollout in layout.roles
    if engines and longest > config.trainer.micro_batch_tokens:
        notes.append(
            f"a sequence may have {longest:,} tokens, more than trainer.micro_batch_tokens="
            f"{config.trainer.micro_batch_tokens:,}: it then is one micro-batch alone"
        )
    if engines and size:
        held = sequences_in_cache(config, size)
        wanted = rollout.max_concurrent_sequences
        notes.append(
            f"the KV cache of an engine holds {held:,} sequences of full length; "
            f"{min(held, wanted):,} run at once"
        )
    most = config.cluster.roles.rollout.most
    if engines and most > config.cluster.roles.rollout.workers:
        notes.append(
            f"up to {most} engines share the sequences: those above "
            f"{config.cluster.roles.rollout.workers} join while the cluster has room for them"
        )
    if engines and config.cluster.accelerator is Accelerator.cuda:
        notes.append(
            f"each engine takes {rollout.gpu_memory_fraction:.0%} of its GPUs for weights and KV "
            "cache together"
        )
        notes += _turns(config, layout)
    critic = plan_critic(config)
    if critic is not None and critic.note:
        notes.append(critic.note)
    algorithm = config.algorithm
    trains = any(stage in PPO_STAGES for stage in config.stages)
    if trains and algorithm.staleness and algorithm.importance_cap is None:
        notes.append(
            f"algorithm.staleness={algorithm.staleness} without algorithm.importance_cap: tokens "
            "of older policies weigh as if the current one had sampled them; 2.0 is usual"
        )
    if size is None:
        notes.append("no memory estimate: the policy's checkpoint cannot be read from here")
    return notes


def _turns(config: Config, layout: Layout) -> list[str]:
    """Notes on the memory that roles on shared GPUs release for each other."""
    if not config.rollout.sleep:
        return []
    if config.cluster.roles.rollout.gpus >= 1:
        return ["rollout.sleep=true, but no other role is on the engines' GPUs to gain by it"]
    notes = ["engines sleep while the trainers work; their weights are then in host memory"]
    if config.trainer.rest_on_host and RoleName.policy in layout.roles:
        notes.append("the trainers' optimizer state rests in host memory while engines work")
    return notes


def render_plan(plan: Plan) -> str:
    """The plan as plain text."""
    lines = [f"Plan of {plan.experiment}, seed {plan.seed}, results in {plan.folder}", "stages"]
    for stage in plan.stages:
        lines += _stage_lines(stage)
    lines.append("placement")
    for index, node in enumerate(plan.layout.nodes):
        workers = ", ".join(
            f"{role.value} {_ranks([p.rank for p in node.places if p.role is role])}"
            for role in plan.layout.roles
            if any(p.role is role for p in node.places)
        )
        lines.append(f"  node {index}: {workers} ({node.cpus:g} CPUs, {node.gpus:g} GPUs)")
    if plan.size and plan.memory:
        lines.append(f"memory of one worker, estimated for {plan.size.parameters:,} parameters")
        lines += [_memory_line(each, plan.size) for each in plan.memory]
    lines += plan.estimate
    lines += [f"note: {note}" for note in plan.notes]
    return "\n".join(lines)


def _stage_lines(stage: StagePlan) -> list[str]:
    steps = "" if stage.optimizer_steps is None else f"{stage.optimizer_steps:,} optimizer steps"
    flow = [f"from {' + '.join(stage.needs)}"] if stage.needs else []
    flow += [f"makes {stage.makes}"] if stage.makes else []
    flow += [steps] if stage.makes and steps else []
    head = f"  {str(stage.name) + ' ':<15}{', '.join(flow)}".rstrip()
    return [head, *(f"  {'':<15}{fact}" for fact in stage.facts)]


def _ranks(ranks: list[int]) -> str:
    if len(ranks) > 1 and ranks == list(range(ranks[0], ranks[-1] + 1)):
        return f"{ranks[0]}-{ranks[-1]}"
    return ",".join(str(rank) for rank in ranks)


def _memory_line(memory: RoleMemory, policy: ModelSize) -> str:
    kind = "KV cache" if memory.role is RoleName.rollout else "logits"
    other = memory.parameters != policy.parameters
    parts = [f"{memory.parameters:,} parameters"] if other else []
    parts += [f"model {_size(memory.model)}", f"{kind} {_size(memory.working)}"]
    if memory.activations:
        parts.append(f"activations {_size(memory.activations)}")
    if memory.step:
        parts.append(f"step {_size(memory.step)}")
    parts.append(f"{'host' if memory.on_gpu else 'process'} {_size(memory.host)}")
    count = f" x {memory.workers}" if memory.workers > 1 else ""
    return f"  {memory.role.value:<15}{_size(memory.total)}{count} ({', '.join(parts)})"


def _size(number: int) -> str:
    """Bytes with a unit, in three significant digits."""
    if number <= 0:
        return "0"
    power = min(3, int(math.log(number, 1024)))
    return f"{number / 1024**power:.3g} {('B', 'KiB', 'MiB', 'GiB')[power]}"
