"""The command: `python -m orchestrator.run +experiment=NAME [group=option] [key=value]`.

Composes the configuration, prints the plan, and hands both to the recipe. Every expected failure
ends in one short message on stderr and an exit code of its own; the traceback goes to error.log in
the run folder.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from orchestrator.config import Config
from orchestrator.config_errors import explain, reject_unknown_keys
from orchestrator.plan import make_plan, render_plan
from orchestrator.run_folder import RunFolder, write_text
from workers.errors import RehearsalError

CONF = Path(__file__).resolve().parent.parent / "conf"

ConfigStore.instance().store("schema", Config)


def main() -> int:
    """Run the command line in `sys.argv`; return the exit code (of a sweep: the highest)."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # hand composition errors to us instead of printing them
    sys.argv[1:] = [_may_add(argument) for argument in sys.argv[1:]]
    codes = [0]

    @hydra.main(version_base="1.3", config_path=str(CONF), config_name="config")
    def job(composed: DictConfig) -> None:
        codes.append(execute(composed))

    try:
        job()
    except (HydraException, OmegaConfBaseException) as error:
        return _report(explain(error), None)
    return max(codes)


def _may_add(argument: str) -> str:
    """Let `data.sets.NAME.key=value` add what is not there yet, without Hydra's plus."""
    bare = argument.lstrip("+")
    return f"++{bare}" if bare.startswith("data.sets.") else argument


def execute(composed: DictConfig) -> int:
    """One run; returns its exit code."""
    folder: RunFolder | None = None
    caught: list[signal.Signals] = []
    try:
        with _stop_on_signals(caught):
            config = to_config(composed)
            plan = make_plan(config)
            sys.stdout.write(render_plan(plan) + "\n")
            sys.stdout.flush()
            if config.run.plan_only:
                return 0
            # absolute: roles on a cluster that was joined work in a directory of their own
            path = Path(config.run.dir).resolve()
            folder = RunFolder(path).create(overwrite=config.run.overwrite)
            write_text(folder.config, OmegaConf.to_yaml(composed, resolve=True))
            # imported late: a plan or a mistyped key needs neither Ray nor the engines
            from orchestrator.recipe import run_recipe

            run_recipe(config, plan, folder.path)
    except RehearsalError as error:
        return _report(error, folder)
    except KeyboardInterrupt:
        sys.stderr.write(f"stopped by {caught[0].name}; everything the run started is shut down\n")
        return 128 + caught[0]
    return 0


def to_config(composed: DictConfig) -> Config:
    """The typed configuration.

    In a sweep each job gets the folder that Hydra numbered for it.

    Raises:
        UnknownKeyError: a key that the schema lacks; Hydra lets `+key=value` add any.
        ConfigError: a value of the wrong type or out of range.
    """
    if HydraConfig.initialized() and HydraConfig.get().mode is RunMode.MULTIRUN:
        composed.run.dir = HydraConfig.get().runtime.output_dir
    reject_unknown_keys(composed)
    try:
        config = OmegaConf.to_object(composed)
    except OmegaConfBaseException as error:
        raise explain(error) from error
    assert isinstance(config, Config)
    return config


def _report(error: RehearsalError, folder: RunFolder | None) -> int:
    """Print what, where and how to mend; keep the traceback in the run folder."""
    sys.stderr.write(f"error: {error}\n")
    if folder is not None:
        write_text(folder.error_log, "".join(traceback.format_exception(error)))
        sys.stderr.write(f"  traceback: {folder.error_log}\n")
    return error.exit_code


@contextmanager
def _stop_on_signals(caught: list[signal.Signals]) -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM into KeyboardInterrupt, and append it to `caught`.

    No other exception gets out of a wait inside Ray: its native code drops them. A second signal
    ends the process at once; Ray's processes of a local cluster follow, since the kernel tells
    them.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        del frame
        if caught:
            os._exit(128 + number)
        caught.append(signal.Signals(number))
        raise KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)}
    for each in before:
        signal.signal(each, stop)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


if __name__ == "__main__":
    sys.exit(main())
