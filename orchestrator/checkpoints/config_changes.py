"""Comparison of a checkpoint's configuration with that of the run that resumes from it."""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from orchestrator.batching.batch_sizes import (
    ONLINE_STAGES,
    PPO_STAGES,
    SAMPLING_STAGES,
    fitting_warmup,
    optimizers,
)
from orchestrator.config.cluster import RoleName
from orchestrator.config.engines import Schedule
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config, asked_while_learning
from orchestrator.config.training import SFTBest, TrainingJudge
from orchestrator.config.variants import stage_of, variant
from workers.errors import ConfigError

if TYPE_CHECKING:
    from orchestrator.checkpoints.saved_runs import SavedRun

DATE = "data.date"
# May change between an interrupted run and its resumption: they affect where the run writes and how
# long it takes, not what it computes.
_FREE = ("run", "samples", "logger", "resume", "rerun", "data.workers", "data.cache_mib")
# May change too, but then the order of floating-point sums changes.
_LAYOUT = ("cluster", "trainer.zero_stage", "trainer.weight_bucket_mib")
# Keys whose value leaves the choice to the run; what was chosen is in its checkpoints, and stays.
CORES = "cluster.cores"
OPEN: dict[str, object] = {
    CORES: 0,
    **{f"cluster.roles.{role.value}.threads": 0 for role in RoleName},
    "algorithm.old_logprobs": "auto",
}
_PRETRAIN = (StageName.pretrain, StageName.pretrain_large)
# The stages that read a key, by its longest prefix listed here; all stages read a key that is not
# listed or has None. A key may change until the first stage that reads it has begun.
READERS: dict[str, tuple[StageName, ...] | None] = {
    "pretrain.steps": _PRETRAIN,
    "pretrain.documents_per_step": _PRETRAIN,
    "pretrain.optimizer": _PRETRAIN,
    "model.large": (StageName.pretrain_large,),
    "model.checkpoints.reward_model": (*ONLINE_STAGES, *SAMPLING_STAGES),
    "model.checkpoints.teacher": (*PPO_STAGES, StageName.evaluate),
    "sft": (StageName.sft,),
    "sft.demonstrations_per_step": None,  # determines the order in which files are read
    "sft.pretraining_fraction": None,
    "reward_model": (StageName.reward_model, StageName.dpo),
    "preference": (StageName.dpo, StageName.online_dpo),
    "rejection": (StageName.rejection_sampling,),
    "reward": (*ONLINE_STAGES, *SAMPLING_STAGES),
    "algorithm": ONLINE_STAGES,
    "algorithm.ptx": (StageName.ppo_ptx,),
    "algorithm.on_non_finite": None,
    "label": (StageName.label,),
    "constitution": (StageName.constitution,),
    "iterate": (),  # what it does is in stages and variants, which are compared
    "collect": (StageName.collect,),
    "evaluate": (StageName.evaluate,),
    "overoptimization": (StageName.overoptimization,),
    # who ranks what is sampled, and who scores held-out answers
    "overoptimization.gold": None,
    "model.checkpoints.gold": None,
    "evaluate.samples_shown": (StageName.sft, StageName.reward_model, StageName.evaluate),
    "evaluate.web_documents": (StageName.pretrain, StageName.evaluate),
}
_JUDGE = ("evaluate.judge", "evaluate.judge_function", "evaluate.endpoint")
_REWARD = ("reward", "model.checkpoints.reward_model")
_PASSES = ("sft.epochs", "reward_model.epochs")  # the number of steps depends on the data
_LENGTHS = (
    "pretrain.steps", "sft.steps", "algorithm.iterations", "rejection.iterations", *_PASSES,
)  # fmt: skip


@dataclass(slots=True)
class Changes:
    """The keys that differ, each as "KEY BEFORE -> AFTER"."""

    # same results as a run that had the new value from its beginning
    exact: list[str] = field(default_factory=list)
    layout: list[str] = field(default_factory=list)  # results may differ in the last bits
    refused: list[str] = field(default_factory=list)
    too_late: list[str] = field(default_factory=list)  # possible from an earlier checkpoint only


