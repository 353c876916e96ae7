"""The server of the pages: one process, one project."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from orchestrator.label.queue import LEASE_SECONDS, Queue
from orchestrator.label.schema import connect, serving
from orchestrator.label.store import Store
from orchestrator.label.web.app import Site, build
from orchestrator.label.web.review import routes
from orchestrator.label.writer import Writer
from orchestrator.pages.address import Address, listening, run
from orchestrator.process.command_exit import tell
from orchestrator.process.program import invocation


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
        with closing(listening(address)) as place:
            port = place.getsockname()[1]
            base = address.base(port)
            site = Site(
                store, Writer(w), queue, int(store.setting("seed")),
                store.setting("instructions"), base.startswith("https:"),
            )  # fmt: skip
            label = invocation("label", "orchestrator.label")
            tell(f"{base} (Ctrl-C ends it); links are made by: {label} invite {path} NAME...\n")
            run(build(site, address.hosts(port), routes()), place, address)


def links(base: str, invited: Sequence[tuple[str, str]]) -> str:
    """The links of invited people, one line each."""
    return "".join(f"{name}\t{base}/enter/{token}\n" for name, token in invited)
