"""A pattern is in the response: that of the configuration, or that of the prompt's row."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from workers.errors import ConfigError
from workers.verifiers.patterns import compiled, found_in
from workers.verifiers.verifier import Check, Options, UnverifiableError, Verifier


def _make(options: Options) -> Check:
    given = compiled(options.pattern) if options.pattern else None
    known = lru_cache(1024)(compiled)

    def check(response: str, reference: Any) -> bool:
        pattern = given
        if pattern is None:
            if not isinstance(reference, str):
                raise UnverifiableError("there is no pattern, and none in the prompt's row")
            try:
                pattern = known(reference)
            except ConfigError as error:
                raise UnverifiableError("the pattern in the prompt's row is none") from error
        return found_in(pattern, response) is not None

    return check


VERIFIER = Verifier(_make, frozenset({"pattern"}), reference=False)
