"""Checks of the addresses of servers that a configuration names."""

from __future__ import annotations

from urllib.parse import urlsplit

from workers.errors import ConfigError


def check_address(address: str, whose: str, where: str, usual: str) -> None:
    """Check that an address is scheme, host, port and path alone.

    It may hold a password, so neither it nor an error with it is shown.

    Raises:
        ConfigError: it is not.
    """
    if not _is_plain(address):
        raise ConfigError(
            f"{whose} address is no plain http or https address",
            where=where,
            fix=f"write {usual}, nothing behind it; a key belongs into the environment variable "
            "that key_variable names",
        )


def _is_plain(address: str) -> bool:
    if any(c in "?#" or c.isspace() or not c.isprintable() for c in address):
        return False
    try:
        url = urlsplit(address)
        port = url.port
    except ValueError:  # unclosed bracket, or the port is no number up to 65535
        return False
    host = url.hostname and "@" not in url.netloc
    return url.scheme in ("http", "https") and bool(host) and port != 0
