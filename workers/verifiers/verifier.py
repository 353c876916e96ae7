"""What a verifier is: a rule that says whether a response answers as its reference does.

A verifier is the constant VERIFIER of a module of this package whose name ends in `_verifier`, or
an object of a user's module. Its functions are pure.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from workers.errors import ConfigError
from workers.extensions.kinds import Kind


class UnverifiableError(Exception):
    """A response cannot be checked; the argument is a fixed reason, as drops are counted by it."""


@dataclass(frozen=True, slots=True)
class Options:
    """Settings of verifiers; each reads some of them."""

    pattern: str = ""  # regular expression; "" = none
    schema: str = ""  # path of a JSON schema; "" = none
    tolerance: float = 0.0  # largest relative difference of equal numbers


# Whether a response is right. `reference` is the value of the prompt's column, None without one.
# Raises UnverifiableError if it cannot be told, e.g. because the reference is not of its kind.
Check = Callable[[str, Any], bool]


@dataclass(frozen=True, slots=True)
class Verifier:
    """One rule."""

    make: Callable[[Options], Check]  # raises ConfigError at options that cannot be used
    takes: frozenset[str] = frozenset()  # names of the options that it reads
    reference: bool = True  # needs the answer in a column of the prompt's row
    # Import path of a function that checks in a process of its own, which is killed when it is
    # late; it gets the answer as the column `answer`. `make` then only checks the options.
    apart: str = ""

    def __post_init__(self) -> None:
        """Raises TypeError where a field is something else, at the user's line."""
        if not callable(self.make):
            raise TypeError(f"make is {self.make!r}: it must be a function")


KIND = Kind("verifier", Verifier, "workers.verifiers", "VERIFIER", "_verifier")


def make_check(verifier: Verifier, options: Options, key: Callable[[str], str]) -> Check:
    """The check of a verifier with these options.

    Args:
        verifier: The rule.
        options: Its options.
        key: Configuration key of an option, for errors.

    Raises:
        ConfigError: an option is set that it does not read, or cannot be used.
    """
    for name in ("pattern", "schema", "tolerance"):
        if getattr(options, name) and name not in verifier.takes:
            raise ConfigError(
                f"the verifier does not read {name}",
                where=key(name),
                fix=f"leave it out; it reads {', '.join(sorted(verifier.takes)) or 'no options'}",
            )
    return verifier.make(options)


def any_of(reference: Any) -> list[Any]:
    """The accepted answers: those of a list, or a single one.

    Raises:
        UnverifiableError: there is none.
    """
    answers = reference if isinstance(reference, list) else [reference]
    if not answers or any(each is None for each in answers):
        raise UnverifiableError("the prompt's row has no answer")
    return answers
