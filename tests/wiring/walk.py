"""Every key of the schema, changed alone, and what a run derives from the configuration.

What workers are given is compared before and after a change, field by field. Most keys arrive in a
field of their own name, because `from_sections` fills records by name; a new key of a section that
is passed to it needs nothing here.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any, NamedTuple

from composing import composed

from orchestrator.checkpoints.given_inputs import take
from orchestrator.command_line.key_types import schema_types
from orchestrator.config.by_name import from_sections, plain
from orchestrator.config.cluster import RoleName
from orchestrator.config.data import DataSourceKind
from orchestrator.config.ranges import Range, check_tree, limits_of
from orchestrator.config.schema import Config
from orchestrator.planning.plan import make_plan, render_plan
from orchestrator.planning.worker_specs import optimizer_spec
from wiring.world import World
from workers.errors import ConfigError, RehearsalError
from workers.records.specs import PreferenceSpec

# Options without which others have no effect.
BASE = (
    "+experiment=pocket_tiny", "model.lora.rank=4", "evaluate.lm_eval.tasks=[a]",
    "reward.function=a:b", "run.checkpoint.every_steps=null",
    "stages=[pretrain,sft,reward_model,dpo,rejection_sampling,ppo,ppo_ptx,collect,evaluate,"
    "overoptimization]",
    "preference.rankings_per_step=8",
)  # fmt: skip
LEAVES = [key for key, kind in schema_types().items() if not dataclasses.is_dataclass(kind)]
SOURCES = {"files": DataSourceKind.files, "world": DataSourceKind.pocket}
# Other values of keys that not every value of their type fits.
VALUES = {
    "collect.shares": [2.0], "label.shares": [2.0],
    "rejection.temperatures": [0.7], "evaluate.best_of": [2],
    "overoptimization.best_of": [2],
    "data.date": "2026-01-02", "logger.wandb_mode": "online", "model.lora.target": ["q_proj"],
    "model.pocket.hidden_size": 128, "model.pocket.heads": 4, "model.pocket.kv_heads": 1,
    "model.large.hidden_size": 512, "model.large.heads": 16, "model.large.kv_heads": 4,
}  # fmt: skip
# last name of a key that arrives by its name -> fields that depend on it besides
BESIDES = {
    "seed": {"seed"},  # derived seeds
    "sleep": {"rest"},
    "call_seconds": {"slice_seconds"},
    "threads": {"OMP_NUM_THREADS"},
    "workers": {"cpus", "rank", "role", "threads", "OMP_NUM_THREADS"},  # places
}
# part -> what of it a run derives from the configuration
PARTS: dict[str, Callable[[World], Any]] = {
    "plan": lambda w: render_plan(make_plan(w.config)),
    "engine": lambda w: w.engine,
    "groups": lambda w: {role: w.group(role) for role in ("policy", "critic")},
    "trained": lambda w: w.trained,
    "optimizers": lambda w: [optimizer_spec(each, 10**6) for each in _optimizers(w.config)],
    "frozen": lambda w: w.frozen(),
    "reward": lambda w: (w.reward, w.function, w.judge),
    "environment": lambda w: w.environment,
    "penalties": lambda w: [w.penalty(kind, 2.0) for kind in ("model", "function")],
    "preference": lambda w: from_sections(PreferenceSpec, w.config.preference),
    "endpoint": lambda w: w.endpoint,
    "lm_eval": lambda w: w.harness(),
    "launches": lambda w: {role.value: w.launch(role.value) for role in RoleName},
    "resources": lambda w: {role.value: w.resources(role) for role in RoleName},
    "supervision": lambda w: (w.fleet.watch.rules, w.stall_seconds()),
    "checkpoints": lambda w: [w.config.run.checkpoint.steps(s.value) for s in w.config.stages],
    "best": lambda w: w.scores,
    "world": lambda w: (
        w.source.world.seed,
        w.source.labeler.noise,
        w.source.labeler.tie_width,
        w.source.world.groups is not None,
    ),
    "files": lambda w: (w.sets, w.rendering, w.feeding),
    "layout": lambda w: w.layout,
    "inputs": lambda w: sorted(take(w.config)),
}


class Moved(NamedTuple):
    """What the change of one key changed."""

    by_name: set[str]  # fields of its own name that have its new value
    others: set[str]  # other fields, those of the plan's text left out
    plan: bool


class Walk:
    """Changes one key at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = composed(*BASE)
        self._before = self.derived(self.config)

    def change(self, key: str) -> Moved:
        """Change a key, and compare what a run derives; a value that is refused moves nothing."""
        config = copy.deepcopy(self.config)
        section, _, name = key.rpartition(".")
        owner: Any = functools.reduce(getattr, section.split("."), config) if section else config
        value = VALUES[key] if key in VALUES else another(owner, name, schema_types()[key])
        setattr(owner, name, value)
        try:
            check_tree(config)
        except ConfigError:
            return Moved(set(), set(), False)
        after, before = self.derived(config), self._before
        moved = {path for path in before | after if before.get(path) != after.get(path)}
        by_name = {p for p in moved if p.split(".")[-1] == name and after.get(p) == plain(value)}
        plan = {p for p in moved if p.startswith("plan")}
        return Moved(by_name, {p.split(".")[-1] for p in moved - by_name - plan}, bool(plan))

    def derived(self, config: Config) -> dict[str, Any]:
        """Dotted field -> value, of everything that a run derives; an error is a value too."""
        found: dict[str, Any] = {}
        for name, part in PARTS.items():
            source = SOURCES.get(name, config.data.source)
            data = replace(config.data, source=source)
            world = World(self.path, None, [], [], replace(config, data=data))
            try:
                found |= flat(part(world), name)
            except RehearsalError as error:
                found[name] = str(error)
        return found


def _optimizers(config: Config) -> Iterator[Any]:
    yield from (
        getattr(config, s).optimizer
        for s in ("pretrain", "sft", "reward_model", "preference", "rejection")
    )
    yield from (config.algorithm.policy_optimizer, config.algorithm.critic_optimizer)


def flat(value: Any, path: str) -> dict[str, Any]:
    """The values below records, mappings and sequences by dotted path; objects by their class."""
    if dataclasses.is_dataclass(value):
        value = {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    elif isinstance(value, list | tuple) and any(map(dataclasses.is_dataclass, value)):
        value = dict(enumerate(value))
    if isinstance(value, Mapping):
        found = [flat(each, f"{path}.{name}") for name, each in value.items()]
        return functools.reduce(lambda a, b: a | b, found, {})
    simple = isinstance(value, int | float | str | list | tuple | Enum | Path) or value is None
    return {path: value if simple else type(value).__name__}


def another(owner: Any, name: str, kind: Any) -> Any:
    """A value that a key may have, besides its present one."""
    value = getattr(owner, name)
    if isinstance(value, bool):
        return not value
    if isinstance(value, Enum):
        return next(each for each in type(value) if each is not value)
    if isinstance(value, str):
        return f"{value}x" if value else "a:b"
    if isinstance(value, list):
        return value[:-1] if value else ["x"]
    if isinstance(value, dict):
        return {"x": {"kind": "prompts", "path": "P"}}
    (declared,) = [each for each in dataclasses.fields(owner) if each.name == name]
    limits = limits_of(declared)
    whole = "int" in str(kind)
    near = (value + 1, value - 1) if whole and value is not None else (3, 2)
    close = (0.37, 0.73, 2.5) if value is None else (value * 1.25, value * 0.75, 0.375)
    holds = limits.holds if isinstance(limits, Range) else lambda _: True
    return next(each for each in (near if whole else close) if each != value and holds(each))