def compare_config(saved: SavedRun, config: Config) -> Changes:
    """Compare the configuration of a checkpoint with that of the run that resumes from it."""
    before, after = saved_values(saved.config), flat(plain_config(config))
    changed = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k)]
    if not after.get(DATE):  # the resumed run keeps its saved date
        changed = [key for key in changed if key != DATE]
    changed = [key for key in changed if not (key in OPEN and after[key] == OPEN[key])]
    if _appended(before.get("stages"), after.get("stages")):
        changed.remove("stages")
    found = Changes()
    for key in changed:
        told = f"{key} {before.get(key)!r} -> {after.get(key)!r}"
        if _below(key, _LAYOUT):
            found.layout.append(told)
        elif not _below(key, _FREE):
            _sort(found, _Change(key, before.get(key), after.get(key)), told, saved, config)
    return found


def require_fitting(saved: SavedRun, changes: Changes) -> None:
    """Refuse to resume from a checkpoint with an incompatible configuration.

    Raises:
        ConfigError: names all keys whose change is not allowed.
    """
    if refused := [*changes.refused, *changes.too_late]:
        raise ConfigError(
            f"the configuration differs from that of the checkpoint: {'; '.join(refused)}",
            where=str(saved.path),
            fix="give the same values, start another run, or go back to a checkpoint before the "
            f"stages that read them: resume={saved.folder.state}/NAME. run.*, logger.*, cluster.*, "
            "data.workers, data.cache_mib and the ZeRO stage may change, stages may be appended",
        )


@dataclass(frozen=True, slots=True)
class _Change:
    key: str
    before: object
    after: object


def _sort(found: Changes, change: _Change, told: str, saved: SavedRun, config: Config) -> None:
    finished = saved.progress["finished"]
    begun = [name for name in (*finished, saved.stage) if _reads(name, change, config)]
    begun = list(dict.fromkeys(begun))
    if not begun and _readers(change.key) is not None:
        found.exact.append(told)
    elif change.key not in _LENGTHS:
        found.refused.append(told)
    elif why := _not_longer(change, begun, saved, config):
        found.refused.append(f"{told} ({why})")
    elif saved.stage in finished:
        found.too_late.append(f"{told} ({saved.stage} is finished there)")
    elif _ahead(change, saved, config):
        found.too_late.append(f"{told} (later sequences would have been sampled ahead by then)")
    else:
        found.exact.append(told)


def _reads(name: str, change: _Change, config: Config) -> bool:
    """Whether a stage run reads a key whose readers are known."""
    if change.key.startswith("variants."):
        return change.key.split(".")[1] == name
    readers = _readers(change.key)
    if readers is None:
        return False
    stage = stage_of(config.variants, name)
    own = variant(name, config.variants[name]).changes if name in config.variants else {}
    return stage in readers or stage in _more_readers(change, config, own)


def _readers(key: str) -> tuple[StageName, ...] | None:
    names = key.split(".")
    if names[0] == "variants" and len(names) > 1:
        return ()  # the variant itself
    prefixes = (".".join(names[:count]) for count in range(len(names), 0, -1))
    return next((READERS[prefix] for prefix in prefixes if prefix in READERS), None)


def _more_readers(change: _Change, config: Config, own: Mapping[str, Any]) -> tuple[StageName, ...]:
    """Stages that read a key only with certain values of others.

    Args:
        change: Of the key.
        config: The run.
        own: Dotted keys by which a variant differs from the run; {} for a plain stage.
    """
    if _below(change.key, _REWARD):
        best = SFTBest(own.get("sft.keep_best", config.sft.keep_best))
        return (StageName.sft,) if best is SFTBest.reward_model else ()
    if _below(change.key, _JUDGE):
        judges = {config.evaluate.judge}
        judges |= {JudgeKind(change.before)} if change.key == "evaluate.judge" else set()
        every = own.get("algorithm.evaluate_every", config.algorithm.evaluate_every)
        chosen = own.get("algorithm.evaluation_judge", config.algorithm.evaluation_judge)
        asked = asked_while_learning(TrainingJudge(chosen))
        return ONLINE_STAGES if every and judges & {*asked} else ()
    return ()


