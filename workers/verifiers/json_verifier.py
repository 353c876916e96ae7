"""The response is JSON, and fits a JSON schema, where one is given."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from workers.errors import ConfigError
from workers.verifiers.verifier import Check, Options, UnverifiableError, Verifier

_FENCED = re.compile(r"\s*```(?:json)?[ \t]*\n(.*?)\n?```\s*", re.DOTALL)
_WHERE = "schema"


def _make(options: Options) -> Check:
    given = _validator(_read(options.schema)) if options.schema else None

    def check(response: str, reference: Any) -> bool:
        value, found = parsed(response)
        own = given or (_of_row(reference) if reference is not None else None)
        return found and (own is None or _fits(own, value))

    return check


def parsed(response: str) -> tuple[Any, bool]:
    """The JSON value of a response, bare or as one fenced block, and whether there is one."""
    fenced = _FENCED.fullmatch(response)
    try:
        return json.loads(fenced[1] if fenced else response, parse_constant=_refuse), True
    except (ValueError, RecursionError):
        return None, False


def _refuse(name: str) -> None:
    raise ValueError(name)  # NaN and Infinity are no JSON


def _read(path: str) -> Any:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"the JSON schema cannot be read: {error}", where=f"{_WHERE}={path}", fix="correct it"
        ) from error


def _validator(schema: Any) -> Any:
    """A validator that never loads anything: a reference to another document is an error.

    Raises:
        ConfigError: it is no JSON schema.
    """
    from jsonschema import SchemaError, validators  # takes a moment to import
    from referencing import Registry

    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ConfigError(
            f"it is no JSON schema: {error.message:.200}", where=_WHERE, fix="correct the schema"
        ) from error
    registry: Any = Registry()
    return kind(schema, registry=registry)


def _of_row(reference: Any) -> Any:
    try:
        schema = json.loads(reference) if isinstance(reference, str) else reference
        return _validator(schema)
    except (ValueError, RecursionError, ConfigError) as error:
        raise UnverifiableError("the JSON schema in the prompt's row is none") from error


def _fits(validator: Any, value: Any) -> bool:
    from referencing.exceptions import Unresolvable

    try:
        return bool(validator.is_valid(value))
    except (Unresolvable, RecursionError) as error:
        raise UnverifiableError("the JSON schema refers to what it does not hold") from error


VERIFIER = Verifier(_make, frozenset({"schema"}), reference=False)
