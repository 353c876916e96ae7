"""Checks of the stage overoptimization: its gold score, and what it has to measure."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.config.data import DataSourceKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.runs.products import proxies_before
from orchestrator.planning.runs.stage_run import StageRun
from workers.errors import ConfigError

_WHERE = "model.checkpoints.gold"


def check_overoptimization(config: Config, runs: Sequence[StageRun]) -> None:
    """Check the gold score wherever it is read, and that the stage finds a proxy to measure.

    Raises:
        ConfigError: files have no labeler, the gold model is given without a use, is itself a
            proxy, or there is no proxy.
    """
    given = config.model.checkpoints
    if config.gold_model and given.gold and _same(given.gold, given.reward_model):
        raise ConfigError(
            "the reward model that is optimised would give the gold score too: the judge must not "
            "be what was optimised",
            where=_WHERE,
            fix="give another reward model, larger or trained on other rankings",
        )
    if not any(run.stage is StageName.overoptimization for run in runs):
        return
    if not config.gold_model and config.data.source is not DataSourceKind.pocket:
        raise ConfigError(
            "files have no labeler that could give a gold score",
            where="overoptimization.gold",
            fix=f"set overoptimization.gold=reward_model and {_WHERE}=DIR",
        )
    if given.gold and not config.gold_model:
        raise ConfigError(
            "a gold reward model is given, and overoptimization.gold=labeler does not read it",
            where=_WHERE,
            fix="set overoptimization.gold=reward_model, or leave it out",
        )
    if not config.reward.needs.model:
        raise ConfigError(
            f"the proxies are reward models, and reward.kind={config.reward.kind} needs none",
            where="reward.kind",
            fix="set reward=model",
        )
    if not proxies_before(runs) and not given.reward_model:
        raise ConfigError(
            "there is no proxy: no stage before overoptimization makes a reward model",
            where="stages",
            fix="put reward_model or variants of it before overoptimization, or set "
            "model.checkpoints.reward_model=DIR",
        )


def overoptimization_notes(config: Config, runs: Sequence[StageRun]) -> list[str]:
    """Sentences on figures of the stage that will be weak."""
    if not any(run.stage is StageName.overoptimization for run in runs):
        return []
    settings, notes = config.overoptimization, list[str]()
    if 2 * max(settings.numbers) > settings.samples:
        notes.append(
            f"the best of {max(settings.numbers):,} is estimated from "
            f"{settings.samples:,} samples per prompt: its variance is high; "
            "overoptimization.samples of at least twice as many is usual"
        )
    if len(settings.numbers) < 4:
        notes.append("overoptimization.best_of has fewer than 4 numbers: no curve is fitted")
    return notes


def _same(one: str, other: str) -> bool:
    return bool(other) and Path(one).resolve() == Path(other).resolve()
