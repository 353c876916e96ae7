"""Resolution of Hugging Face hub names given instead of model folders.

`model.checkpoints.sft=org/name`, or `org/name@REVISION`, is looked up in the local cache, and
downloaded if it is not there and the machine is online. An existing local path of that name takes
precedence, and text that looks like a path is never looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

from orchestrator.config.schema import Config
from workers.errors import BrokenCheckpointError, MissingCheckpointError
from workers.model_folders.files import weight_files
from workers.process.library_errors import words

_PART = r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([\w./-]+))?", re.ASCII)
# The files that a run needs: no pickles, and no second copy of the weights.
_WANTED = ["*.json", "*.safetensors", "*.model", "*.txt", "*.jinja", "*.tiktoken", "README.md"]
_UNWANTED = ["*/*", "consolidated*"]


def name_of(text: str) -> tuple[str, str] | None:
    """The model name and revision ("" = the newest) of a text; None if it is a path."""
    found = _NAME.fullmatch(text)
    if found is None or len(text) > 200 or ".." in text or "--" in text:
        return None
    first = text.partition("/")[0]
    if Path(text).exists() or Path(first).exists():  # a local path, perhaps misspelt
        return None
    return found[1], found[2] or ""


def resolve(config: Config, *, download: bool = True) -> dict[str, str]:
    """Replace hub names in the configuration by the paths of local folders.

    Args:
        config: The run; its checkpoint paths are changed in place.
        download: Whether to ask the hub for what the cache does not hold.

    Returns:
        By configuration key: `org/name@COMMIT`, which always names the same files.

    Raises:
        MissingCheckpointError: Neither the cache nor the hub has the model.
    """
    found: dict[str, str] = {}
    for owner, attribute, key in _places(config):
        if (name := name_of(getattr(owner, attribute))) is not None:
            folder = _folder(*name, key, download=download)
            setattr(owner, attribute, str(folder))
            found[key] = f"{name[0]}@{folder.name}"
    return found


def _places(config: Config) -> Iterator[tuple[object, str, str]]:
    for field in fields(config.model.checkpoints):
        yield config.model.checkpoints, field.name, f"model.checkpoints.{field.name}"
    yield config.evaluate, "judge_checkpoint", "evaluate.judge_checkpoint"


def _folder(name: str, revision: str, key: str, *, download: bool) -> Path:
    """The snapshot folder of a model in the cache, downloaded if necessary and wanted."""
    # Deferred: half a second to import, and only these names need it.
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError

    def snapshot(*, local: bool) -> Path:
        return Path(
            snapshot_download(
                name,
                revision=revision or None,
                local_files_only=local,
                allow_patterns=_WANTED,
                ignore_patterns=_UNWANTED,
            )
        )

    wanted = f"{name}@{revision}" if revision else name
    cache = constants.HF_HUB_CACHE
    try:
        folder = snapshot(local=True)
        weight_files(folder)
    except (OSError, ValueError, BrokenCheckpointError) as absent:
        if constants.HF_HUB_OFFLINE or isinstance(absent, HFValidationError) or not download:
            why = "this machine is offline" if download else "it was not asked"
            raise _missing(name, wanted, revision, key, cache, why) from absent
    else:
        return folder
    try:
        return snapshot(local=False)
    except Exception as error:
        raise _missing(name, wanted, revision, key, cache, words(error)) from error


def _missing(
    name: str, wanted: str, revision: str, key: str, cache: str, why: str
) -> MissingCheckpointError:
    at = f" --revision {revision}" if revision else ""
    return MissingCheckpointError(
        f"no folder {wanted!r} here, and no whole model of that name in {cache}, nor from the hub: "
        f"{why}",
        where=key,
        fix=f"give a folder, or where there is a network run `hf download {name}{at}` and bring "
        "the cache here; a model that asks for consent needs `hf auth login` first",
    )
