"""Convert the arguments of the command, as a person types them, into what Hydra reads.

Hydra parses values with its own grammar: 2026_11_28 is a number there, and é, a comma or a bracket
needs quotation marks. Values of keys whose type is text are therefore quoted before they reach
Hydra, so that they keep their spelling. Arguments that Hydra cannot read are refused here, with an
example of how to write them.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from orchestrator.command_line.errors import unknown_key
from orchestrator.command_line.flags import read_flags, unwanted_configuration
from orchestrator.command_line.key_types import (
    OPEN_SECTIONS,
    group_options,
    is_list,
    key_type,
    schema_types,
    type_words,
)
from workers.errors import ConfigError

_LONGEST = 60_000  # characters of an argument: the grammar's parser is slow
_SHOWN = 80
_WHERE = "command line"
_OVERRIDE = re.compile(r"(?P<sign>\+{0,2})(?P<key>[^=]*)=(?P<value>.*)", re.DOTALL)
_SWEEP = re.compile(r"(choice|range|interval|glob|sort|shuffle|tag|extend_list)\(.*\)", re.DOTALL)
# Quotation marks, dashes and the equals sign as word processors and web pages write them.
_QUOTES = "\u2018\u2019\u201a\u201b\u201c\u201d\u201e\u201f\u00ab\u00bb"
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"
_WIDE_EQUALS = "\uff1d"


@dataclass(frozen=True, slots=True)
class _Given:
    """One argument: [+[+]]key=value."""

    sign: str
    key: str
    value: str

    def __str__(self) -> str:
        return f"{self.sign}{self.key}={self.value}"

    @property
    def shown(self) -> str:
        """Short enough for a message."""
        return shown(str(self))


def prepare(arguments: Sequence[str]) -> list[str]:
    """Convert arguments so that Hydra reads them as the user meant them.

    Raises:
        ConfigError: an argument that means nothing; says how it is written.
        UnknownKeyError: a value that cannot be read, of a key that there is not.
    """
    for argument in arguments:
        _check_characters(argument)
    flags, overrides = read_flags(arguments)
    unwanted_configuration(flags)
    several = any(flag.name in ("-m", "--multirun") for flag in flags)
    prepared: list[str] = []
    for index, argument in enumerate(overrides):
        before = overrides[index - 1] if index else ""
        after = overrides[index + 1] if index + 1 < len(overrides) else ""
        prepared.append(_override(argument, before, after, several=several))
    if several:
        prepared = _sweep_folder(prepared)
    return [*(word for flag in flags for word in flag.words), *prepared]


def shown(text: str) -> str:
    """A text short enough for a message."""
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def _check_characters(argument: str) -> None:
    value = argument.partition("=")[2]
    if len(argument) > _LONGEST:
        raise _wrong(
            f"an argument of {len(argument):,} characters: {shown(argument)}",
            f"write at most {_LONGEST:,}",
        )
    if argument[:1] and argument[0] in _DASHES:
        raise _wrong(
            f"{shown(argument)!r} begins with the typographic dash {argument[0]!r}",
            "type the hyphen of the keyboard: -",
        )
    for text in (argument, value):
        if text[:1] and text[0] in _QUOTES:
            raise _wrong(
                f"{shown(argument)!r} has the typographic quotation mark {text[0]!r}",
                "type the ' or \" of the keyboard",
            )


def _override(argument: str, before: str, after: str, *, several: bool) -> str:
    if argument.startswith("~"):
        return _deletion(argument)
    match = _OVERRIDE.fullmatch(argument)
    if match is None:
        raise _no_value(argument, before, after)
    given = _Given(match["sign"], match["key"], match["value"])
    _check_key(given)
    if given.key in group_options():
        return _group(given, several=several)
    kind = key_type(given.key)
    if given.key.startswith("hydra."):
        _check_hydra(given)
    if kind is str:
        given = _Given(given.sign, given.key, _text(given, several=several))
    if is_list(kind) and given.value.startswith("["):
        given = _Given(given.sign, given.key, _list(given.value))
    parsed = _parse(given, kind)
    if not several and parsed.is_sweep_override():
        raise _one_value(given, kind)
    if kind is bool and re.fullmatch(r"-?\d+", given.value):
        _check_switch(given)
    if re.search(r"[/@]|^hydra$", given.key) and not isinstance(parsed.value(), str | list):
        raise _wrong(f"{given.shown} names no option", f"write {given.key}=NAME")
    return str(given)


def _check_switch(given: _Given) -> None:
    """Refuse numbers other than 0 and 1 for a boolean: OmegaConf reads all but 0 as true."""
    if int(given.value) not in (0, 1):
        raise _wrong(f"{given.shown} is neither on nor off", f"{given.key} is true or false")


def _deletion(argument: str) -> str:
    key = argument.lstrip("~").partition("=")[0]
    if key.startswith((*OPEN_SECTIONS, "hydra")):
        return argument
    raise _wrong(
        f"{shown(argument)}: a key or group cannot be removed",
        "leave the argument out to keep the default, or give another value",
    )


def _no_value(argument: str, before: str, after: str) -> ConfigError:
    """A word without `=`: half of something that was split at a space, or a forgotten sign."""
    if _WIDE_EQUALS in argument:
        return _wrong(f"{shown(argument)!r} has a wide equals sign", "type the = of the keyboard")
    what = f"{shown(argument)!r} is not KEY=VALUE"
    if not argument.strip():
        return _wrong("an argument is empty", "leave it out")
    if argument in group_options()["experiment"]:
        return _wrong(what, f"write +experiment={argument}")
    if (argument in schema_types() or argument in group_options()) and after and "=" not in after:
        sign = "+" if argument == "experiment" else ""
        return _wrong(what, f"write {sign}{argument}={after}")
    if after.startswith("=") and argument in schema_types():
        return _wrong(what, f"write no space around =, such as {argument}=VALUE")
    if "=" in before:
        joined = shlex.quote(f"{before} {argument}")
        return _wrong(what, f"write no space around =; a value with spaces needs quotes: {joined}")
    return _wrong(what, "arguments are written key=value, group=option or +experiment=NAME")


def _check_key(given: _Given) -> None:
    key = given.key
    if not key.strip():
        raise _wrong(f"{given.shown!r} names no key", "write key=value")
    if key != key.strip():
        raise _wrong(
            f"{given.shown!r} has a space before or after the =",
            f"write {key.strip()}={given.value.strip()}",
        )
    strange = next((c for c in key if not c.isascii() or not c.isprintable()), None)
    if strange is not None:
        raise _wrong(
            f"the key of {given.shown!r} holds the character {strange!r} (U+{ord(strange):04X})",
            "keys are written in plain letters, digits, _ and .",
        )


def _group(given: _Given, *, several: bool) -> str:
    known = group_options()[given.key]
    options = ", ".join(known)
    value = given.value.strip()
    sign = "+" if given.key == "experiment" else ""
    if not value or value.lower() == "null":
        raise _wrong(
            f"{given.shown} chooses no option", f"write {sign}{given.key}=NAME, one of: {options}"
        )
    if given.sign != sign:
        raise _wrong(f"{given.shown} is written {sign}{given.key}={value}", "options: " + options)
    if value[0] in "[{" or (not several and "," in value):
        given_ones = [each.strip() for each in value.strip("[{}]").split(",")]
        which = "them" if {*given_ones} <= {*known} else options
        raise _wrong(
            f"{given.shown}: a group has one option at a time",
            f"choose one of {which}; or add -m for a run with each",
        )
    if not several and not isinstance(_parse(given, None).value(), str):  # 3, nan, true
        raise _wrong(f"{given.shown} names no option", f"choose one of {options}")
    return str(given)


def _check_hydra(given: _Given) -> None:
    if given.key == "hydra.run.dir":
        raise _wrong(f"{given.shown} does not say where the run writes",
                     f"write run.dir={given.value}")  # fmt: skip
    if given.key == "hydra.job.chdir" and given.value.strip().lower() not in ("false", "null"):
        raise _wrong(
            f"{given.shown}: paths on the command line are relative to where the command starts",
            "leave it out; name another folder by run.dir",
        )


def _text(given: _Given, *, several: bool) -> str:
    """The value of a key whose type is text, quoted unless it already is."""
    value = given.value
    if not value or value.lower() == "null":  # which OmegaConf refuses by the key's name
        return value
    if given.key.startswith("data.sets.") and value[0] in "[{":  # columns
        return value
    if several and (parts := _split(value)) and (len(parts) > 1 or _SWEEP.fullmatch(value)):
        return value if _SWEEP.fullmatch(value) else ",".join(quoted(part) for part in parts)
    return quoted(value)


def quoted(value: str) -> str:
    """A text in quotation marks for Hydra's grammar; a quoted one is unchanged."""
    if value[:1] in ("'", '"') and len(value) > 1:
        try:
            parsed = OverridesParser.create().parse_override(f"key={value}")
        except (HydraException, ValueError, RecursionError):
            pass
        else:
            if isinstance(parsed._value, QuotedString):
                return value
    return QuotedString(text=value, quote=Quote.single).with_quotes()


