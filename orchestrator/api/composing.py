"""Compose and plan a run without starting it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from orchestrator.command_line.composition import compose_run
from orchestrator.config.schema import Config
from orchestrator.planning.plan import Plan, render_plan
from orchestrator.run import planned
from workers.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Planned:
    """A run that could be started; `str` gives the text that the command prints."""

    config: Config
    plan: Plan

    def __str__(self) -> str:
        return render_plan(self.plan)


def compose(*arguments: str, config_dir: str | Path = "") -> Config:
    """The typed configuration of a command line.

    Args:
        arguments: As after `rehearsal run`: "+experiment=NAME", "group=option", "key=value".
        config_dir: Folder of your own configuration files; "" = none.

    Raises:
        ConfigError: An argument means nothing, or a value is out of range.
        MissingCheckpointError: `resume` or `rerun` names no run.
    """
    for word in arguments:
        if word.startswith("-"):
            raise ConfigError(
                f"{word} is a flag of the command line",
                where="arguments",
                fix="pass +experiment=NAME, group=option and key=value; a sweep is a loop here",
            )
    own = Path(config_dir) if config_dir else None
    if own is not None and not own.is_dir():
        raise ConfigError("there is no such folder", where=str(own), fix="name your conf folder")
    return compose_run(arguments, own)


def plan(*arguments: str, config_dir: str | Path = "") -> Planned:
    """Batch arithmetic, placement and memory of a run, checked as before a start.

    Takes and raises what `compose` does; ResourceError and its kin if the plan does not fit.
    """
    config = compose(*arguments, config_dir=config_dir)
    return Planned(config, planned(config)[0])
