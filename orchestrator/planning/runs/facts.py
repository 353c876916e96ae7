"""What the plan says of a stage run: its sizes in words."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

from orchestrator.batching.batch_sizes import (
    PPO_STAGES,
    ppo_arithmetic,
    rejection_steps,
    sft_rows,
    started_prompts,
)
from orchestrator.config.data import DataSourceKind
from orchestrator.config.rejection import Keep, Start
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import Aggregate, AlgorithmConfig, Margin, SFTBest
from orchestrator.planning.checks.environment import environment_facts
from orchestrator.planning.model_sizes import pocket_size
from orchestrator.planning.runs.ai_labels import ai_label_facts, constitution_facts
from orchestrator.planning.runs.stage_run import StageRun
from orchestrator.planning.stage_graph import is_rewarded
from orchestrator.planning.threads import threads_of

_WIDTH = 100  # characters of a fact


def stage_facts(run: StageRun) -> tuple[str, ...]:
    """Sentences on the sizes of a stage run, and on how a variant differs from its stage."""
    facts = _facts(run.config, run.stage)
    if not run.variant and run.compared_with:
        facts.append("the reference is the teacher, model.checkpoints.teacher")
    return (*_variant_facts(run), *facts, *_label_facts(run))


def _variant_facts(run: StageRun) -> list[str]:
    """What differs between a variant and its stage."""
    if not run.variant:
        return []
    changes = ", ".join(f"{key}={value}" for key, value in run.changes.items())
    facts = _wrapped(f"stage {run.stage.value} with {changes or 'the settings of the run'}")
    kept = ", ".join(f"{key}={value}" for key, value in run.kept.items())
    facts += _wrapped(f"keeps {kept} of the run") if kept else []
    facts += [f"the reference is {run.compared_with}"] if run.compared_with else []
    return facts + ([f"seeds of {run.seed_as}"] if run.seed_as != run.name else [])


def _label_facts(run: StageRun) -> list[str]:
    """Whose rankings a stage trains on, and from which prompt on labels are new."""
    if run.rankings:
        return _wrapped(f"trains on the rankings of {', '.join(run.rankings)}")
    if run.first_prompt:
        return [f"from prompt {run.first_prompt:,} on: earlier stages asked those before it"]
    return []


def _wrapped(text: str) -> list[str]:
    """Lines that fit the plan; a key and its value stay together."""
    return textwrap.wrap(
        text, _WIDTH, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


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
    if stage in _FACTS:
        return _FACTS[stage](config)
    facts = [f"{config.pretrain.steps:,} x {config.pretrain.documents_per_step} documents"]
    if config.data.source is DataSourceKind.pocket:
        model = config.model.large if stage is StageName.pretrain_large else config.model.pocket
        size = pocket_size(model, arithmetic=config.data.pocket.arithmetic)
        facts.append(f"{size.parameters:,} parameters")
    return facts


def _collect_facts(config: Config) -> list[str]:
    found = config.collect
    return [
        f"{found.prompts:,} prompts with {found.min_completions} to {found.max_completions} "
        f"answers of {', '.join(found.models)}"
    ]


def _ranked_facts(config: Config) -> list[str]:
    found = config.label
    shares = found.shares or [1.0] * len(found.models)
    who = ", ".join(
        f"{name} ({share / sum(shares):.0%})"
        for name, share in zip(found.models, shares, strict=True)
    )
    asked = f"{found.function} " if found.labeler == "function" else ""
    facts = _wrapped(
        f"{found.prompts:,} prompts to train on and {found.heldout_prompts:,} held out, with "
        f"{found.min_completions} to {found.max_completions} answers of {who}"
    )
    facts.append(f"labeler {found.labeler} {asked}ranks them".replace("  ", " "))
    if found.scored:
        facts.append("the reward model so far scores them first")
    return [*facts, *(line for fact in ai_label_facts(config) for line in _wrapped(fact))]


def _evaluation_facts(config: Config) -> list[str]:
    facts = [
        f"{config.evaluate.prompts:,} held-out prompts and "
        f"{config.evaluate.web_documents:,} documents per model"
    ]
    if shots := config.evaluate.few_shot:
        facts.append(f"base models answer again after {shots} demonstration(s)")
    if best_of := config.evaluate.best_of:
        facts.append(
            f"{config.evaluate.prompts:,} x {max(best_of):,} answers of the SFT model, for the "
            f"best of {', '.join(map(str, best_of))} by the reward"
        )
    return facts


def _overoptimization_facts(config: Config) -> list[str]:
    settings = config.overoptimization
    gold = "the reward model gold" if config.gold_model else "the noise-free labeler"
    return [
        f"{settings.prompts:,} held-out prompts x {settings.samples:,} answers of the SFT model",
        f"each reward model chooses the best of up to {max(settings.numbers):,}, {gold} judges",
    ]


def _sft_facts(config: Config) -> list[str]:
    demonstrations, documents = sft_rows(config)
    epochs = config.sft.epochs
    times = f"{epochs} pass(es) in steps of" if epochs else f"{config.sft.steps:,} x"
    what = "pretraining documents"
    if config.sft.pretraining_full_rows:
        what = f"rows of {config.pretrain.row_tokens:,} tokens of pretraining text"
    mixed = f" and {documents} {what}" if documents else ""
    facts = [f"{times} {demonstrations} demonstrations{mixed}"]
    if config.sft.keep_best is not SFTBest.none:
        every = config.sft.keep_best_every
        when = f"every {every:,} steps" if every else "after each pass"
        by = "the lowest held-out loss"
        if config.sft.keep_best is SFTBest.reward_model:
            count = config.sft.validation_demonstrations
            by = f"the reward model's highest score, mean of answers to {count:,} held-out prompts"
        facts += [f"weights {when} stay in checkpoints/sft_step_N", f"published: those of {by}"]
    return facts


def _reward_model_facts(config: Config) -> list[str]:
    settings = config.reward_model
    facts = [
        f"{settings.prompts_per_step} prompts per step, every pair of a prompt in one step, "
        f"{settings.epochs} pass(es)"
    ]
    if config.samples_rankings:  # others have their own K
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
        *_measured(config, StageName.online_dpo),
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


def _rejection_facts(config: Config) -> list[str]:
    settings = config.rejection
    best = settings.keep is Keep.best
    prompts, samples = settings.prompts_per_iteration, settings.samples
    kept = "the best of each prompt" if best else f"those that score above {settings.threshold:g}"
    again = ["samples kept in earlier iterations train again"]
    start = "the SFT model" if settings.start is Start.sft else "the current weights"
    sequences, steps = prompts * samples, sum(rejection_steps(config))
    degrees = ", ".join(f"{t:g}" for t in settings.temperatures)
    return [
        f"{prompts:,} prompts x {samples} samples = {sequences:,} sequences per iteration, "
        f"at temperature {degrees}",
        f"{kept} train {start} for {settings.epochs} pass(es) in steps of "
        f"{settings.sequences_per_step}",
        *(again if settings.from_all_iterations else []),
        f"{settings.iterations} iterations = {settings.iterations * sequences:,} sequences, "
        f"at most {steps:,} optimizer steps",
        *_measured(config, StageName.rejection_sampling),
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
    facts += environment_facts(config.environment)
    if not is_rewarded(config, stage):
        facts.append("no rewards, so no reward role")
    facts += _measured(config, stage)
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


def _measured(config: Config, stage: StageName) -> list[str]:
    """What measures held-out prompts during training, or that nothing does."""
    algorithm, judge = config.algorithm, config.training_judge
    if not algorithm.evaluate_every:
        return ["nothing is measured on held-out prompts (algorithm.evaluate_every=0)"]
    every = f"every {algorithm.evaluate_every} iteration(s)"
    if stage is StageName.rejection_sampling:
        every = "after each iteration"
    scorer = "the gold labeler" if config.data.source is DataSourceKind.pocket else ""
    scorer = "the reward model gold" if config.gold_model else scorer
    if not scorer and is_rewarded(config, stage):
        scorer = f"the reward ({config.reward.label})"
    prompts = f"{algorithm.evaluation_prompts:,} held-out prompts"
    scored = f"{scorer} scores answers to {prompts}" if scorer else f"{prompts} are answered"
    compared = [f"the judge ({judge.value}) compares them with the first answers"] if judge else []
    return [f"{every} {scored}", *compared]


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


_FACTS: dict[StageName, Callable[[Config], list[str]]] = {
    StageName.sft: _sft_facts,
    StageName.reward_model: _reward_model_facts,
    StageName.label: _ranked_facts,
    StageName.constitution: constitution_facts,
    StageName.collect: _collect_facts,
    StageName.dpo: _preference_facts,
    StageName.online_dpo: _online_facts,
    StageName.rejection_sampling: _rejection_facts,
    StageName.evaluate: _evaluation_facts,
    StageName.overoptimization: _overoptimization_facts,
}
