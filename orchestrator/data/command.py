"""The command that looks at data before it is trained on: `python -m orchestrator.data inspect`.

Reads and renders a data set as a run would, before filters and splits, and prints counts, drops by
reason, a histogram of lengths and samples with the trained tokens marked. Every expected failure
ends in one short message on stderr and an exit code, as in `orchestrator.run`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from orchestrator.data.inspection import (
    Inspection,
    Measure,
    MeasureTokens,
    inspect,
    measure_characters,
)
from orchestrator.data.view import follow, print_report, render
from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import program
from workers.data.formats.kinds import FORMATS, SPECIAL
from workers.data.formats.lines import Meter
from workers.data.recognise.columns import Columns
from workers.data.recognise.kinds import kind_of_data
from workers.data.recognise.recognise import Kind, Noted, read_examples
from workers.data.tokenize.beginnings import Beginning
from workers.errors import ConfigError

_NO_LIMIT = 2**31


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _inspect(options))


def parse_columns(pairs: Sequence[str]) -> Columns:
    """Parse "field=path" and "field=path,path"; a comma makes a list.

    What labels mean is said by "better.column=path better.first=label better.second=label".

    Raises:
        ConfigError: If one is no such pair.
    """
    columns: dict[str, str | list[str]] = {}
    better: dict[str, str | list[str]] = {}
    for pair in pairs:
        field, equals, path = pair.partition("=")
        field = field.removeprefix("data.").removeprefix("columns.")  # as messages write it
        if not (field and equals and path):
            raise ConfigError(
                f"{pair!r} maps no column",
                where="--columns",
                fix="write field=column, or field=column,column for a list",
            )
        values = [each.strip() for each in path.split(",")] if "," in path else path
        if field.startswith("better."):
            better[field.removeprefix("better.")] = values
        else:
            columns[field] = values
    if better and "better" in columns:
        raise ConfigError(
            "the column of the labels is given twice",
            where="--columns",
            fix="write better.column=COLUMN with better.first=LABEL and better.second=LABEL",
        )
    return {**columns, "better": better} if better else columns


def _inspect(options: argparse.Namespace) -> None:
    columns = parse_columns(options.columns)
    reading = {"format": options.format, "split": options.split, "subset": options.subset}
    kind: Kind = options.kind
    if kind is None:
        kind = kind_of_data(options.source, columns, options.on_bad_line, **reading)
    meter = Meter()
    noted = Noted()
    rows = read_examples(
        options.source,
        kind,
        columns=columns,
        on_bad_line=options.on_bad_line,
        meter=meter,
        noted=noted,
        name=Path(options.source).name,
        **reading,
    )
    unit = "tokens" if options.tokenizer else "characters"
    inspection = Inspection(kind, unit, options.samples, noted=noted)
    measure = _measure(options)
    began = time.monotonic()
    follow(inspect(rows, inspection, measure, options.limit), meter, options.source)
    seconds = time.monotonic() - began
    print_report(render(inspection, options.source, seconds, meter))


def _measure(options: argparse.Namespace) -> Measure:
    if not options.tokenizer:
        return measure_characters
    # imported late: transformers takes seconds
    from workers.data.tokenize.render import Renderer
    from workers.data.tokenize.tokenizers import load_speaker

    tokenizer = load_speaker(options.tokenizer, options.chat_template, options.add_bos_token)
    renderer = Renderer(
        tokenizer,
        template=options.chat_template,
        train_on=options.train_on,
        max_prompt_tokens=options.max_prompt_tokens or _NO_LIMIT,
        max_completion_tokens=options.max_completion_tokens or _NO_LIMIT,
    )
    return MeasureTokens(tokenizer, renderer)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=program("orchestrator.data"), description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    look = commands.add_parser("inspect", help="show what a run would read from a data set")
    look.add_argument("source", help="file, folder, or id of a Hugging Face data set")
    look.add_argument(
        "--kind", choices=get_args(Kind), help="by default told by the richest of the first rows"
    )
    look.add_argument(
        "--format", default="auto", metavar="NAME",
        help=f"{', '.join((*SPECIAL, *FORMATS.names()))}, or package.module:NAME of your own",
    )  # fmt: skip
    look.add_argument("--split", default="train", help="of a data set with several")
    look.add_argument("--subset", default="", help="configuration of a Hugging Face data set")
    look.add_argument(
        "--columns",
        nargs="+",
        default=[],
        metavar="FIELD=PATH",
        help="such as prompt=question completions=a.text,b.text",
    )
    look.add_argument("--on-bad-line", choices=("fail", "drop"), default="fail")
    look.add_argument("--limit", type=_count, default=0, metavar="N", help="examples; 0 = all")
    look.add_argument("--samples", type=_count, default=3, metavar="N", help="examples shown")
    look.add_argument("--tokenizer", default="", metavar="DIR", help="checkpoint folder")
    look.add_argument("--chat-template", default="auto", metavar="auto|default|FILE")
    look.add_argument("--add-bos-token", choices=get_args(Beginning), default="auto")
    look.add_argument("--train-on", choices=("last", "all"), default="last")
    look.add_argument("--max-prompt-tokens", type=_count, default=0, metavar="N", help="0 = any")
    look.add_argument(
        "--max-completion-tokens", type=_count, default=0, metavar="N", help="0 = any"
    )
    return parser


def _count(text: str) -> int:
    number = int(text)
    if not 0 <= number <= _NO_LIMIT:
        raise argparse.ArgumentTypeError(f"must be from 0 to {_NO_LIMIT:,}")
    return number
