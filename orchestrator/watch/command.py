"""A run in the browser: `python -m orchestrator.watch RUN_FOLDER [--port 8712]`.

Reads the run folder and writes nothing into it; it may be served while the run goes on.
"""

from __future__ import annotations

import argparse
import secrets
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from orchestrator.pages.address import LOOPBACK, Address, add_options, address_of, listening, run
from orchestrator.process.command_exit import exit_code, tell
from orchestrator.process.program import program
from orchestrator.run_files.folder import RunFolder
from orchestrator.watch.followed import Followed
from orchestrator.watch.web.app import build
from workers.errors import DataError

PORT = 8712
_RECORDS = ("config.yaml", "metrics.jsonl", "summary.json", "samples")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.watch"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", metavar="RUN_FOLDER")
    add_options(parser, PORT)
    options = parser.parse_args(arguments)
    return exit_code(lambda: serve(RunFolder(Path(options.folder)), address_of(options)))


def serve(folder: RunFolder, address: Address) -> None:
    """Serve the pages of a run until SIGINT or SIGTERM.

    Raises:
        ConfigError: the address is taken, or other machines would reach it without encryption.
        DataError: the folder is none of a run.
    """
    address.check()
    require_run(folder)
    # Without a key, everyone who reaches the port reads the run: fine for this machine's loopback.
    open_to_others = address.host not in LOOPBACK or address.url
    key = secrets.token_urlsafe(24) if open_to_others else ""
    with closing(listening(address)) as place, closing(Followed(folder)) as followed:
        port = place.getsockname()[1]
        base = address.base(port)
        tell(f"{base}{f'/?key={key}' if key else ''} (Ctrl-C ends it)\n")
        app = build(followed, address.hosts(port), key, secure=base.startswith("https:"))
        run(app, place, address)


def require_run(folder: RunFolder) -> None:
    """Refuse a folder in which no run has written.

    Raises:
        DataError: it does not exist, cannot be read, or holds nothing of a run.
    """
    try:
        there = folder.path.is_dir()
        names = {entry.name for entry in folder.path.iterdir()} if there else set()
    except OSError as error:
        raise DataError(
            f"the folder cannot be looked at: {error.strerror}", where=f"{folder.path}"[:200]
        ) from error
    if not there:
        raise DataError(
            "there is no such folder", where=str(folder.path), fix="give the folder of a run"
        )
    if not names & set(_RECORDS):
        raise DataError(
            "this is not the folder of a run: it holds none of " + ", ".join(_RECORDS),
            where=str(folder.path),
            fix="give run.dir of a run, which is made when the run starts",
        )
