"""Where a server of pages listens, and how it runs: one process, until a signal ends it."""

from __future__ import annotations

import argparse
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn
from starlette.types import ASGIApp

from workers.errors import ConfigError

LOOPBACK = ("127.0.0.1", "::1", "localhost")
_SHUTDOWN_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Address:
    """Where the server listens, and how it is reached."""

    host: str = LOOPBACK[0]
    port: int = 8711
    url: str = ""  # what people type if a proxy is in front; "" = host and port
    certificate: str = ""  # PEM files: the pages are then served by https
    key: str = ""
    without_tls: bool = False  # allow other machines to connect without encryption

    def check(self) -> None:
        """Check the address.

        Raises:
            ConfigError: it is none, or other machines would reach it without encryption.
        """
        if not 0 <= self.port < 65536:
            raise ConfigError(f"{self.port} is no port", where="--port", fix="1 to 65535")
        if bool(self.certificate) != bool(self.key):
            raise ConfigError(
                "a certificate needs its key", where="--tls-cert", fix="give --tls-key too"
            )
        for option, path in (("--tls-cert", self.certificate), ("--tls-key", self.key)):
            if path and not Path(path).is_file():
                raise ConfigError("there is no such file", where=f"{option} {path}")
        if self.host not in LOOPBACK and not (self.certificate or self.without_tls):
            raise ConfigError(
                f"other machines would reach {self.host} without encryption: what the pages show "
                "and what is sent to them could be read on the way",
                where="--host",
                fix="give --tls-cert and --tls-key, or put a proxy in front of the loopback "
                "address (--url), or say --without-tls",
            )
        if self.url and (
            urlsplit(self.url).scheme not in ("http", "https") or not urlsplit(self.url).netloc
        ):
            raise ConfigError(f"{self.url!r} is no address", where="--url",
                              fix="such as https://labels.example.org")  # fmt: skip

    def base(self, port: int) -> str:
        """How people reach it."""
        scheme = "https" if self.certificate else "http"
        return self.url.rstrip("/") or f"{scheme}://{_bracketed(self.host)}:{port}"

    def hosts(self, port: int) -> list[str]:
        """Values of the header Host that are ours."""
        names = LOOPBACK if self.host in LOOPBACK else (self.host,)
        if self.host in ("0.0.0.0", "::"):
            names = (socket.gethostname(), socket.getfqdn(), *LOOPBACK)
        found = [f"{_bracketed(name)}:{port}" for name in names]
        return [*found, urlsplit(self.url).netloc] if self.url else found


def run(app: ASGIApp, place: socket.socket, address: Address) -> None:
    """Serve until SIGINT or SIGTERM; running requests are finished."""
    config = uvicorn.Config(
        app,
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        ws="none",
        http="h11",
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_SHUTDOWN_SECONDS,
        ssl_certfile=address.certificate or None,
        ssl_keyfile=address.key or None,
    )
    for each in (signal.SIGINT, signal.SIGTERM):  # uvicorn raises them again when it has ended
        signal.signal(each, lambda number, frame: None)  # noqa: ARG005
    uvicorn.Server(config).run(sockets=[place])


def listening(address: Address) -> socket.socket:
    """A socket that listens at the address.

    Raises:
        ConfigError: the address is taken, or is not of this machine.
    """
    try:
        family, kind, _, _, name = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(name)
        found.listen(1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen there: {error.strerror or error}",
            where=f"{address.host}:{address.port}",
            fix="choose another --port, or 0 for any that is free",
        ) from error
    return found


def add_options(parser: argparse.ArgumentParser, port: int) -> None:
    """Add the options of an address to the command line of a server."""
    parser.add_argument("--host", default=LOOPBACK[0], help="127.0.0.1: this machine alone")
    parser.add_argument("--port", type=int, default=port, help=f"0 = any that is free ({port})")
    parser.add_argument("--url", default="", help="how people reach it, if a proxy is in front")
    parser.add_argument("--tls-cert", default="", metavar="FILE", help="PEM file: serve https")
    parser.add_argument("--tls-key", default="", metavar="FILE", help="its private key")
    parser.add_argument("--without-tls", action="store_true", help="other machines, unencrypted")


def address_of(options: argparse.Namespace) -> Address:
    """The address that a command line gives."""
    return Address(
        options.host, options.port, options.url, options.tls_cert, options.tls_key,
        options.without_tls,
    )  # fmt: skip


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
