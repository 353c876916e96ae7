"""The command `rehearsal VERB ...`: each verb is one of the modules that `python -m` runs too.

A verb's arguments go to its module as they are typed; `rehearsal VERB --help` is the module's own
help. Modules are imported when their verb is used.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import typer

from orchestrator.process.command_exit import tell
from orchestrator.process.program import begin_verb
from orchestrator.process.stop_signals import exit_process

NAME = "rehearsal"


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb."""

    module: str  # its `main` returns the exit code
    help: str
    reads_argv: bool = False  # `main` takes no arguments


VERBS = {
    "run": Verb("orchestrator.run", "Train: +experiment=NAME [group=option] [key=value].", True),
    "experiments": Verb("orchestrator.experiments", "What +experiment=NAME can be."),
    "keys": Verb("orchestrator.keys", "Every key of a run: type, range, default, purpose."),
    "data": Verb("orchestrator.data.command", "Look at a data set as a run would read it."),
    "model": Verb("orchestrator.new_model", "Make a small model from scratch."),
    "doctor": Verb("orchestrator.doctor.command", "Check installation, machine, GPUs, cluster."),
    "runs": Verb("orchestrator.runs.listing", "List runs: experiment, state, key figures."),
    "compare": Verb("orchestrator.runs.comparing", "Compare two runs: keys, metrics, evaluation."),
    "report": Verb("orchestrator.report.build", "Make the report of a run again."),
    "export": Verb("orchestrator.export", "Write a checkpoint within a stage as a model."),
    "serve": Verb("orchestrator.serve", "Serve a trained model to OpenAI clients."),
    "serve-reward": Verb("orchestrator.serve_reward.command", "Serve a reward model."),
    "chat": Verb("orchestrator.chat", "Talk to a served model."),
    "watch": Verb("orchestrator.watch.command", "Show a run in the browser while it goes on."),
    "label": Verb("orchestrator.label.command", "Have people rank answers in a page."),
    "bench": Verb("benchmarks.command", "Measure throughput on your models and cluster."),
}


def call(name: str, arguments: list[str]) -> int:
    """Run a verb; returns its exit code."""
    here = str(Path.cwd())
    if here not in sys.path:  # functions of users are found here, as under `python -m`
        sys.path.insert(0, here)
    begin_verb(name)
    verb = VERBS[name]
    found: Callable[..., int] = importlib.import_module(verb.module).main
    if not verb.reads_argv:
        return found(arguments)
    sys.argv = [f"{NAME} {name}", *arguments]
    return found()


def make_app() -> typer.Typer:
    """The help of all verbs, and the errors for words that are none."""
    app = typer.Typer(
        name=NAME,
        no_args_is_help=True,
        rich_markup_mode=None,  # square brackets are meant as they are
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_options)
    for name, verb in VERBS.items():
        app.command(name, help=verb.help)(_never)
    return app


def _never() -> None:
    raise AssertionError("`main` runs the verbs")


def _version(asked: bool) -> None:
    if asked:
        tell(f"{NAME} {version(NAME)}\n")
        raise typer.Exit


def _options(
    asked: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and exit."
    ),
) -> None:
    """Reinforcement learning from human feedback on Ray, vLLM and DeepSpeed."""
    del asked  # the callback has answered


def main() -> None:
    """Run the command line in `sys.argv` and end the process with the verb's exit code."""
    words = sys.argv[1:]
    if words and words[0] in VERBS:  # typer would take a `--` out of the arguments
        exit_process(call(words[0], words[1:]))
    make_app()()


if __name__ == "__main__":
    main()
