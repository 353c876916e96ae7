"""Make a small model from scratch: `python -m orchestrator.new_model FOLDER --texts FILE...`.

For trying a recipe where no pretrained model is at hand; the stage `pretrain` trains it.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from orchestrator.checkpoints import model_folder
from orchestrator.process.command_exit import exit_code
from orchestrator.process.program import program
from workers.data.formats.readers import read_rows
from workers.errors import ConfigError
from workers.records.generation import Sampling

# name -> default, smallest, largest, what it is
_SIZES = {
    "vocabulary": (4096, 260, 1_000_000, "tokens of the tokenizer"),
    "hidden-size": (256, 2, 65_536, "width"),
    "layers": (4, 1, 1000, "transformer layers"),
    "heads": (4, 1, 1024, "attention heads"),
    "kv-heads": (0, 0, 1024, "key and value heads; 0 = as many as heads"),
    "intermediate-size": (
        0, 0, 1 << 20, "width of the feed-forward layers; 0 = 8/3 of the width"
    ),
    "positions": (1024, 2, 1 << 24, "longest sequence in tokens"),
    "seed": (0, 0, 2**63 - 1, "fixes the weights"),
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _make(options))


def _make(options: argparse.Namespace) -> None:
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # deepspeed, which transformers imports, warns
    # takes seconds, so mistakes on the command line are reported first
    from workers.models.published_files import complete
    from workers.models.scratch import ScratchShape, create_scratch_model, learn_tokenizer

    folder = Path(options.folder)
    _require_empty(folder)
    _check_sizes(options)
    tokenizer = learn_tokenizer(_texts(options.texts), options.vocabulary)
    shape = ScratchShape(
        family=options.family,
        hidden_size=options.hidden_size,
        layers=options.layers,
        heads=options.heads,
        kv_heads=options.kv_heads or options.heads,
        positions=options.positions,
        intermediate_size=options.intermediate_size or 8 * options.hidden_size // 3,
        tie_word_embeddings=not options.untied,
    )
    counted: list[int] = []

    def save(path: str) -> None:
        counted.append(create_scratch_model(path, shape, tokenizer, options.seed))
        complete(Path(path), tokenizer, Sampling(1.0, max(1, options.positions // 2)))

    model_folder.publish(folder.resolve(), save, {"stage": "new_model", "seed": options.seed})
    sys.stdout.write(f"{folder}: {counted[0]:,} parameters, {len(tokenizer):,} tokens\n")


def _require_empty(folder: Path) -> None:
    try:
        if folder.is_symlink() or folder.exists():
            why = "is not a folder" if not folder.is_dir() else "is not empty"
            if not folder.is_dir() or any(folder.iterdir()):
                raise ConfigError(
                    f"the folder {why}", where=str(folder), fix="name a new one, or clear it"
                )
    except OSError as error:  # a name that is too long, a folder that cannot be looked into
        raise ConfigError(
            f"the folder cannot be used: {error.strerror}",
            where=f"{folder}"[:200],
            fix="name another one",
        ) from error


def _check_sizes(options: argparse.Namespace) -> None:
    """Refuse, before a file is read, sizes that no model can have or this machine cannot hold."""
    for name, (_, least, most, _) in _SIZES.items():
        value = getattr(options, name.replace("-", "_"))
        if not least <= value <= most:
            raise ConfigError(
                f"{value} is out of range",
                where=f"--{name}",
                fix=f"give a whole number from {least:,} to {most:,}",
            )
    heads, kv_heads = options.heads, options.kv_heads or options.heads
    if options.hidden_size % (2 * heads) or heads % kv_heads:
        raise ConfigError(
            f"width {options.hidden_size} with {heads} heads and {kv_heads} key-value heads",
            where="--hidden-size, --heads, --kv-heads",
            fix="the width must be an even multiple of the heads (rotary positions turn pairs), "
            "and the heads a multiple of the key-value heads",
        )
    need, free = _bytes(options), psutil.virtual_memory().available
    if need > free:
        raise ConfigError(
            f"a model of these sizes takes about {need / 2**30:,.1f} GiB to make, "
            f"{free / 2**30:,.1f} are free",
            where="--hidden-size, --layers, --vocabulary, --positions",
            fix="ask for less, or use a larger machine",
        )


def _bytes(options: argparse.Namespace) -> int:
    """Float32 weights of a Llama of these sizes; learned positions counted, as GPT-2 has them."""
    width = options.hidden_size
    layer = 4 * width**2 + 3 * width * (options.intermediate_size or 8 * width // 3)
    tokens = options.vocabulary * (2 if options.untied else 1)
    return 4 * (options.layers * layer + width * (tokens + options.positions))


def _texts(paths: Sequence[str]) -> Iterator[str]:
    from workers.models.scratch import strings_of

    for path in paths:
        for row in read_rows(path):
            yield from strings_of(row.fields)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=program("orchestrator.new_model"), description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", help="where to write the model")
    parser.add_argument("--texts", nargs="+", required=True, metavar="FILE",
                        help="data files whose text the tokenizer is learned from")  # fmt: skip
    parser.add_argument("--family", default="llama", help="transformers' model_type")
    for name, (default, _, _, what) in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N",
                            help=f"{what} ({default})")  # fmt: skip
    parser.add_argument("--untied", action="store_true",
                        help="separate input and output embeddings")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