def _list(value: str) -> str:
    """A list whose plain elements are quoted: 1e5 stays a name."""
    parts = _split(value[1:-1]) if value.endswith("]") else None
    if not parts or any(part.strip()[:1] in ("", "[", "{") for part in parts):
        return value
    return f"[{','.join(quoted(part.strip()) for part in parts)}]"


def _split(text: str) -> list[str] | None:
    """The parts between commas outside of quotes, brackets and `${...}`; None when unbalanced."""
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote and not parts[-1].endswith("\\") else quote
        elif character in "'\"" and not parts[-1].strip():
            quote = character
        elif character in "[{(":
            depth += 1
        elif character in "]})":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return None if quote or depth else parts


def _parse(given: _Given, kind: object) -> Override:
    try:
        return OverridesParser.create().parse_override(str(given))
    except (HydraException, ValueError, RecursionError) as error:
        if kind is None and re.fullmatch(r"(?!hydra|data\.sets|variants\.)[\w.]+", given.key):
            raise unknown_key(given.key) from error
        raise _wrong(
            f"{given.shown} cannot be read" + (" (nested too deep)" if _deep(error) else ""),
            f"{given.key} is {type_words(kind)}" + _piece(given, kind),
        ) from error


def _deep(error: Exception) -> bool:
    return isinstance(error, RecursionError)


