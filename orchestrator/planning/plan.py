"""The plan of a run: its derivation from the configuration, its checks and its text form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from orchestrator.batching.batch_sizes import (
    PPO_STAGES,
    cut_warmups,
    ppo_arithmetic,
    sft_rows,
    stage_steps,
    started_prompts,
)
from orchestrator.checkpoints.best import check_keep_best
from orchestrator.config.cluster import Accelerator, ClusterConfig, RoleName
from orchestrator.config.data import DataSourceKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import Aggregate, AlgorithmConfig
from orchestrator.planning.activations import smaller_passes
from orchestrator.planning.backbones import check_backbones, plan_critic, role_sizes
from orchestrator.planning.checks_devices import (
    check_ahead,
    check_devices,
    check_extra_engines,
    check_head_sizes,
    check_sharing,
)
from orchestrator.planning.checks_lengths import check_lengths, check_rows
from orchestrator.planning.checks_scoring import (
    check_estimator,
    check_judge,
    check_online_rankings,
    check_reward,
    loss_notes,
    unused_critic_keys,
)
from orchestrator.planning.checks_stages import check_stages, unused_sets
from orchestrator.planning.gpu_memory import check_gpu_memory
from orchestrator.planning.model_sizes import (
    ModelSize,
    RoleMemory,
    pocket_size,
    policy_size,
    role_memory,
    sequences_in_cache,
)
from orchestrator.planning.placement import Layout, counted, known_nodes, place_roles, usable_nodes
from orchestrator.planning.speed.first_change import estimate_lines
from orchestrator.planning.speed.processor import precision_notes
from orchestrator.planning.stage_graph import (
    inputs,
    is_rewarded,
    product,
    reference_of,
    stage_roles,
)
from orchestrator.planning.threads import threads_of, too_few_cores


@dataclass(frozen=True, slots=True)
class StagePlan:
    """One stage: its inputs, product, roles, and sizes in words."""

    name: StageName
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
    stages = plan_stages(config)
    roles = {role for stage in stages for role in stage.roles}
    layout = place_roles(config.cluster, roles)
    check_devices(config, layout)
    stages = tuple(
        replace(each, facts=(*each.facts, *_threads(config, each.name))) for each in stages
    )
    size = policy_size(config)
    memory = _memory(config, layout, size)
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
            *unused_critic_keys(config),
            *loss_notes(config),
            *cut_warmups(config),
            *_limits(config.cluster),
            *too_few_cores(config.cluster),
            *_notes(config, layout, size),
            *precision_notes(config, size.parameters if size else None),
            *_unknown(config, layout, memory),
            *check_gpu_memory(config, layout, memory),
            *smaller_passes(config, memory),
        ),
        estimate=estimate_lines(config, layout, size)
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
    check_ahead(config)
    check_keep_best(config)
    check_sharing(config)
    check_extra_engines(config)
    check_reward(config)
    check_estimator(config)
    check_online_rankings(config)
    check_judge(config)
    stages = tuple(_plan_stage(config, stage) for stage in config.stages)
    size = policy_size(config)
    if any(RoleName.rollout in stage.roles for stage in stages):
        check_lengths(config, size)
        check_head_sizes(config)
    check_rows(config)
    check_backbones(config, size)
    return stages


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


def _memory(config: Config, layout: Layout, size: ModelSize | None) -> tuple[RoleMemory, ...]:
    """The memory of one worker of each role, if the size of its model is known."""
    if size is None:
        return ()
    sizes = role_sizes(config, size)
    return tuple(
        role_memory(config, role, held)
        for role in layout.roles
        if (held := sizes[role]) is not None
    )


def _unknown(config: Config, layout: Layout, memory: tuple[RoleMemory, ...]) -> list[str]:
    known = {each.role for each in memory}
    if known and not config.reward.needs.model:
        known.add(RoleName.reward)  # holds no model in this case
    names = [role.value for role in layout.roles if role not in known]
    if not known or not names:
        return []
    return [
        f"no memory estimate of {' and '.join(names)}: no checkpoint that can be read from here"
    ]


def _plan_stage(config: Config, stage: StageName) -> StagePlan:
    return StagePlan(
        name=stage,
        needs=inputs(config, stage),
        makes=product(stage),
        roles=stage_roles(config, stage),
        optimizer_steps=stage_steps(config, stage),
        facts=tuple(_facts(config, stage)),
    )


def _threads(config: Config, stage: StageName) -> list[str]:
    """The threads of the stage's workers, unless each has one."""
    found = {role: threads_of(config, stage, role) for role in stage_roles(config, stage)}
    if max(found.values()) == 1:
        return []
    words = ", ".join(f"{role.value} {number}" for role, number in found.items())
    return [f"threads per worker: {words}"]


def _facts(config: Config, stage: StageName) -> list[str]:
    if stage in PPO_STAGES:
        return _ppo_facts(config, stage)
    if stage is StageName.sft:
        return _sft_facts(config)
    if stage is StageName.reward_model:
        return _reward_model_facts(config)
    if stage is StageName.collect:
        found = config.collect
        return [
            f"{found.prompts:,} prompts with {found.min_completions} to {found.max_completions} "
            f"answers of {', '.join(found.models)}"
        ]
    if stage is StageName.dpo:
        return _preference_facts(config)
    if stage is StageName.online_dpo:
        return _online_facts(config)
    if stage is StageName.evaluate:
        return [
            f"{config.evaluate.prompts:,} held-out prompts and "
            f"{config.evaluate.web_documents:,} documents per model"
        ]
    facts = [f"{config.pretrain.steps:,} x {config.pretrain.documents_per_step} documents"]
    if config.data.source is DataSourceKind.pocket:
        model = config.model.large if stage is StageName.pretrain_large else config.model.pocket
        facts.append(f"{pocket_size(model).parameters:,} parameters")
    return facts


