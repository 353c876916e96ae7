"""Files with one JSON object per prompt, which a resumed stage reads back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from workers.data.records import Prompt
from workers.errors import BrokenCheckpointError

T = TypeVar("T")


def read_by_prompt(
    path: Path, prompts: Sequence[Prompt], make: Callable[[Prompt, dict[str, Any]], T], what: str
) -> list[T]:
    """What `make` returns for each line and the prompt that its `id` names.

    Args:
        path: The file.
        prompts: Those that were asked.
        make: Raises ValueError, KeyError or TypeError for a damaged line.
        what: What the file holds, for the error.

    Raises:
        BrokenCheckpointError: it is missing, damaged, or of other prompts.
    """
    known = {prompt.id: prompt for prompt in prompts}
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [make(known[line["id"]], line) for line in lines]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BrokenCheckpointError(
            f"{what} cannot be read: {error!r}"[:300],
            where=str(path),
            fix="resume from a checkpoint before the stage, which then makes them again",
        ) from error
