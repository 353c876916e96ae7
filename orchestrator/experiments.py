"""List the experiments: `python -m orchestrator.experiments`.

An experiment is a file of conf/experiment/ or of a folder `experiment` in --config-dir; the first
sentence of its comment says what it does.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from orchestrator.command_line.key_types import CONF
from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import program
from workers.errors import ConfigError


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one line per experiment; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: sys.stdout.write(_lines(options.config_dir)))


def purpose(file: Path) -> str:
    """First sentence of the comment at the top of a configuration file."""
    words: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("#"):
            break
        words.append(line.removeprefix("#").strip())
    sentence = " ".join(words).partition(". ")[0]
    for mark in (": +", " +experiment="):  # an example command follows
        sentence = sentence.partition(mark)[0]
    return sentence.removesuffix(".").removesuffix(":")


def _lines(own: str) -> str:
    folders = [CONF / "experiment"]
    if own:
        folders.append(Path(own) / "experiment")
        if not folders[1].is_dir():
            raise ConfigError(
                "there is no such folder",
                where=str(folders[1]),
                fix="put experiments into a folder `experiment` in the folder of --config-dir",
            )
    files = {file.stem: file for folder in folders for file in sorted(folder.glob("*.yaml"))}
    width = max(map(len, files))
    return "".join(f"{name:{width}}  {purpose(file)}\n" for name, file in files.items())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.experiments"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--config-dir", default="", metavar="DIR", help="your experiments too")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
