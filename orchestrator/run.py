"""The command: `python -m orchestrator.run +experiment=NAME [group=option] [key=value]`.

Composes the configuration, prints the plan, and passes both to the recipe. Every expected failure
ends in one short message on stderr and a specific exit code, any other in one line and code 70; the
traceback goes to error.log in the run folder.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.checkpoints.config_changes import set_key
from orchestrator.cluster.fork_servers import ForkServers, preloads
from orchestrator.command_line.arguments import prepare
from orchestrator.command_line.composition import may_add, to_config
from orchestrator.command_line.earlier_run import Command, configuration
from orchestrator.command_line.errors import explain
from orchestrator.command_line.key_help import key_help
from orchestrator.command_line.key_types import CONF
from orchestrator.config.schema import Config
from orchestrator.mirror.opening import mirror_outlook, open_mirror
from orchestrator.planning.plan import Plan, make_plan, plan_stages, render_plan
from orchestrator.preflight import hub_models
from orchestrator.preflight.input_paths import check_paths
from orchestrator.preflight.user_functions import check_own_parts
from orchestrator.process.command_exit import exit_code, say, tell, unexpected
from orchestrator.process.program import invocation
from orchestrator.process.stop_signals import StopRequest, exit_process, stop_on_signals
from orchestrator.run_files.folder import RunFolder, write_text
from orchestrator.run_files.origin import write_origin
from orchestrator.session.resume import (
    Start,
    find_folder,
    find_start,
    outlook,
    package_versions,
    run_date,
    saved_runs,
)
from workers.errors import CheckpointError, RehearsalError, StoppedError, WaitingError


def main() -> int:
    """Run the command line in `sys.argv`; return the exit code (of a sweep: the highest)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise composition errors instead of printing them
    codes: list[int] = []
    folders: list[Path] = []  # of the jobs of a sweep
    typed = sys.argv[1:]  # before `prepare` quotes texts for hydra

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(composed: DictConfig) -> None:
        if any(code == StoppedError.exit_code or code > 128 for code in codes):
            return  # a signal stops the whole sweep
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            folders.append(Path(HydraConfig.get().runtime.output_dir))
        # Later jobs of a sweep do not begin at the start of the process.
        codes.append(execute(composed, typed, began=time.monotonic() if codes else None))

    def compose_and_run() -> None:
        if (text := key_help(sys.argv[1:])) is not None:
            tell(text)
            return
        sys.argv[1:] = [may_add(argument) for argument in prepare(sys.argv[1:])]
        try:
            job()
        except (HydraException, OmegaConfBaseException) as error:
            raise explain(error) from error
        if len(folders) > 1:
            command = invocation("runs", "orchestrator.runs.listing")
            tell(
                f"compare the jobs with: {command} --sweep {shlex.quote(str(folders[0].parent))}\n"
            )

    return max(exit_code(compose_and_run, outlast_reader=True), *codes, 0)


def _command() -> Command:
    hydra_config = HydraConfig.get()
    choices = {str(group): str(option) for group, option in hydra_config.runtime.choices.items()}
    return Command(list(hydra_config.overrides.task), choices)


def execute(composed: DictConfig, arguments: Sequence[str] = (), began: float | None = None) -> int:
    """Execute one run; returns its exit code.

    Args:
        composed: The configuration composed from the command line.
        arguments: That command line, as typed.
        began: time.monotonic() at the run's start; None: the start of the process.
    """
    start: Start | None = None
    with stop_on_signals() as stop:
        try:
            composed, notes = configuration(composed, _command())
            config = to_config(composed)
            folder = find_folder(config.resume, Path(config.run.dir), config.experiment)
            if config.resume:
                composed.run.dir = config.run.dir = str(folder.path)
            plan, named = planned(config)
            for key, model in named.items():  # config.yaml keeps the name and its revision
                OmegaConf.update(composed, key, model)
            notes = [*notes, *(f"{key} is {model}" for key, model in named.items())]
            tell(render_plan(plan) + "\n" + "".join(f"note: {note}\n" for note in notes))
            check_paths(config)
            if config.run.plan_only:
                begins = find_start(config, folder)
                told = mirror_outlook(config, folder) or outlook(config, begins)
                _look(config)
                tell(_occupied(begins, config))
                tell("".join(f"resume: {sentence}\n" for sentence in told))
                return 0
            with folder.locked():  # no other process may change the folder meanwhile
                mirror, restored = open_mirror(config, folder, _given(config))
                found = find_start(config, folder)
                found = replace(found, mirror=mirror, notes=[*restored, *found.notes])
                start = replace(_open(found, config), began=began)
                opened = start.folder
                stop.resort.report = lambda error: _report(error, opened)
                composed.data.date = config.data.date = run_date(config, found.saved)
                for key, value in found.settled.items():
                    OmegaConf.update(composed, key, value)
                    set_key(config, key, value)
                write_text(start.folder.config, OmegaConf.to_yaml(composed, resolve=True))
                words = [*shlex.split(invocation("run", "orchestrator.run")), *arguments]
                write_origin(start.folder, words, package_versions(), Path(__file__).parents[1])
                _run(config, plan, start, stop)
        except StoppedError as stopped:
            say(f"{stopped}\n")
            if start and isinstance(stopped, WaitingError):
                _keep_request(stopped, start.folder)
            return stopped.exit_code
        except RehearsalError as error:
            stop.resort.stand_aside()
            return _report(error, start.folder if start else None)
        except KeyboardInterrupt:
            stop.resort.stand_aside()
            caught = stop.caught or signal.SIGINT  # None: Python's own handler raised this
            say(f"stopped by {caught.name}; everything the run started is shut down\n")
            return 128 + caught
        except Exception as error:  # noqa: BLE001  the outermost handler
            stop.resort.stand_aside()
            return unexpected(error, start.folder.error_log if start else None)
    return 0