def _sft_facts(config: Config) -> list[str]:
    demonstrations, documents = sft_rows(config)
    epochs = config.sft.epochs
    times = f"{epochs} pass(es) in steps of" if epochs else f"{config.sft.steps:,} x"
    what = "pretraining documents"
    if config.sft.pretraining_full_rows:
        what = f"rows of {config.pretrain.row_tokens:,} tokens of pretraining text"
    mixed = f" and {documents} {what}" if documents else ""
    return [f"{times} {demonstrations} demonstrations{mixed}"]


def _reward_model_facts(config: Config) -> list[str]:
    settings = config.reward_model
    facts = [
        f"{settings.prompts_per_step} prompts per step, every pair of a prompt in one step, "
        f"{settings.epochs} pass(es)"
    ]
    if config.data.source is DataSourceKind.pocket:  # given rankings have their own K
        facts.append(f"K = {settings.min_completions} to {settings.max_completions} completions")
    return facts


def _preference_facts(config: Config) -> list[str]:
    settings = config.preference
    return [
        f"{settings.rankings_per_step} rankings per step, {settings.epochs} pass(es), loss "
        f"{settings.loss.value} with beta {settings.beta:g}, pairs {settings.pairs.value}"
    ]


def _online_facts(config: Config) -> list[str]:
    algorithm = config.algorithm
    prompts, samples = algorithm.prompts_per_iteration, algorithm.samples_per_prompt
    return [
        *_preference_facts(config),
        f"{prompts} prompts x {samples} samples = {prompts * samples} sequences per iteration, "
        "ranked by their rewards",
        f"{algorithm.iterations} iterations",
        *_dynamic_facts(algorithm),
        *_ahead_facts(algorithm),
    ]


def _dynamic_facts(algorithm: AlgorithmConfig) -> list[str]:
    dynamic = algorithm.dynamic_sampling
    if not dynamic.enabled:
        return []
    at_most = (
        f", at most {dynamic.max_batches} batches of prompts per iteration are sampled"
        if dynamic.max_batches > 1
        else ""
    )
    return [f"prompts whose samples all have the same score are dropped{at_most}"]


def _ahead_facts(algorithm: AlgorithmConfig) -> list[str]:
    if not algorithm.staleness:
        return []
    return [
        f"generation runs {algorithm.staleness} iteration(s) ahead of training: sequences are "
        "up to that many updates old"
    ]


def _ppo_facts(config: Config, stage: StageName) -> list[str]:
    sizes, algorithm = ppo_arithmetic(config, stage), config.algorithm
    facts = [
        f"{algorithm.prompts_per_iteration} prompts x {algorithm.samples_per_prompt} sample(s) = "
        f"{sizes.sequences_per_iteration} sequences per iteration, "
        f"{sizes.sequences_per_engine} per engine",
        f"{sizes.minibatches} minibatches of {algorithm.sequences_per_minibatch} x "
        f"{algorithm.epochs} pass(es) = {sizes.steps_per_iteration} optimizer steps per iteration",
        f"{algorithm.iterations} iterations = {sizes.episodes:,} episodes, "
        f"{sizes.optimizer_steps:,} optimizer steps",
        f"at most {sizes.most_tokens_per_iteration:,} tokens per iteration, "
        f"{sizes.most_micro_batches_per_step} micro-batch(es) of "
        f"{config.trainer.micro_batch_tokens:,} tokens per step and rank",
    ]
    facts.insert(0, _objective(algorithm))
    if reference_of(config, stage) == "teacher":
        facts.append("the reference is the teacher, model.checkpoints.teacher")
    if not is_rewarded(config, stage):
        facts.append("no rewards, so no reward role")
    surplus = started_prompts(config) - algorithm.prompts_per_iteration
    if surplus:
        facts.append(f"{surplus} more prompts are started, and the last to finish aborted")
    facts += [*_dynamic_facts(algorithm), *_ahead_facts(algorithm)]
    if algorithm.critic_warmup_iterations:
        facts.append(f"only the critic learns in the first {algorithm.critic_warmup_iterations}")
    if sizes.documents_per_step:
        facts.append(f"{sizes.documents_per_step} pretraining documents per step")
    if sizes.text_rows_per_step:
        facts.append(
            f"{sizes.text_rows_per_step} rows of {config.pretrain.row_tokens:,} tokens of "
            "pretraining text per step"
        )
    return facts


def _objective(algorithm: AlgorithmConfig) -> str:
    high = algorithm.clip if algorithm.clip_high is None else algorithm.clip_high
    averages = {
        Aggregate.tokens: "tokens",
        Aggregate.sequences: "sequences",
        Aggregate.constant: "sequences, divided by the longest response",
    }
    return (
        f"advantages {algorithm.advantage}, loss {algorithm.policy_loss} within "
        f"{1 - algorithm.clip:g} .. {1 + high:g}, averaged over "
        f"{averages[algorithm.aggregate]}, KL in the {algorithm.kl.place.value}"
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
    head = f"  {stage.name.value:<15}{', '.join(flow)}".rstrip()
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
