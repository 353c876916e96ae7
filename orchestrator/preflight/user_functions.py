"""Check of user functions: each is imported before anything starts.

Each is imported in a separate process, because an import may hang, end its process or occupy the
GPU, none of which may affect the driver.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

from orchestrator.batching.batch_sizes import ONLINE_STAGES, PPO_STAGES
from orchestrator.config.constitution import Critic
from orchestrator.config.environment import EnvironmentKind
from orchestrator.config.evaluation import JudgeKind
from orchestrator.config.run import StageName
from orchestrator.config.schema import Config
from orchestrator.planning.runs.expand import (
    any_rewarded,
    expand,
    judges_training,
    stages_of,
    variants_of,
)
from orchestrator.preflight.constitution import check_constitutions
from orchestrator.stages.labels.labeler import find_labeler
from workers.errors import ConfigError
from workers.process.child_processes import end_group, module_command, module_environment
from workers.process.disk import temporary_folder
from workers.process.user_code import words_of_output
from workers.user_functions.environment_function import tools_path


def check_functions(config: Config) -> None:
    """Import every function that the run's stages will call, and check its parameters.

    Raises:
        ConfigError: A function cannot be imported, or its parameters do not match the call; shows
            what its module raised, and where.
    """
    for loader, path, where in _named(config):
        _try(loader, path, where, config.run.role_start_seconds)


def check_own_parts(config: Config) -> None:
    """Import the user's parts: reward source, estimator, policy loss, transport.

    Estimator and policy loss also compute something once. Before the plan, because that imports
    parts into this process.

    Raises:
        ConfigError: one cannot be imported, or is or computes something else.
    """
    seconds = config.run.role_start_seconds
    for term in config.reward.each:
        if ":" in term.kind:
            _try("workers.scorers.source:find_source", term.kind, term.where, seconds)
    if {*ONLINE_STAGES} & stages_of(config):
        for loader, path, where in _of_algorithms(config):
            _try(loader, path, where, seconds)
        if ":" in config.rollout.transport:
            loader = "workers.weights.transport:find_transport"
            _try(loader, config.rollout.transport, "rollout.transport", seconds)
    check_constitutions(config)
    check_labelers(config, seconds)  # the last: to find their runs, it imports estimators here


def check_labelers(config: Config, seconds: float) -> None:
    """Check that each run of the stage label has a labeler that can rank with its settings.

    Raises:
        ConfigError: there is none of this name, it cannot be imported, or lacks what it needs.
    """
    for where, own in label_configs(config):
        name = own.label.labeler
        if ":" in name:
            loader = "orchestrator.stages.labels.labeler:find_labeler"
            _try(loader, name, f"{where}.labeler", seconds)
        find_labeler(name, str(Path.cwd())).check(own, where)


def label_configs(config: Config) -> Iterator[tuple[str, Config]]:
    """What each run of the stage label runs with, and where its settings are."""
    for run in expand(config):
        if run.stage is StageName.label:
            yield run.key("label"), run.config


def _of_algorithms(config: Config) -> Iterator[tuple[str, str, str]]:
    """Loader, path and key of the user's estimators and losses, those of variants included."""
    plain = any(stage in ONLINE_STAGES for stage in config.stage_names)
    chosen = variants_of(config).items()
    changes = {
        f"variants.{name}.set.": own.changes for name, own in chosen if own.stage in ONLINE_STAGES
    }
    for key, loader in (
        ("algorithm.advantage", "workers.training.estimator:try_estimator"),
        ("algorithm.policy_loss", "workers.training.policy_loss:try_policy_loss"),
    ):
        given = getattr(config.algorithm, key.rpartition(".")[2])
        paths = {key: given} if plain or not all(key in each for each in changes.values()) else {}
        paths |= {where + key: str(each[key]) for where, each in changes.items() if key in each}
        for where, path in paths.items():
            if ":" in path:
                yield loader, path, where


def _environments(config: Config) -> Iterator[tuple[str, str, str]]:
    """Loader, path and key of each environment and its tools, those of variants included."""
    tried: set[str] = set()
    for run in expand(config):
        own = run.config.environment
        if not own.on or run.stage not in (*PPO_STAGES, StageName.evaluate):
            continue
        tools = own.kind is EnvironmentKind.tools
        path = tools_path(tuple(own.tools), own.call.value) if tools else own.factory
        if path not in tried:
            tried.add(path)
            where = run.key("environment.tools" if tools else "environment.factory")
            yield "workers.user_functions.environment_function:try_factory", path, where


def _named(config: Config) -> Iterator[tuple[str, str, str]]:
    yield from _environments(config)
    evaluates = StageName.evaluate in config.stages
    if evaluates or any_rewarded(config):
        for each in config.reward.needs.code:
            yield each.loader, each.path, each.where
    for where, own in label_configs(config):
        if own.label.labeler == "function":
            loader = "workers.user_functions.labeler_function:load_labeler"
            yield loader, own.label.function, f"{where}.function"
    for run in expand(config):
        own = run.config.constitution
        if run.stage is StageName.constitution and own.critic is Critic.function:
            loader = "workers.user_functions.reviser_function:load_reviser"
            yield loader, own.function, f"{run.key('constitution')}.function"
    compares = evaluates or judges_training(config)
    if compares and config.evaluate.judge is JudgeKind.function:
        loader = "workers.user_functions.judge_function:load_judge"
        yield loader, config.evaluate.judge_function, "evaluate.judge_function"


def _try(loader: str, path: str, where: str, seconds: float) -> None:
    with temporary_folder("rehearsal-function-") as place:
        result, log = Path(place) / "result.json", Path(place) / "log"
        arguments = (loader, path, str(Path.cwd()), str(result))
        ended = _run(module_command("workers.user_functions.trial", *arguments), log, seconds)
        found = result.read_text(encoding="utf-8") if result.is_file() else ""
        said = words_of_output(log)
    if ended is None:
        raise ConfigError(
            f"importing {path!r} did not end within {seconds:g} s",
            where=where,
            fix="do at the first call what takes so long, or raise run.role_start_seconds",
        )
    if not found:
        raise ConfigError(
            f"importing {path!r} ended its process with exit code {ended}{said}",
            where=where,
            fix="a module must not end the process that imports it",
        )
    if wrong := json.loads(found):
        raise ConfigError(wrong["what"], where=wrong["where"], fix=wrong["fix"])


def _run(command: list[str], log: Path, seconds: float) -> int | None:
    """Run a command and return its exit code, or None if it timed out and was killed."""
    with log.open("wb") as out:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=module_environment(),
            start_new_session=True,
        )
    try:
        return child.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        end_group(child)
