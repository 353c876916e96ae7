"""The server of the pages: one process, one project."""

from __future__ import annotations

import signal
import socket
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import uvicorn

from orchestrator.label.queue import LEASE_SECONDS, Queue
from orchestrator.label.schema import connect, serving
from orchestrator.label.store import Store
from orchestrator.label.web.app import Site, build
from orchestrator.label.web.review import routes
from orchestrator.label.writer import Writer
from orchestrator.process.command_exit import tell
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
                f"other machines would reach {self.host} without encryption: links and judgments "
                "could be read on the way",
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


def serve(
    path: Path, address: Address, *, lease_seconds: float = LEASE_SECONDS, gold_every: int = 20
) -> None:
    """Serve a project until SIGINT or SIGTERM; running requests are finished.

    Raises:
        ConfigError: another server has the project, or the address is taken.
    """
    address.check()
    with serving(path), closing(Store(connect(path))) as store, closing(Store(connect(path))) as w:
        queue = Queue(store.waiting(), gold_every, lease_seconds)
        for labeler, task in store.given():
            queue.resume(labeler, task)
        with closing(_listening(address)) as listening:
            port = listening.getsockname()[1]
            base = address.base(port)
            site = Site(
                store, Writer(w), queue, int(store.setting("seed")),
                store.setting("instructions"), base.startswith("https:"),
            )  # fmt: skip
            tell(f"{base} (Ctrl-C ends it); links are made by: python -m orchestrator.label invite "
                 f"{path} NAME...\n")  # fmt: skip
            _run(build(site, address.hosts(port), routes()), listening, address)


def _run(app: object, listening: socket.socket, address: Address) -> None:
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]
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
    uvicorn.Server(config).run(sockets=[listening])


def _listening(address: Address) -> socket.socket:
    try:
        family, kind, _, _, place = socket.getaddrinfo(
            address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        found = socket.socket(family, kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(place)
        found.listen(1024)
    except OSError as error:
        raise ConfigError(
            f"cannot listen there: {error.strerror or error}",
            where=f"{address.host}:{address.port}",
            fix="choose another --port, or 0 for any that is free",
        ) from error
    return found


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def links(base: str, invited: Sequence[tuple[str, str]]) -> str:
    """The links of invited people, one line each."""
    return "".join(f"{name}\t{base}/enter/{token}\n" for name, token in invited)
