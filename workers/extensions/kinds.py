"""Kinds of extensions: each part of a kind is one module, of this project or of a user.

A module of the kind's package that assigns the kind's constant, such as `ESTIMATOR = ...` in
`workers/training/estimators/gae.py`, is found by its name (`gae`): a new one needs no other file. A
part of a user is found by its import path, `package.module:NAME`.
"""

from __future__ import annotations

import difflib
import importlib
import pkgutil
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from workers.errors import ConfigError
from workers.process.user_code import load_object

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Kind(Generic[T]):
    """One kind of extension."""

    what: str  # in messages, such as "advantage estimator"
    record: type[T]  # the class of its parts
    package: str  # where this project's parts are
    constant: str  # the name that each of their modules assigns
    module_ending: str = ""  # of the modules: the part `csv` is in csv_file.py if it is "_file"
    also: tuple[str, ...] = ()  # values of the key that name no part, for messages

    def names(self) -> tuple[str, ...]:
        """Names of this project's parts, in alphabetical order; imports none of their modules."""
        folders = importlib.import_module(self.package).__path__
        assigns = re.compile(rf"^{self.constant}\b[^=\n]*=", re.MULTILINE)
        return tuple(
            sorted(
                module.name.removesuffix(self.module_ending)
                for module in pkgutil.iter_modules(folders)
                if module.name.endswith(self.module_ending)
                and assigns.search(_source(folders, module.name))
            )
        )

    def find(self, name: str, where: str, folder: str = "") -> T:
        """The part of this name.

        Args:
            name: One of `names()`, or `package.module:NAME`.
            where: The configuration key that names it, for errors.
            folder: First folder of the search for a user's module.

        Raises:
            ConfigError: There is none, the import fails, or it is something else.
        """
        if ":" not in name:
            return self._ours(name, where)
        found = load_object(name, where, folder, self.what)
        if not isinstance(found, self.record):
            itself = isinstance(found, type)
            shown = f"the class {found.__name__}" if itself else f"a {type(found).__name__}"
            raise ConfigError(
                f"{name!r} is no {self.what}: it is {shown}, not an object of "
                f"{self.record.__name__}",
                where=where,
                fix=f"make it an object of {self.record.__module__}.{self.record.__name__}",
            )
        return found

    def _ours(self, name: str, where: str) -> T:
        names = self.names()
        if name not in names:
            names = (*self.also, *names)
            near = difflib.get_close_matches(name, names, 1)
            known = f"did you mean {near[0]}? " if near else ""
            raise ConfigError(
                f"there is no {self.what} {name!r}",
                where=where,
                fix=f"{known}choose one of {', '.join(names)}, or name your own by "
                "package.module:NAME",
            )
        return getattr(
            importlib.import_module(f"{self.package}.{name}{self.module_ending}"), self.constant
        )


def _source(folders: Sequence[str], module: str) -> str:
    files = [Path(folder, f"{module}.py") for folder in folders]
    return next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")