def _not_longer(change: _Change, begun: list[str], saved: SavedRun, config: Config) -> str:
    """Why the steps so far differ from those of a run with the new length; "" if they are the same.

    Their learning rates may depend on the length.
    """
    if earlier := [stage for stage in begun if stage != saved.stage]:
        return f"{earlier[0]} is finished, and a later stage has begun"
    if saved.stage in config.variants:
        return f"the variant {saved.stage} has begun"
    before, after = change.before, change.after
    if not (isinstance(before, int) and isinstance(after, int) and 0 < before < after):
        return "a stage that has begun can only be made longer"
    if not saved.step:
        return ""
    old = copy.deepcopy(config)
    section, _, name = change.key.partition(".")
    setattr(getattr(old, section), name, before)
    least = saved.step + (saved.stage not in saved.progress["finished"])
    for where, optimizer, planned in optimizers(old, StageName(saved.stage)):
        steps = least if change.key in _PASSES or planned is None else planned
        if optimizer.schedule is not Schedule.constant and optimizer.min_learning_rate_ratio != 1:
            return f"its learning rates depend on it by {where}.schedule={optimizer.schedule.value}"
        if fitting_warmup(optimizer.warmup_steps, steps) != optimizer.warmup_steps:
            return f"its learning rates depend on it by {where}.warmup_steps, which were cut"
    return ""


def _ahead(change: _Change, saved: SavedRun, config: Config) -> bool:
    """Whether a longer run would have sampled more sequences ahead before the checkpoint."""
    assert isinstance(change.before, int)
    ahead = config.algorithm.staleness if change.key == "algorithm.iterations" else 0
    return saved.step + ahead > change.before


def _appended(before: object, after: object) -> list[object]:
    """The stages appended to those of the checkpoint; [] if the checkpoint's stages changed."""
    if not (isinstance(before, list) and isinstance(after, list)):
        return []
    return after[len(before) :] if before and after[: len(before)] == before else []


def plain_config(config: Config | type[Config]) -> dict[str, Any]:
    """The resolved configuration, or the default one, as plain values."""
    plain = OmegaConf.to_container(OmegaConf.structured(config), enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def settled(saved: SavedRun | None, config: Config, cores: int) -> dict[str, Any]:
    """Values for the keys that a configuration leaves open (`OPEN`).

    Args:
        saved: The checkpoint that the run resumes from, whose choices stay; None: there is none.
        config: The run.
        cores: Cores per node that there are.
    """
    given = flat(plain_config(config))
    values = {key: value for key, value in chosen(saved).items() if given[key] == OPEN[key]}
    if given[CORES] == OPEN[CORES]:
        values[CORES] = min(cores, values.get(CORES, cores))
    return values


def set_key(config: Config, key: str, value: Any) -> None:
    """Set a key that has a value already, e.g. one of `settled`; enumerations by their names."""
    *path, name = key.split(".")
    owner = functools.reduce(getattr, path, config)
    setattr(owner, name, type(getattr(owner, name))(value))


def chosen(saved: SavedRun | None) -> dict[str, Any]:
    """The values of the keys in `OPEN` that a checkpoint records."""
    before = saved_values(saved.config) if saved else {}
    return {key: before[key] for key in OPEN if before.get(key, OPEN[key]) != OPEN[key]}


def saved_values(config: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's configuration by dotted keys; a key introduced later has its default."""
    return _defaults() | flat(config)


@cache
def _defaults() -> dict[str, Any]:
    return flat(plain_config(Config))


def _below(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as values by dotted key."""
    flattened: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping):
            flattened |= flat(value, f"{prefix}{key}.")
        else:
            flattened[f"{prefix}{key}"] = value
    return flattened
