"""People rank answers in a page: `python -m orchestrator.label make|invite|serve|status|export`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from orchestrator.label.export import export
from orchestrator.label.figures import Figures, Rate, figures_of
from orchestrator.label.queue import LEASE_SECONDS
from orchestrator.label.store import make, opened
from orchestrator.label.tasks import Making, read_tasks
from orchestrator.label.web.server import links, serve
from orchestrator.pages.address import add_options, address_of
from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import program
from workers.errors import ConfigError

_NAME = re.compile(r"[\w.@+-]{1,60}")
_INSTRUCTIONS = (
    "Judge each answer by itself, then rank the answers from best to worst. An answer that is "
    "untruthful or harmful is worse than one that is unhelpful. Answers of about the same quality "
    "may share a rank."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: options.run(options))


def _make(options: argparse.Namespace) -> None:
    making = _making(options)
    tasks = read_tasks(options.tasks, making, options.gold)
    settings = {"seed": str(options.seed), "instructions": _instructions(options.instructions)}
    make(Path(options.project), tasks, settings)
    known = sum(task.gold is not None for task in tasks)
    judgments = sum(task.needed for task in tasks if task.gold is None)
    sys.stdout.write(
        f"{options.project}: {len(tasks) - known:,} tasks for {judgments:,} judgments, and "
        f"{known:,} of known answer\n"
    )


def _making(options: argparse.Namespace) -> Making:
    compare = tuple(name for name in options.compare.split(",") if name)
    if options.compare and not 2 <= len(set(compare)) == len(compare) <= 9:
        raise ConfigError("compare 2 to 9 different models", where="--compare", fix="--compare A,B")
    if options.baseline and options.baseline not in compare:
        raise ConfigError(
            f"{options.baseline!r} is not compared", where="--baseline", fix="name it in --compare"
        )
    if not 0 <= options.overlap <= 1:
        raise ConfigError("the share is outside 0..1", where="--overlap", fix="such as .15")
    if not 2 <= options.judgments <= 5:
        raise ConfigError("2 to 5 judgments per task", where="--judgments", fix="such as 2")
    return Making(
        compare, options.baseline, options.overlap, options.judgments, options.order, options.seed
    )


def _instructions(path: str) -> str:
    if not path:
        return _INSTRUCTIONS
    try:
        return Path(path).read_text(encoding="utf-8")[:20_000]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"the instructions cannot be read: {error}", where=path) from error


def _invite(options: argparse.Namespace) -> None:
    people = [(name, "labeler") for name in options.names]
    people += [(name, "reviewer") for name in options.reviewer]
    if not people and not options.revoke:
        raise ConfigError("nobody is invited", where="invite", fix="give names")
    for name, _ in people:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"{name!r} cannot be a name", where="invite",
                fix="up to 60 letters, digits and . _ @ + -",
            )  # fmt: skip
    with opened(Path(options.project)) as store, store.transaction():
        for name in options.revoke:
            store.revoke(name)
        invited = [(name, store.invite(name, role, renew=options.renew)) for name, role in people]  # type: ignore[arg-type]
    sys.stdout.write(links(options.url.rstrip("/"), invited))


def _serve(options: argparse.Namespace) -> None:
    if not 1 <= options.lease_minutes <= 1440:
        raise ConfigError("1 to 1440 minutes", where="--lease-minutes", fix="such as 30")
    if options.gold_every < 2:
        raise ConfigError("at least 2", where="--gold-every", fix="such as 20")
    serve(
        Path(options.project), address_of(options), lease_seconds=options.lease_minutes * 60.0,
        gold_every=options.gold_every,
    )  # fmt: skip


def _status(options: argparse.Namespace) -> None:
    with opened(Path(options.project)) as store:
        found = figures_of(store)
    if options.json:
        sys.stdout.write(json.dumps(asdict(found), indent=2) + "\n")
    else:
        sys.stdout.write(_told(found))


def _told(found: Figures) -> str:
    p = found.progress
    lines = [
        f"{p.done:,} of {p.tasks:,} tasks are done: {p.judgments:,} of {p.needed:,} judgments; "
        f"{p.skipped:,} skipped, {p.flagged:,} flagged, {p.adjudicated:,} adjudicated",
    ]
    if found.agreement is not None:
        a = found.agreement
        lines.append(f"labelers agree on {a.rate:.1%} of pairs ({a.low:.1%} to {a.high:.1%})")
    lines += [
        f"{each.name} ({each.role}{'' if each.active else ', link revoked'}): {each.judged:,} "
        f"judged, {each.passed:,} passed, agreement with others {_share(each.others)}, with known "
        f"answers {_share(each.gold)}"
        for each in found.labelers
    ]
    return "\n".join(lines) + "\n"


def _share(rate: Rate | None) -> str:
    return "-" if rate is None else f"{rate.rate:.1%}"


def _export(options: argparse.Namespace) -> None:
    with opened(Path(options.project)) as store:
        count = export(store, Path(options.rankings), options.resolve)
    sys.stdout.write(f"{options.rankings}: {count:,} rankings\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.label"), description=(__doc__ or "").splitlines()[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _make_options(commands.add_parser("make", help="make a project from a file of tasks"))
    invite = commands.add_parser("invite", help="print a link for each person")
    invite.add_argument("project")
    invite.add_argument("names", nargs="*", metavar="NAME", help="people who judge tasks")
    invite.add_argument("--reviewer", nargs="+", default=[], metavar="NAME",
                        help="people who also decide, and see the figures")  # fmt: skip
    invite.add_argument("--renew", action="store_true", help="replace the links of these people")
    invite.add_argument("--revoke", nargs="+", default=[], metavar="NAME", help="end links")
    invite.add_argument("--url", default="http://127.0.0.1:8711", help="where they reach the pages")
    invite.set_defaults(run=_invite)
    _serve_options(commands.add_parser("serve", help="serve the pages"))
    status = commands.add_parser("status", help="show progress and agreement")
    status.add_argument("project")
    status.add_argument("--json", action="store_true", help="all figures")
    status.set_defaults(run=_status)
    out = commands.add_parser("export", help="write the rankings")
    out.add_argument("project")
    out.add_argument("rankings", help="JSON lines: data.files.rankings, or evaluate.verdicts")
    out.add_argument(
        "--resolve", choices=("all", "adjudicated", "majority"), default="adjudicated",
        help="what of a task with several judgments is written (adjudicated)",
    )  # fmt: skip
    out.set_defaults(run=_export)
    return parser


def _make_options(make_: argparse.ArgumentParser) -> None:
    make_.add_argument("project", help="the new file, such as tasks.db")
    make_.add_argument("tasks", help="JSON lines: prompt or messages, and completions or answers")
    make_.add_argument("--compare", default="", metavar="A,B", help="compare these models' answers")
    make_.add_argument("--baseline", default="", help="compare each with this model only")
    make_.add_argument("--gold", default="", metavar="FILE", help="tasks whose ranks are known")
    make_.add_argument("--overlap", type=float, default=0.0, help="share judged by several people")
    make_.add_argument("--judgments", type=int, default=2, help="by how many, 2 to 5 (2)")
    make_.add_argument(
        "--order", choices=("file", "random", "uncertain"), default="file",
        help="uncertain: what a reward model is least sure of comes first",
    )  # fmt: skip
    make_.add_argument("--instructions", default="", metavar="FILE", help="text shown to labelers")
    make_.add_argument("--seed", type=int, default=0, help="of orders and of the overlap")
    make_.set_defaults(run=_make)


def _serve_options(serve_: argparse.ArgumentParser) -> None:
    serve_.add_argument("project")
    add_options(serve_, 8711)
    serve_.add_argument("--lease-minutes", type=float, default=LEASE_SECONDS / 60,
                        help="how long a task waits for somebody who left (30)")  # fmt: skip
    serve_.add_argument("--gold-every", type=int, default=20,
                        help="one of this many tasks has a known answer (20)")  # fmt: skip
    serve_.set_defaults(run=_serve)
