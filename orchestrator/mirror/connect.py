"""From `run.mirror=URL` to a store that was tried: driver, place, and a write, read and delete."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from orchestrator.config.run import RunConfig
from orchestrator.mirror.store import Store
from workers.errors import ConfigError, MirrorError
from workers.process.library_errors import words

_KEY = "run.mirror"
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs"}  # protocol -> extra of this package


def connect(config: RunConfig) -> Store:
    """The store of `run.mirror`, after an object was written, read and deleted there.

    Raises:
        ConfigError: the protocol is unknown, its driver is not installed, or the place is the run
            folder.
        MirrorError: the mirror cannot be reached, read or written.
    """
    store = Store(*_place(config), config.mirror, config.mirror_seconds)
    name = f"probe-{uuid.uuid4().hex}"
    store.write(name, b"rehearsal")
    store.delete([name])
    return store


def _place(config: RunConfig) -> tuple[Callable[[], Any], str]:
    """How to make the file system of a URL, and the path in it."""
    import fsspec

    url = config.mirror
    protocol = url.partition("://")[0]
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ValueError as error:
        raise ConfigError(
            f"{protocol} is no protocol that fsspec knows",
            where=_KEY,
            fix="write s3://BUCKET/PATH, gs://BUCKET/PATH, file:///FOLDER or another URL of fsspec",
        ) from error
    except ImportError as error:
        extra = _EXTRAS.get(protocol)
        raise ConfigError(
            f"the driver of {protocol}:// is not installed: {words(error)}",
            where=_KEY,
            fix=f"uv pip install -e '.[{extra}]'" if extra else "install the package that it names",
        ) from error
    options = {"skip_instance_cache": True, "use_listings_cache": False}
    given = kind._get_kwargs_from_urls(url) | options
    path = str(kind._strip_protocol(url)).rstrip("/")
    if getattr(kind, "local_file", False):
        _check_local(Path(path), Path(config.dir))
    return lambda: kind(**given), path


def _check_local(path: Path, run: Path) -> None:
    here, run = path.resolve(), run.resolve()
    if here.is_relative_to(run) or run.is_relative_to(here):
        raise ConfigError(
            "the mirror and the run folder are one in the other",
            where=_KEY,
            fix=f"give a folder on other storage than {run}",
        )
    if not path.parent.is_dir():  # an unmounted disk must not become a folder on the local one
        raise MirrorError(
            f"the mirror is not there: there is no folder {path.parent}",
            where=_KEY,
            fix="mount it, or make the folder",
        )
