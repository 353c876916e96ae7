"""Make a small model from scratch: `python -m orchestrator.new_model FOLDER --texts FILE...`.

For trying a recipe where no pretrained model is at hand; the stage `pretrain` trains it.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from orchestrator import checkpoint
from orchestrator.command import exit_code
from workers.data.readers import read_rows
from workers.errors import ConfigError
from workers.messages import Sampling


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the folder; returns the exit code."""
    options = _parser().parse_args(arguments)
    return exit_code(lambda: _make(options))


def _make(options: argparse.Namespace) -> None:
    # seconds of imports, after mistakes on the command line have been told
    from workers.published import complete
    from workers.scratch_model import ScratchShape, create_scratch_model, learn_tokenizer

    folder = Path(options.folder)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(
            "the folder is not empty", where=str(folder), mend="name a new one, or clear it"
        )
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

    checkpoint.publish(folder.resolve(), save, {"stage": "new_model", "seed": options.seed})
    sys.stdout.write(f"{folder}: {counted[0]:,} parameters, {len(tokenizer):,} tokens\n")


def _texts(paths: Sequence[str]) -> Iterator[str]:
    from workers.scratch_model import strings_of

    for path in paths:
        for row in read_rows(path):
            yield from strings_of(row.fields)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m orchestrator.new_model", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("folder", help="where to write the model")
    parser.add_argument("--texts", nargs="+", required=True, metavar="FILE",
                        help="data files whose text the tokenizer is learned from")  # fmt: skip
    parser.add_argument("--family", default="llama", help="transformers' model_type")
    for name, default, what in (
        ("vocabulary", 4096, "tokens of the tokenizer"),
        ("hidden-size", 256, "width"),
        ("layers", 4, "transformer layers"),
        ("heads", 4, "attention heads"),
        ("kv-heads", 0, "key and value heads; 0 = as many as heads"),
        ("intermediate-size", 0, "width of the feed-forward layers; 0 = 8/3 of the width"),
        ("positions", 1024, "longest sequence in tokens"),
        ("seed", 0, "fixes the weights"),
    ):
        parser.add_argument(f"--{name}", type=int, default=default, metavar="N",
                            help=f"{what} ({default})")  # fmt: skip
    parser.add_argument("--untied", action="store_true",
                        help="separate input and output embeddings")  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
