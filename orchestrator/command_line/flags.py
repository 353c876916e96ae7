"""The flags of the command: Hydra's own, and errors for keys that are written as flags."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from orchestrator.command_line.errors import nearest_keys
from orchestrator.command_line.foreign_names import alias_words
from orchestrator.command_line.key_types import group_options, schema_types
from workers.errors import ConfigError

_PLAIN = ("-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-m",
          "--multirun", "-sc", "--shell-completion")  # fmt: skip
_WITH_VALUE = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name",
               "-cd", "--config-dir", "--experimental-rerun")  # fmt: skip
_MAYBE_VALUE = ("-i", "--info")
FLAGS = (*_PLAIN, *_WITH_VALUE, *_MAYBE_VALUE)
_CHOICES = {
    ("-c", "--cfg"): ("job", "hydra", "all"),
    ("-i", "--info"): (
        "all", "config", "defaults", "defaults-tree", "plugins", "searchpath", ""),
}  # fmt: skip
_WHERE = "command line"


@dataclass(frozen=True, slots=True)
class Flag:
    """One of Hydra's flags and its value, as typed."""

    name: str
    value: str
    words: tuple[str, ...]  # the arguments it was made of


def read_flags(arguments: Sequence[str]) -> tuple[list[Flag], list[str]]:
    """Separate Hydra's flags from the other arguments.

    Raises:
        ConfigError: a flag that there is not, or one without its value.
    """
    flags: list[Flag] = []
    others: list[str] = []
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        following = arguments[index + 1] if index + 1 < len(arguments) else None
        index += 1
        if not argument.startswith("-"):
            others.append(argument)
            continue
        name, equals, value = argument.partition("=")
        if name not in FLAGS or (equals and name in _PLAIN):
            raise _no_such_flag(argument, following)
        words = (argument,)
        takes = name in _WITH_VALUE or (name in _MAYBE_VALUE and _is_option(name, following))
        if takes and not equals:
            if following is None or following.startswith("-"):
                raise _error(f"{name} needs a value", f"write {name} VALUE")
            value, words, index = following, (argument, following), index + 1
        _check_choice(name, value)
        flags.append(Flag(name, value, words))
    return flags, others


def _is_option(name: str, following: str | None) -> bool:
    return next(following in options for names, options in _CHOICES.items() if name in names)


def _check_choice(name: str, value: str) -> None:
    for names, options in _CHOICES.items():
        if name in names and value not in options:
            known = ", ".join(each for each in options if each)
            raise _error(f"{name} {value}: there is no such view", f"choose one of {known}")


def unwanted_configuration(flags: Sequence[Flag]) -> None:
    """Refuse flags that would replace this command's configuration, or that have no effect.

    Raises:
        ConfigError: says what is used instead.
    """
    given = {flag.name: flag.value for flag in flags}
    folder = given.get("--config-dir", given.get("-cd"))
    name = given.get("--config-name", given.get("-cn"))
    path = given.get("--config-path", given.get("-cp"))
    if "--experimental-rerun" in given:
        raise _error("--experimental-rerun needs files that runs here do not write",
                     "run a configuration again by +rerun=FOLDER")  # fmt: skip
    if path is not None:
        raise _error(
            "--config-path would replace the options that this command is made of",
            "add a folder of options by --config-dir FOLDER, or run a saved configuration again "
            f"by +rerun={path}",
        )
    if folder is not None and not Path(folder).is_dir():
        raise _error(f"--config-dir {folder}: there is no such folder", "name a folder")
    if name is None:
        return
    file = Path(folder or ".") / f"{name.removesuffix('.yaml')}.yaml"
    if folder is None or file.name == "config.yaml" or (file.parent / "metrics.jsonl").exists():
        raise _error(
            f"--config-name {name} does not take a saved configuration",
            f"run it again by +rerun={file.parent if file.is_file() else 'FOLDER'}",
        )


def _no_such_flag(argument: str, following: str | None) -> ConfigError:
    bare, equals, value = argument.lstrip("-").partition("=")
    name = bare.replace("-", "_")
    if not equals and following is not None and not following.startswith("-"):
        value = following if "=" not in following else ""
    what = f"there is no flag {argument.partition('=')[0]}"
    if name in group_options():
        sign = "+" if name == "experiment" else ""
        return _error(what, f"write {sign}{name}={value or 'NAME'}, without dashes")
    if (words := alias_words(name)) is not None:
        return _error(what, words)
    types = schema_types()
    keys = [name] if name in types else [k for k in types if k.rpartition(".")[2] == name]
    keys = keys[:4] or nearest_keys(name)
    if not keys:
        return _error(what, "arguments are written key=value, without dashes; --help lists flags")
    written = [f"{key}={value or ('true' if types[key] is bool else 'VALUE')}" for key in keys]
    return _error(what, f"write {' or '.join(written)}, without dashes")


def _error(what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=_WHERE, fix=fix)
