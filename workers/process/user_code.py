"""Import of user code by its path, and descriptions of its errors."""

from __future__ import annotations

import difflib
import importlib
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

from workers.errors import ConfigError

_OURS = Path(__file__).resolve().parents[2]
_NOT_THEIRS = (
    str(_OURS / "workers"),
    str(_OURS / "orchestrator"),
    *(sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")),
    "<frozen",
    "<string>",  # the generated __init__ of a dataclass
)
_MOST_CHARACTERS = 300  # limit for messages of user code


def load_function(path: str, where: str, folder: str = "") -> Callable[..., Any]:
    """As `load_object`; also raises ConfigError if the object is not callable."""
    found = load_object(path, where, folder)
    if not callable(found):
        raise ConfigError(
            f"{path!r} is not callable: it is a {type(found).__name__}",
            where=where,
            fix="name a function after the colon",
        )
    return found


def load_object(path: str, where: str, folder: str = "", what: str = "function") -> Any:
    """Import `package.module:name`.

    Args:
        path: What to import; after the colon comes a dotted path of attributes.
        where: The configuration key that names it, for errors.
        folder: First folder of the search; "" = Python's search path only.
        what: What the object should be, for errors.

    Raises:
        ConfigError: The path is malformed, or the import raises.
    """
    module_name, names = split_path(path, where, what)
    if folder and sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
        importlib.invalidate_caches()
    found: Any = _import(path, module_name, where)
    if folder:
        _refuse_shadowed(path, module_name.partition(".")[0], folder, where)
    for name in names.split("."):
        found = _attribute(found, name, path, where, what)
    return found


def split_path(path: str, where: str, what: str = "function") -> tuple[str, str]:
    """Module and attributes of `package.module:name`; `what` the name stands for, in errors.

    Raises:
        ConfigError: It is a file's path, or does not have this form.
    """
    module, _, names = path.partition(":")
    if "/" in path or "\\" in path or module.endswith(".py"):
        raise ConfigError(
            f"{path!r} is the path of a file, not of {_a(what)}",
            where=where,
            fix=_for_file(module.replace("\\", "/"), names or "NAME"),
        )
    if not names and "." in module and all(map(str.isidentifier, module.split("."))):
        head, _, last = module.rpartition(".")
        raise ConfigError(
            f"{path!r} does not name {_a(what)}", where=where, fix=f"write {head}:{last}"
        )
    if not all(map(str.isidentifier, (*module.split("."), *names.split(".")))):
        raise ConfigError(
            f"{path!r} does not name {_a(what)}",
            where=where,
            fix='write "package.module:NAME"',
        )
    return module, names


def _a(what: str) -> str:
    return f"{'an' if what[0] in 'aeiou' else 'a'} {what}"


def _for_file(file: str, names: str) -> str:
    parts = [part for part in file.removesuffix(".py").split("/") if part != "."]
    if all(map(str.isidentifier, parts)) and len(parts) > 1:
        return f"write {'.'.join(parts)}:{names}, as seen from the folder of the run"
    stem = parts[-1] if parts and parts[-1] else "module"
    there = f"put the folder of {stem}.py on PYTHONPATH, or start the run in it"
    return f"write {stem}:{names} and {there}"


def _import(path: str, module: str, where: str) -> Any:
    try:
        return importlib.import_module(module)
    except KeyboardInterrupt:  # from the user, not from the module
        raise
    except BaseException as error:  # user code may raise anything at import, even SystemExit
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module}.".startswith(f"{missing}."):
            raise ConfigError(
                f"cannot import {path!r}: there is no module {missing!r}",
                where=where,
                fix=f"start the run in the folder that holds {module.split('.')[0]}, or put that "
                "folder on PYTHONPATH, on every node",
            ) from error
        raise ConfigError(
            f"cannot import {path!r}: {describe(error)}",
            where=where,
            fix="make `python -c 'import " + module + "'` work in the folder of the run",
        ) from error


def _refuse_shadowed(path: str, head: str, folder: str, where: str) -> None:
    """Raise if the folder has the module, but another module of that name is already imported."""
    meant = PathFinder.find_spec(head, [folder])
    spec = getattr(sys.modules.get(head), "__spec__", None)
    if meant is None or meant.origin is None or spec is None or spec.origin == meant.origin:
        return
    if spec.origin and Path(spec.origin).is_file() and Path(spec.origin).samefile(meant.origin):
        return
    raise ConfigError(
        f"cannot import {path!r}: {head} is already {spec.origin or 'a namespace'}, and not "
        f"{meant.origin}",
        where=where,
        fix=f"give {Path(meant.origin).name} a name that no other module has",
    )


def _attribute(owner: Any, name: str, path: str, where: str, what: str) -> Any:
    try:
        return getattr(owner, name)
    except AttributeError as error:
        known = [each for each in dir(owner) if not each.startswith("_")]
        near = difflib.get_close_matches(name, known, 1)
        raise ConfigError(
            f"cannot import {path!r}: {getattr(owner, '__name__', 'it')} has no {name!r}",
            where=where,
            fix=f"did you mean {near[0]!r}?" if near else f"name {_a(what)} that the module has",
        ) from error


def describe(error: BaseException) -> str:
    """Class, place and message of an error of user code, in one line."""
    place, said = place_of(error), words_of(error)
    return kind_of(error) + (f" at {place}" if place else "") + (f": {said}" if said else "")


def kind_of(error: BaseException) -> str:
    """The name of an error's class."""
    return type(error).__name__


def words_of(error: BaseException) -> str:
    """An error's message in one line of bounded length; "" if it has none."""
    try:
        said = str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception:  # noqa: BLE001  the __str__ of a user's class may raise anything
        return "(its message cannot be shown)"
    line = " ".join(said.split())
    return line if len(line) <= _MOST_CHARACTERS else line[: _MOST_CHARACTERS - 3] + "..."


def words_of_output(log: Path) -> str:
    """The last line of a process's output after a colon; "" if there is none."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    last = next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "")
    return f": {last[:_MOST_CHARACTERS]}" if last else ""


def place_of(error: BaseException) -> str:
    """FILE:LINE of the user's code that raised the error; "" if unknown.

    The innermost line outside Rehearsal, Python's library and installed packages; if there is none,
    the innermost line outside Rehearsal.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    frames = list(_frames(error))
    theirs = [at for at in frames if not at.startswith(_NOT_THEIRS)]
    foreign = [at for at in frames if not at.startswith((*_NOT_THEIRS[:2], "<frozen"))]
    return (theirs or foreign or [""])[-1]


def _frames(error: BaseException) -> Iterator[str]:
    for frame, line in traceback.walk_tb(error.__traceback__):
        yield f"{frame.f_code.co_filename}:{line}"
