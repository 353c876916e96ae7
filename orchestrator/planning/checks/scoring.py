"""Checks of the reward source, of the advantage estimator and of the judge."""

from __future__ import annotations

from orchestrator.batching.batch_sizes import PPO_STAGES
from orchestrator.config.chat_model import check_chat_model
from orchestrator.config.cluster import Accelerator
from orchestrator.config.evaluation import EndpointConfig, JudgeKind
from orchestrator.config.reward_terms import require_columns
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.config.training import AlgorithmConfig, KLEstimator, KLPlace
from orchestrator.planning.runs.expand import judges_training
from orchestrator.planning.stage_graph import chooses_by_reward
from workers.errors import ConfigError
from workers.process.user_code import split_path
from workers.scorers.http_address import check_address
from workers.scorers.source import WHERE
from workers.training.estimator import on_every_token
from workers.training.policy_loss import find_policy_loss

#: Judges that compare texts. The others score the tokens that were sampled, which no file holds.
_BY_TEXT = (JudgeKind.human, JudgeKind.function, JudgeKind.endpoint, JudgeKind.none)
_WIDE_FOR_SEQUENCES = 0.05  # the published bounds are below 1e-3


def check_reward(config: Config) -> None:
    """Check the settings of the reward's source, and that the run gives it what it needs.

    Raises:
        ConfigError: there is no such source, one of its settings is wrong, its timeouts exceed
            run.call_seconds, or there is no GPU for it.
    """
    terms = config.reward.each
    words = terms[0].words if len(terms) == 1 else "the reward"
    needs = config.reward.needs
    models = [term.where for term in terms if term.needs().model]
    if len(models) > 1:
        raise ConfigError(
            f"{' and '.join(models)} both score by the run's reward model",
            where=models[1],
            fix="keep one; other reward models are served beside the run (docs/rewards.md)",
        )
    require_columns(terms, {*config.data.keep_columns})
    if needs.seconds > config.run.call_seconds:
        raise ConfigError(
            f"{words} can take {needs.seconds:g} s per batch, all "
            "timeouts and retries included; a call to a worker ends after "
            f"run.call_seconds={config.run.call_seconds:g}",
            where=needs.seconds_where,
            fix=f"lower it, or set run.call_seconds above {needs.seconds:g}",
        )
    if needs.gpu and config.cluster.accelerator is not Accelerator.cuda:
        raise ConfigError(
            f"{words} needs a GPU",
            where=WHERE,
            fix="use a cluster of GPUs (cluster=one_gpu), or another source",
        )


def check_sft_choice(config: Config) -> None:
    """Check that a reward model is there where one chooses the weights of SFT.

    Raises:
        ConfigError: the rewards of the run come from another source.
    """
    if StageName.sft not in config.stage_names or not chooses_by_reward(config):
        return
    if not config.reward.needs.model:
        raise ConfigError(
            "a reward model chooses the weights of SFT, and the rewards of this run come from "
            f"reward.kind={config.reward.label}",
            where="sft.keep_best",
            fix="set it to loss, or reward=model",
        )
    if columns := config.reward.needs.columns:
        raise ConfigError(
            "the reward chooses the weights of SFT by answers to demonstrations, whose rows keep "
            f"no columns, and it reads the column {columns[0]!r}",
            where="sft.keep_best",
            fix="set it to loss, or leave the terms that read columns out",
        )


def check_online_rankings(config: Config) -> None:
    """Check that the stage online_dpo has samples to rank.

    Raises:
        ConfigError: a prompt has a single sample, or the buffer for long responses is too long.
    """
    if StageName.online_dpo not in config.stage_names:
        return
    if config.algorithm.samples_per_prompt < 2:
        raise ConfigError(
            "online_dpo ranks the samples of a prompt, and there is one per prompt",
            where="algorithm.samples_per_prompt",
            fix="set it to 2 or more; +experiment=online_dpo has 4",
        )
    _check_buffer(config)


def _check_buffer(config: Config) -> None:
    longest, overlong = config.rollout.max_response_tokens, config.algorithm.overlong
    if overlong.buffer_tokens > longest:
        raise ConfigError(
            f"the buffer of {overlong.buffer_tokens:,} tokens is longer than a response of at most "
            f"{longest:,}",
            where="algorithm.overlong.buffer_tokens",
            fix="set it below rollout.max_response_tokens",
        )


def check_estimator(config: Config) -> None:
    """Check that PPO has its policy loss, and gives its advantage estimator what that needs.

    Raises:
        ConfigError: there is no such loss or estimator, a prompt has too few samples, the buffer
            for long responses is too long, or a critic that the run does not have would learn
            first.
    """
    if not any(stage in PPO_STAGES for stage in config.stage_names):
        return
    algorithm, estimator = config.algorithm, config.algorithm.estimator
    find_policy_loss(algorithm.policy_loss_spec)
    if algorithm.samples_per_prompt < estimator.needs_samples:
        raise ConfigError(
            f"algorithm.advantage={algorithm.advantage} compares at least "
            f"{estimator.needs_samples} samples of a prompt, and there are "
            f"{algorithm.samples_per_prompt}",
            where="algorithm.samples_per_prompt",
            fix=f"set it to {estimator.needs_samples} or more",
        )
    _check_buffer(config)
    _check_unrewarded(algorithm)
    if algorithm.critic_warmup_iterations and not estimator.needs_values:
        raise ConfigError(
            f"algorithm.advantage={algorithm.advantage} needs no values, so there is no critic "
            f"that could learn in the first {algorithm.critic_warmup_iterations} iteration(s)",
            where="algorithm.critic_warmup_iterations",
            fix="set it to 0, or algorithm.advantage=gae",
        )


