"""Secrets, such as API keys, which only environment variables hold."""

from __future__ import annotations

import os

from workers.errors import ConfigError


def secret(variable: str, where: str, otherwise: str = "") -> str:
    """The value of an environment variable.

    Args:
        variable: Its name.
        where: The configuration key that asks for it, for errors.
        otherwise: What else can be done about it, for errors.

    Raises:
        ConfigError: It is not set, or holds something else than printable ASCII characters.
    """
    value = os.environ.get(variable, "").strip()
    if not (value and value.isascii() and value.isprintable()):
        raise ConfigError(
            f"the environment variable {variable} " + ("holds no key" if value else "is not set"),
            where=where,
            fix=f"export {variable}=KEY{otherwise}",
        )
    return value
