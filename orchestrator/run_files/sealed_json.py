"""JSON files with a checksum of their own bytes, so that any changed bit is detected."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from workers.model_folders.files import require_file
from workers.process.library_errors import reading

CHECKSUM = "checksum"  # key of the SHA-256 of the file's bytes with zeros in place of the checksum
_ZEROS = "0" * 64


def dump(value: object) -> str:
    """The text of a JSON file.

    Raises:
        ValueError: a float is NaN or infinite.
    """
    return json.dumps(value, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def seal(value: object) -> str:
    """The text of a JSON file with `value` and a checksum.

    Raises:
        ValueError: a float is NaN or infinite.
    """
    assert isinstance(value, Mapping)
    assert CHECKSUM not in value
    text = dump({CHECKSUM: _ZEROS, **value})
    return text.replace(_ZEROS, _sha256(text.encode()), 1)  # the checksum comes first


def unseal(path: Path, fix: str, *, since: int = 0) -> dict[str, Any]:
    """Read and check a file written with `seal`; returns its value without the checksum.

    Args:
        path: The file.
        fix: What the user can do if it is damaged.
        since: First schema version with a checksum.

    Raises:
        BrokenCheckpointError: it is no regular file, no JSON object, has no checksum, or was
            altered.
    """
    require_file(path, fix)
    with reading(path, f"{path.name} cannot be trusted", fix):
        return unsealed(path.read_bytes(), since)


def unsealed(data: bytes, since: int = 0) -> dict[str, Any]:
    """The value in the bytes of a sealed file, without the checksum; `since`: see `unseal`.

    Raises:
        ValueError: no JSON object, no checksum, or another checksum.
    """
    value = json.loads(data.decode())
    if not isinstance(value, dict):
        raise ValueError("it is no JSON object")
    told = value.pop(CHECKSUM, None)
    if told is None and since and value.get("schema", 1) in range(1, since):
        return value
    if not isinstance(told, str) or len(told) != len(_ZEROS):
        raise ValueError("it has no checksum; versions before this one wrote none")
    if _sha256(data.replace(told.encode(), _ZEROS.encode(), 1)) != told:
        raise ValueError("it was altered after it was written")
    return value


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
