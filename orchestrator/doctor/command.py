"""Check this machine, the installation and the cluster of a run: `python -m orchestrator.doctor`.

Takes the arguments of `orchestrator.run`, such as +experiment=NAME and cluster=OPTION; without an
experiment only the machine and the cluster are checked. Each check ends in ok, warn, fail with its
fix, or skip with its reason. The exit code is 2 if a check fails, else 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from orchestrator.cluster.inspected import Inspected
from orchestrator.command_line.composition import compose_run
from orchestrator.config.cluster import ClusterConfig
from orchestrator.doctor.checks import (
    ENGINE_SECONDS,
    NODE_SECONDS,
    RAY_SECONDS,
    TORCH_SECONDS,
    all_checks,
)
from orchestrator.doctor.children import Absent, Child, child_folders
from orchestrator.doctor.findings import Result, State, run_checks
from orchestrator.doctor.machine import existing
from orchestrator.doctor.subject import Subject, make_subject
from orchestrator.planning.worker_specs import rollout_environment
from orchestrator.process.command_exit import exit_code, visible
from orchestrator.process.program import program
from orchestrator.process.stop_signals import stop_on_signals
from workers.errors import ConfigError

FAILED = ConfigError.exit_code
_LOOPBACK = {"REHEARSAL_HOST": "127.0.0.1", "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_intermixed_args(arguments)
    failed: list[Result] = []
    code = exit_code(lambda: failed.extend(_examine(options)))
    return code or (FAILED if failed else 0)


def _examine(options: argparse.Namespace) -> list[Result]:
    """Make every check and print what it finds; returns the failed ones."""
    with stop_on_signals(), child_folders() as folder, ExitStack() as ending:
        torch = _child(ending, "torch", folder, TORCH_SECONDS, environment=_LOOPBACK)
        config = compose_run(options.arguments)
        subject = make_subject(config, torch, Absent(), Absent(), _nodes)
        subject = _with_children(subject, folder, ending, engine=options.engine)
        found: list[Result] = []
        for result in run_checks(all_checks(engine=options.engine), subject):
            found.append(result)
            if not options.json:
                sys.stdout.write(_lines(result))
                sys.stdout.flush()
    sys.stdout.write(_as_json(found) if options.json else _total(found))
    return [result for result in found if result.finding.state is State.fail]


def _nodes(cluster: ClusterConfig) -> str:
    from orchestrator.cluster.reported_nodes import reported_nodes  # imports Ray

    return reported_nodes(cluster, 0.0, lambda _: None)


def _with_children(subject: Subject, folder: Path, ending: ExitStack, *, engine: bool) -> Subject:
    """The subject with the processes that it needs besides that of torch."""
    config = subject.config
    if not subject.local:
        above = str(existing(Path(config.run.dir).absolute()))
        asked = Inspected(config.cluster, subject.layout, above, NODE_SECONDS)
        subject = replace(subject, ray=_child(ending, "ray", folder, RAY_SECONDS, asked))
    if engine:
        own = rollout_environment(config)
        child = _child(ending, "engine", folder, ENGINE_SECONDS, config, own)
        subject = replace(subject, engine=child)
    return subject


def _child(
    ending: ExitStack,
    kind: str,
    folder: Path,
    seconds: float,
    arguments: object = None,
    environment: Mapping[str, str] | None = None,
) -> Child:
    own = folder / kind
    own.mkdir()
    child = Child(kind, own, seconds, arguments, environment)
    ending.callback(child.end)
    return child


def _lines(result: Result) -> str:
    finding = result.finding
    text = f"{result.number:>2} {finding.state.value:<5}{result.name:<16}{finding.what}\n"
    if finding.fix and finding.state in (State.warn, State.fail):
        text += f"{'':<24}fix: {finding.fix}\n"
    return visible(text)


def _total(found: Sequence[Result]) -> str:
    states = [result.finding.state for result in found]
    words = {State.ok: "ok", State.warn: "warned", State.fail: "failed", State.skip: "skipped"}
    counts = ", ".join(f"{states.count(state)} {word}" for state, word in words.items())
    return f"{len(found)} checks: {counts}\n"


def _as_json(found: Sequence[Result]) -> str:
    rows = [
        {
            "number": result.number,
            "name": result.name,
            "state": result.finding.state.value,
            "what": result.finding.what,
            "fix": result.finding.fix,
        }
        for result in found
    ]
    return json.dumps({"checks": rows}, indent=2) + "\n"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.doctor"),
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "arguments", nargs="*", metavar="KEY=VALUE", help="of the run: group=option, key=value"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument(
        "--engine", action="store_true", help="also start the engine on a tiny model (10 s or more)"
    )
    return parser