def _piece(given: _Given, kind: object) -> str:
    """What to write instead, where that can be guessed."""
    value = given.value.strip().rstrip(",").strip()
    if is_list(kind):
        parts = [each.strip() for each in value.strip("[]").split(",") if each.strip()]
        inner = ",".join(each if each.isidentifier() else quoted(each) for each in parts)
        return f"; write {shlex.quote(f'{given.key}=[{inner}]')}"
    if value != given.value.strip() and value:
        return f"; leave out the comma at the end: {given.key}={shown(value)}"
    return ""


def _one_value(given: _Given, kind: object) -> ConfigError:
    if is_list(kind):
        return _wrong(
            f"{given.shown} is no list", f"write {shlex.quote(f'{given.key}=[{given.value}]')}"
        )
    return _wrong(
        f"{given.shown} has several values, and this is one run",
        f"give one value ({given.key} is {type_words(kind)}), or add -m for a run with each",
    )


def _sweep_folder(arguments: list[str]) -> list[str]:
    """In a sweep, run.dir is the parent of the jobs' numbered folders."""
    pairs = [_OVERRIDE.fullmatch(each) for each in arguments]
    dirs = [i for i, each in enumerate(pairs) if each is not None and each["key"] == "run.dir"]
    if not dirs:
        return arguments
    if any(each is not None and each["key"] == "hydra.sweep.dir" for each in pairs):
        raise _wrong("run.dir and hydra.sweep.dir name the same folder", "give run.dir alone")
    last = pairs[dirs[-1]]
    assert last is not None
    if OverridesParser.create().parse_override(last.string).is_sweep_override():
        raise _wrong(
            f"{shown(last.string)}: a sweep has one folder, with one in it for each job",
            "give run.dir one value; write one with a comma as run.dir=\"'a,b'\"",
        )
    kept = [each for i, each in enumerate(arguments) if i not in dirs]
    return [*kept, f"hydra.sweep.dir={last['value']}"]


def _wrong(what: str, fix: str) -> ConfigError:
    return ConfigError(what, where=_WHERE, fix=fix)