def _check_unrewarded(algorithm: AlgorithmConfig) -> None:
    """Refuse what acts on scores if the estimator has none."""
    if algorithm.estimator.needs_reward:
        return
    for key, is_set in (
        ("dynamic_sampling.enabled", algorithm.dynamic_sampling.enabled),
        ("overlong.buffer_tokens", algorithm.overlong.buffer_tokens > 0),
    ):
        if is_set:
            raise ConfigError(
                f"algorithm.advantage={algorithm.advantage} has no rewards, and this acts on them",
                where=f"algorithm.{key}",
                fix="turn it off: algorithm=distill does",
            )


def unused_critic_keys(config: Config) -> list[str]:
    """One sentence if PPO has no critic, and keys are set that only a critic reads; else none."""
    algorithm, usual = config.algorithm, AlgorithmConfig()
    if (
        not any(stage in PPO_STAGES for stage in config.stage_names)
        or algorithm.estimator.needs_values
    ):
        return []
    names = ("value_clip", "critic_init", "critic_optimizer")
    keys = [f"algorithm.{n}" for n in names if getattr(algorithm, n) != getattr(usual, n)]
    keys += ["model.checkpoints.critic"] if config.model.checkpoints.critic else []
    if not keys:
        return []
    told = ", ".join(keys)
    return [f"algorithm.advantage={algorithm.advantage} needs no critic: {told} has no effect"]


def loss_notes(config: Config) -> list[str]:
    """Sentences about settings of the policy's loss that do nothing or not what they seem to."""
    algorithm = config.algorithm
    if not any(stage in PPO_STAGES for stage in config.stage_names):
        return []
    notes: list[str] = []
    if config.reward.step_separator and algorithm.estimator.of_tokens is on_every_token:
        notes.append(
            f"algorithm.advantage={algorithm.advantage} compares whole sequences: of the rewards "
            "of steps (reward.step_separator) only the sum counts"
        )
    if algorithm.policy_loss == "gspo" and algorithm.clip >= _WIDE_FOR_SEQUENCES:
        notes.append(
            f"algorithm.clip={algorithm.clip:g} hardly ever acts on the ratio of a whole sequence, "
            "which stays much nearer to 1 than those of tokens: algorithm=gspo sets 3e-4"
        )
    if algorithm.policy_loss == "cispo" and algorithm.dual_clip is not None:
        notes.append("algorithm.dual_clip has no effect on algorithm.policy_loss=cispo")
    if algorithm.kl.place is KLPlace.loss and algorithm.kl.estimator is KLEstimator.k1:
        notes.append(
            "algorithm.kl.estimator=k1 in the loss has a gradient of 0 on average: it holds the "
            "policy nowhere; use k2 or k3"
        )
    return notes


def check_judge(config: Config) -> None:
    """Check the settings of the evaluation's judge.

    The address is checked in every run: it may contain a secret, and every run writes config.yaml.

    Raises:
        ConfigError: no function or file of verdicts is named, the judge cannot compare the texts of
            a file, or the endpoint's address, model, instruction or request is missing or invalid.
    """
    settings = config.evaluate
    for where, whose, given in (
        ("evaluate.endpoint", "the judge's", settings.endpoint),
        ("label.ai.endpoint", "the labeler's", config.label.ai.endpoint),
        ("constitution.endpoint", "the critic's", config.constitution.endpoint),
    ):
        if given.url:
            fix = "https://HOST/v1 or https://HOST:PORT/v1"
            check_address(given.url, whose, f"{where}.url", fix)
    if StageName.evaluate not in config.stages and not judges_training(config):
        return
    if settings.judge is JudgeKind.function:
        split_path(settings.judge_function, "evaluate.judge_function")
    if settings.answers and settings.judge not in _BY_TEXT:
        raise ConfigError(
            f"judge={settings.judge.value} scores the tokens that were sampled, and the answers of "
            "an earlier evaluation are texts",
            where="evaluate.answers",
            fix=f"choose judge={', '.join(kind.value for kind in _BY_TEXT)}, or leave it empty, "
            "so that the models answer again",
        )
    if settings.judge is JudgeKind.human and not settings.verdicts:
        raise ConfigError(
            "the judges are people, and no file holds their verdicts",
            where="evaluate.verdicts",
            fix="evaluate with judge=none first, let people compare samples/answers.jsonl "
            "(docs/labeling.md), and name the file that was exported",
        )
    if settings.judge is JudgeKind.endpoint:
        _check_endpoint(settings.endpoint)


def _check_endpoint(endpoint: EndpointConfig) -> None:
    where = "evaluate.endpoint"
    check_chat_model(endpoint, where, "judge")
    missing = [p for p in ("{prompt}", "{first}", "{second}") if p not in endpoint.instruction]
    if missing:
        raise ConfigError(
            f"the judge's instruction lacks {', '.join(missing)}",
            where=f"{where}.instruction",
            fix="use judge=endpoint, whose instruction is in conf/judge/endpoint.yaml",
        )
