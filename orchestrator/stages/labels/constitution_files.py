"""Where principles are: files that come with the program, or the user's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from orchestrator.process.shipped import shipped
from workers.errors import ConfigError
from workers.judging.principles import Principle, Use, read_principles

_FOLDER = shipped("conf") / "constitution"


def principles_of(name: str, uses: Sequence[Use], where: str) -> tuple[Principle, ...]:
    """The principles of a file in conf/constitution, or of a path, that have texts for the uses.

    Raises:
        ConfigError: there is no such file, or it holds no such principle.
    """
    path = _FOLDER / f"{name}.yaml" if "/" not in name and "." not in name else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(each.stem for each in _FOLDER.glob("*.yaml")))
        raise ConfigError(
            "there are no such principles", where=f"{where}={name}",
            fix=f"name one of {known}, or the path of a YAML file",
        )  # fmt: skip
    return read_principles(path, uses, where)