def planned(config: Config) -> tuple[Plan, dict[str, str]]:
    """The checked plan of a run, and its models of the hub: key -> name and revision."""
    named = hub_models.resolve(config)
    check_own_parts(config)
    _find_nodes(config)
    return make_plan(config), named


def _find_nodes(config: Config) -> None:
    """Enter the nodes of the cluster that is joined, if the configuration leaves them open."""
    if not config.cluster.unknown:
        return
    plan_stages(config)  # its checks come before a wait for nodes
    _before_ray()
    from orchestrator.cluster.reported_nodes import reported_nodes

    seconds = 0.0 if config.run.plan_only else config.run.role_start_seconds
    note = lambda text: tell(f"note: {text}\n")  # noqa: E731
    config.cluster.sizes = reported_nodes(config.cluster, seconds, note)


def _before_ray() -> None:
    # Ray ends a process (code 1, no message) if it finds its raylet dead: the process with this
    # pid, or without this variable the parent, which counts as dead if it is process 1, as in
    # containers. Ray reads the variable at import; its own processes get another value.
    os.environ["RAY_RAYLET_PID"] = str(os.getpid())


def _look(config: Config) -> None:
    from orchestrator.preflight.dry_run import (
        look,  # imported here, so that a mistyped key is reported without loading tokenizers
    )

    inputs = look(config)
    tell("".join(f"note: {note}\n" for note in inputs.notes))
    tell("checkpoints, data and functions were read: nothing in them stops this run\n")


def _occupied(start: Start, config: Config) -> str:
    """A note of the plan if the run would be refused because its folder holds another one."""
    if start.saved is not None or start.clear or config.run.overwrite:
        return ""
    found = start.folder.found()
    return found and (
        f"note: {start.folder.path} is not empty: it holds {found}; a run needs another run.dir, "
        "or run.overwrite=true to replace its results\n"
    )


def _open(start: Start, config: Config) -> Start:
    """Create the run folder, or reset it to its state when the checkpoint was saved."""
    if start.saved is None:
        aside: Path | None = None
        if start.clear and not config.run.overwrite:
            aside = start.folder.set_aside(_given(config))
        start.folder.create(overwrite=config.run.overwrite or start.clear)
        moved = [f"an earlier attempt that has no checkpoint was moved to {aside}"] if aside else []
        return replace(start, notes=[*start.notes, *moved])
    saved = saved_runs(config, start.folder).continue_from(start.saved)
    start.folder.reopen(saved.progress["appended"])
    return replace(start, saved=saved)


def _given(config: Config) -> list[Path]:
    paths = asdict(config.model.checkpoints).values()
    return [Path(path).resolve() for path in paths if path]


def _run(config: Config, plan: Plan, start: Start, stop: StopRequest) -> None:
    _before_ray()
    with ForkServers(preloads(config, plan.layout.roles)) as forks:
        # Imported here, because a plan or a mistyped key needs neither Ray nor the engines.
        from orchestrator.recipe import run_recipe

        stop.grace_seconds = config.run.grace_seconds
        run_recipe(config, plan, start.folder.path, start, stop, forks)


def _keep_request(waits: WaitingError, folder: RunFolder) -> None:
    """Keep in the run folder what people are asked for: `runs`, `watch` and the report show it."""
    try:
        write_text(folder.waiting, f"{waits}\n")
    except CheckpointError as full:
        say(f"  this text is not kept: {full.what}\n")


def _report(error: RehearsalError, folder: RunFolder | None) -> int:
    """Print what failed, where, and the fix; write the traceback to the run folder."""
    say(f"error: {error}\n")
    if folder is not None:
        try:
            write_text(folder.error_log, "".join(traceback.format_exception(error)))
        except CheckpointError as full:  # a full disk may also have ended the run
            say(f"  no traceback is kept: {full.what}\n")
        else:
            say(f"  traceback: {folder.error_log}\n")
    return error.exit_code


if __name__ == "__main__":
    exit_process(main())
