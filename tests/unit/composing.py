"""Composes configurations in the test's own process.

Hydra takes a third of a second a composition, so groups are composed once and kept; values are set
on a copy afterwards, which is also the order of precedence of the command line.
"""

from __future__ import annotations

import functools

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, OmegaConf

from orchestrator import run
from orchestrator.command_line.composition import add_rounds
from orchestrator.command_line.key_types import OPEN_SECTIONS, group_options
from orchestrator.config.cluster import Accelerator
from orchestrator.config.schema import Config

GROUPS = tuple(group_options())


def composed(*overrides: str) -> Config:
    """The typed configuration of a command line."""
    groups = [o for o in overrides if o.lstrip("+").partition("=")[0] in GROUPS]
    values = [o for o in overrides if o not in groups]
    own = [o for o in values if o.startswith(OPEN_SECTIONS)]
    given = OmegaConf.from_dotlist([o for o in values if o not in own])
    config = OmegaConf.merge(_groups(*groups), given)
    for each in own:
        key = each.partition("=")[0]
        value = OmegaConf.select(OmegaConf.from_dotlist([each]), key)
        OmegaConf.update(config, key, value, force_add=True)
    add_rounds(config)
    typed = OmegaConf.to_object(config)
    assert isinstance(typed, Config)
    return typed


@functools.cache
def _groups(*choices: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(run.CONF)):
        return compose("config", overrides=list(choices))


def joining(config: Config) -> Config:
    """The same run with the nodes of a cluster that it may join, if it leaves them open."""
    if config.cluster.unknown:
        cuda = config.cluster.accelerator is Accelerator.cuda
        config.cluster.sizes = "+".join(["64x8"] * 4 if cuda else ["2x0"] * 2)
    return config
