"""From the command line to the typed configuration: Hydra composes it, the schema checks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from orchestrator.command_line.arguments import prepare
from orchestrator.command_line.earlier_run import Command, configuration
from orchestrator.command_line.errors import explain, reject_unknown_keys
from orchestrator.command_line.key_types import CONF, OPEN_SECTIONS
from orchestrator.config.ranges import check_tree
from orchestrator.config.rounds.expansion import with_rounds
from orchestrator.config.rounds.iterate import IterateConfig
from orchestrator.config.schema import Config
from orchestrator.config.variants import check_names, with_files

ConfigStore.instance().store("schema", Config)


def may_add(argument: str) -> str:
    """Let keys of open sections and `rerun=FOLDER` add new keys without Hydra's plus."""
    bare = argument.lstrip("+")
    return f"++{bare}" if bare.startswith((*OPEN_SECTIONS, "rerun=")) else argument


def to_config(composed: DictConfig) -> Config:
    """Convert to the typed configuration.

    In a sweep, `run.dir` becomes the numbered folder that Hydra assigns to the job.

    Raises:
        UnknownKeyError: a key is not in the schema; Hydra lets `+key=value` add any.
        ConfigError: a value has the wrong type or is out of range.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        composed.run.dir = HydraConfig.get().runtime.output_dir
    reject_unknown_keys(composed)
    try:
        add_rounds(composed)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    if composed.variants:
        given = OmegaConf.to_container(composed.variants, resolve=True)
        composed.variants = with_files(cast(dict[str, Any], given))
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, Config)
    return config


def add_rounds(composed: DictConfig) -> None:
    """Enter the rounds that `iterate` asks for into `stages` and `variants`.

    Raises:
        ConfigError: `iterate` does not fit the stages of the run.
        OmegaConfBaseException: a value has the wrong type.
    """
    iterate = OmegaConf.to_object(composed.iterate)
    assert isinstance(iterate, IterateConfig)
    check_tree(iterate, "iterate")
    if iterate.rounds == 1:
        return
    stages = [str(each) for each in composed.stages]
    given = cast(dict[str, Any], OmegaConf.to_container(composed.variants, resolve=True))
    check_names(stages, given)
    composed.stages, composed.variants = with_rounds(stages, given, iterate)


def compose_run(arguments: Sequence[str], config_dir: Path | None = None) -> Config:
    """The configuration of the run that these arguments describe, outside of Hydra's own `main`.

    Args:
        arguments: group=option, key=value and +experiment=NAME, as a person types them.
        config_dir: A folder of further configuration files, as --config-dir names it.

    Raises:
        ConfigError: an argument means nothing, or a value is out of range.
        MissingCheckpointError: `resume` or `rerun` names no run.
    """
    overrides = [may_add(argument) for argument in prepare(arguments)]
    found = [f"hydra.searchpath=['file://{config_dir.resolve()}']"] if config_dir else []
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            composed = compose("config", overrides=overrides + found, return_hydra_config=True)
        choices = {str(g): str(option) for g, option in composed.hydra.runtime.choices.items()}
        with open_dict(composed):
            del composed["hydra"]
        composed, _ = configuration(composed, Command(overrides, choices))
        return to_config(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise explain(error) from error
