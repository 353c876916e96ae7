"""Checks of the stage constitution: principles, and a critic that can be asked."""

from __future__ import annotations

from orchestrator.checkpoints import model_folder
from orchestrator.config.chat_model import check_chat_model
from orchestrator.config.constitution import ConstitutionConfig, Critic
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.runs.expand import expand
from orchestrator.planning.worker_specs import chat_spec
from orchestrator.stages.labels.constitution_files import principles_of
from workers.errors import ConfigError
from workers.scorers.http_address import check_address


def check_constitutions(config: Config) -> None:
    """Check every run of the stage constitution, before anything starts.

    Raises:
        ConfigError: no principle fits, or the critic lacks what it needs.
        CheckpointError: the critic's folder is missing or broken.
    """
    for run in expand(config):
        if run.stage is StageName.constitution:
            _check(run.config.constitution, run.key("constitution"))


def _check(settings: ConstitutionConfig, where: str) -> None:
    critic = settings.critic
    uses = ("revision",) if critic is Critic.function else ("critique", "revision")
    principles_of(settings.principles, uses, f"{where}.principles")
    if critic is Critic.function and not settings.function:
        raise ConfigError("no function is named", where=f"{where}.function",
                          fix="set it to package.module:NAME")  # fmt: skip
    if critic is Critic.checkpoint:
        if not settings.checkpoint:
            raise ConfigError("no critic is given", where=f"{where}.checkpoint",
                              fix="name the folder of a model")  # fmt: skip
        key = f"{where}.checkpoint"
        model_folder.require(settings.checkpoint, "critic", key)
        from orchestrator.stages.asked_engines import model_of  # Ray, which a plan does without

        model_of(settings.checkpoint, settings.question_tokens, settings.critique_tokens, key)
    if critic is Critic.endpoint:
        key = f"{where}.endpoint"
        check_chat_model(settings.endpoint, key, "critic")
        check_address(settings.endpoint.url, "the critic's", f"{key}.url", "https://HOST/v1")
        chat_spec(settings.endpoint, key, "critic")  # the key is in the environment
