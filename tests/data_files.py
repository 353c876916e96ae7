"""Data sets of a few rows as files, opened as one source."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from workers.data.files import FileSource
from workers.data.tables.accounts import SetAccount
from workers.data.tokenize.data_sets import SHORTHANDS, DataSet, Feeding, Rendering


class Files:
    """Writes rows (or raw bytes) as JSONL files, and opens them."""

    def __init__(self, folder: Path, checkpoint: Path) -> None:
        self.folder = folder
        self.checkpoint = checkpoint

    def write(self, name: str, rows: Any) -> str:
        path = self.folder / f"{name}.jsonl"
        if isinstance(rows, bytes):
            path.write_bytes(rows)
        else:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    def __call__(
        self,
        *sets: DataSet,
        prompt_limit: int = 16,
        completion_limit: int = 8,
        rendering: dict[str, Any] | None = None,
        feeding: dict[str, Any] | None = None,
        **files: Any,
    ) -> FileSource:
        given = [DataSet(n, SHORTHANDS[n], self.write(n, rows)) for n, rows in files.items()]
        limits = {"max_prompt_tokens": prompt_limit, "max_completion_tokens": completion_limit}
        return FileSource(
            [*given, *sets],
            Rendering(**{"checkpoint": str(self.checkpoint)} | limits | (rendering or {})),
            Feeding(**feeding or {}),
        )


def account(source: FileSource, name: str) -> SetAccount:
    return next(each for each in source.accounts if each.name == name)


def byte_tokenizer(folder: Path) -> Path:
    """A tokenizer of any text: one token a byte, an end token and no beginning token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE({"<|end|>": 0} | {c: i for i, c in enumerate(alphabet, 1)}, [])
    backend = Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>").save_pretrained(folder)
    return folder
