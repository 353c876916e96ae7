"""What the plan says of a stage run: its sizes in words."""

from __future__ import annotations

from orchestrator.batching.batch_sizes import PPO_STAGES, ppo_arithmetic, sft_rows, started_prompts
from orchestrator.config.data import DataSourceKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import Aggregate, AlgorithmConfig, Margin
from orchestrator.planning.model_sizes import pocket_size
from orchestrator.planning.runs.stage_run import StageRun
from orchestrator.planning.stage_graph import is_rewarded, reference_of
from orchestrator.planning.threads import threads_of


def stage_facts(run: StageRun) -> tuple[str, ...]:
    """Sentences on the sizes of a stage run, and on how a variant differs from its stage."""
    return (*_variant_facts(run), *_facts(run.config, run.stage))


def _variant_facts(run: StageRun) -> list[str]:
    """What differs between a variant and its stage."""
    if not run.variant:
        return []
    changes = ", ".join(f"{key}={value}" for key, value in run.changes.items())
    facts = [f"stage {run.stage.value} with {changes or 'the settings of the run'}"]
    kept = ", ".join(f"{key}={value}" for key, value in run.kept.items())
    facts += [f"keeps {kept} of the run"] if kept else []
    return facts + ([f"seeds of {run.seed_as}"] if run.seed_as != run.name else [])


def thread_facts(run: StageRun) -> list[str]:
    """The threads of the stage's workers, unless each has one."""
    found = {role: threads_of(run.config, run.stage, role) for role in run.roles}
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
    if settings.margin is not Margin.none:
        facts.append(f"the loss of a pair has a margin, by {settings.margin.value}")
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
