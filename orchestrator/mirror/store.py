"""The objects of a mirror, through fsspec: every wait has a deadline, every error has a type."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from workers.errors import BrokenCheckpointError, MirrorError, RehearsalError
from workers.process.caught_errors import Caught
from workers.process.disk import writing
from workers.process.library_errors import reading, words
from workers.process.regular_files import open_regular

T = TypeVar("T")
Beat = Callable[[], None]  # called after each chunk: the transfer makes progress
_CHUNK = 8 << 20  # bytes
_BLOCK = 32 << 20  # bytes of one part of an upload; S3 takes at most 10,000 parts
# Protocols whose folders exist on their own; object stores have only names.
_WITH_FOLDERS = {"file", "local", "ftp", "sftp", "ssh", "smb", "hdfs", "webhdfs", "arrow_hdfs"}
_NO_CREDENTIALS = (
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError",
    "TokenRetrievalError", "ProfileNotFound", "DefaultCredentialsError", "RefreshError",
    "AuthenticationException", "ClientAuthenticationError",
)  # fmt: skip
_RIGHTS = "check the credentials (environment variables, or ~/.config/fsspec) and their rights"
_NETWORK = "check the URL, the endpoint and the network, then resume with resume=auto"


class Store:
    """The objects below one URL, by their names relative to it. Not for several threads at once."""

    def __init__(self, connect: Callable[[], Any], root: str, url: str, seconds: float) -> None:
        """Store the arguments; nothing is opened yet.

        Args:
            connect: Makes a new fsspec file system.
            root: The path of the mirror in it.
            url: Its URL, for messages.
            seconds: A call that makes no progress for this long has failed.
        """
        self.url = url.rstrip("/")
        self._connect = connect
        self._root = root.rstrip("/")
        self._seconds = seconds
        self._system: Any = None

    def place(self, name: str) -> str:
        """URL of an object."""
        return f"{self.url}/{name}"

    def read(self, name: str, most: int) -> bytes | None:
        """The bytes of a small object; None if there is none.

        Raises:
            BrokenCheckpointError: it has more than `most` bytes, or is a link out of the mirror.
            MirrorError: the mirror cannot be read.
        """

        def work(system: Any, beat: Beat) -> bytes | None:
            del beat
            try:
                with system.open(self._path(system, name), "rb") as file:
                    return file.read(most + 1)
            except FileNotFoundError:
                return None

        data = self._timed("read", name, work)
        if data is not None and len(data) > most:
            raise _damaged(f"it has more than {most:,} bytes", self.place(name))
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a small object and read it back.

        Raises:
            MirrorError: it could not be written.
        """

        def work(system: Any, beat: Beat) -> None:
            del beat
            path = self._path(system, name)
            _make_parent(system, path)
            system.pipe_file(path, data)

        self._timed("written", name, work)
        if self.read(name, len(data)) != data:
            raise MirrorError(
                "an object of the mirror has other bytes than were written",
                where=self.place(name),
                fix="check the storage; another process may write there, too",
            )

    def size(self, name: str) -> int | None:
        """Bytes of an object; None if there is none.

        Raises:
            MirrorError: the mirror cannot be read.
        """

        def work(system: Any, beat: Beat) -> int | None:
            del beat
            try:
                return int(system.info(self._path(system, name))["size"])
            except FileNotFoundError:
                return None

        return self._timed("read", name, work)

    def send(self, name: str, source: Path, size: int) -> str:
        """Write the first `size` bytes of a local file; returns their SHA-256.

        Raises:
            BrokenCheckpointError: the file is gone, shorter or unreadable.
            MirrorError: the object could not be written.
        """

        def work(system: Any, beat: Beat) -> str:
            digest = hashlib.sha256()
            path = self._path(system, name)
            _make_parent(system, path)
            target = system.open(path, "wb", block_size=_BLOCK)
            try:
                for chunk in _chunks(source, size):
                    digest.update(chunk)
                    target.write(chunk)
                    beat()
                target.close()
            except BaseException:
                _discard(target)
                raise
            return digest.hexdigest()

        return self._timed("written", name, work)

    def digest(self, name: str, size: int) -> str:
        """SHA-256 of an object's first `size` + 1 bytes.

        Raises:
            MirrorError: it is not there, or cannot be read.
        """

        def work(system: Any, beat: Beat) -> str:
            digest = hashlib.sha256()
            for chunk in self._fetched(system, name, size, beat):
                digest.update(chunk)
            return digest.hexdigest()

        return self._timed("read", name, work)

    def fetch(self, name: str, target: Path, size: int) -> str:
        """Read an object into a new local file; returns the SHA-256 of its first `size` + 1 bytes.

        Raises:
            BrokenCheckpointError: it is not there, or a link out of the mirror.
            CheckpointError: the local disk is full or read-only.
            MirrorError: the mirror cannot be read.
        """

        def work(system: Any, beat: Beat) -> str | None:
            digest = hashlib.sha256()
            with writing(target, "the restored file"):
                file = target.open("wb")
            with file:
                try:
                    for chunk in self._fetched(system, name, size, beat):
                        digest.update(chunk)
                        with writing(target, "the restored file"):
                            file.write(chunk)
                except FileNotFoundError:
                    return None
            return digest.hexdigest()

        found = self._timed("read", name, work)
        if found is None:
            raise _damaged("it is missing", self.place(name))
        return found

    def entries(self, name: str) -> list[str]:
        """Names of the entries of a folder, without their folder; empty if there is none.

        Raises:
            MirrorError: the mirror cannot be read.
        """

        def work(system: Any, beat: Beat) -> list[str]:
            del beat
            try:
                system.invalidate_cache()
                found = system.ls(self._path(system, name), detail=False)
            except FileNotFoundError:
                return []
            return sorted({str(each).rstrip("/").rpartition("/")[2] for each in found})

        return self._timed("read", name, work)

    def delete(self, names: Collection[str]) -> None:
        """Delete objects; those that are not there are passed over.

        Raises:
            MirrorError: one cannot be deleted.
        """

        def work(system: Any, beat: Beat) -> None:
            paths = [self._path(system, name) for name in names]
            for path in paths:
                with suppress(FileNotFoundError):
                    system.rm_file(path)
                beat()
            if _has_folders(system):
                _remove_empty(system, self._root, paths, beat)

        if names:
            self._timed("changed", next(iter(names)), work)

    def _path(self, system: Any, name: str) -> str:
        path = f"{self._root}/{name}"
        if getattr(system, "local_file", False):
            home, there = Path(self._root).resolve(), Path(path)
            if there.is_symlink() or not there.parent.resolve().is_relative_to(home):
                raise _damaged("it is a link", self.place(name))
        return path

    def _fetched(self, system: Any, name: str, size: int, beat: Beat) -> Iterator[bytes]:
        """The object's bytes in chunks, and at most one more than it should have."""
        left = size + 1
        with system.open(self._path(system, name), "rb", block_size=_CHUNK) as file:
            while left and (chunk := file.read(min(left, _CHUNK))):
                left -= len(chunk)
                yield chunk
                beat()

    def _timed(self, verb: str, name: str, work: Callable[[Any, Beat], T]) -> T:
        """Run `work` in a thread until it ends, or makes no progress for too long."""
        call = _Call(work, self._system, self._connect)
        call.start()
        while call.is_alive():
            call.join(min(1.0, max(0.01, call.last + self._seconds - time.monotonic())))
            if call.is_alive() and time.monotonic() > call.last + self._seconds:
                call.left = True
                self._system = None  # the abandoned call may still use it
                raise MirrorError(
                    f"the mirror did not answer within {self._seconds:g} s",
                    where=self.place(name),
                    fix=f"{_NETWORK}; run.mirror_seconds is the deadline",
                )
        error = call.caught.error
        if error is None:
            self._system = call.system
            return call.result  # type: ignore[return-value]
        if isinstance(error, RehearsalError):
            raise error
        self._system = None
        raise _typed(error, verb, self.place(name)) from error


class _Call(threading.Thread):
    """One call in a thread of its own, which can be abandoned."""

    def __init__(
        self, work: Callable[[Any, Beat], object], system: Any, connect: Callable[[], Any]
    ) -> None:
        super().__init__(name="mirror-call", daemon=True)
        self._work = work
        self._connect = connect
        self.system = system
        self.result: object = None
        self.last = time.monotonic()  # of progress
        self.left = False  # the caller has given up
        self.caught = Caught(BaseException)  # drivers raise any class

    def run(self) -> None:
        with self.caught:
            self.system = self.system or self._connect()
            self.result = self._work(self.system, self._beat)

    def _beat(self) -> None:
        if self.left:
            raise TimeoutError("abandoned")
        self.last = time.monotonic()


def _chunks(source: Path, size: int) -> Iterator[bytes]:
    fix = "a newer checkpoint is copied in its place"
    with reading(source, f"{source.name} cannot be copied", fix):
        file = open_regular(source)
    with file:
        left = size
        while left:
            with reading(source, f"{source.name} cannot be copied", fix):
                chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise BrokenCheckpointError(
                    f"{source.name} is shorter than the {size:,} bytes it had",
                    where=str(source),
                    fix=fix,
                )
            left -= len(chunk)
            yield chunk


def _discard(target: Any) -> None:
    """Close an object without publishing what was written of it."""
    from fsspec.spec import AbstractBufferedFile

    if isinstance(target, AbstractBufferedFile):
        with Caught(Exception):
            target.discard()
        target.closed = True  # close() would publish the part
    else:
        target.close()


def _protocols(system: Any) -> set[str]:
    told = system.protocol
    return {told} if isinstance(told, str) else {*told}


def _has_folders(system: Any) -> bool:
    return bool(_protocols(system) & _WITH_FOLDERS)


def _make_parent(system: Any, path: str) -> None:
    if _has_folders(system):  # for object stores this would create a bucket
        system.makedirs(path.rpartition("/")[0], exist_ok=True)


def _remove_empty(system: Any, root: str, paths: list[str], beat: Beat) -> None:
    """Remove folders of deleted objects that are empty now; others refuse it."""
    folders = {path.rpartition("/")[0] for path in paths}
    for folder in list(folders):
        while (folder := folder.rpartition("/")[0]).startswith(f"{root}/"):
            folders.add(folder)
    for folder in sorted(folders - {root}, key=len, reverse=True):
        with Caught(Exception):  # not empty
            system.rmdir(folder)
        beat()


def _damaged(why: str, where: str) -> BrokenCheckpointError:
    return BrokenCheckpointError(
        f"an object of the mirror cannot be used: {why}",
        where=where,
        fix="an older copy in the mirror may be whole",
    )


def _typed(error: BaseException, verb: str, where: str) -> MirrorError:
    name, told = type(error).__name__, words(error)
    if isinstance(error, PermissionError) or name in _NO_CREDENTIALS or told.startswith("530"):
        return MirrorError(f"the mirror refuses access: {told}", where=where, fix=_RIGHTS)
    if isinstance(error, FileNotFoundError):
        fix = "check the bucket and the path in run.mirror: buckets are not created"
        return MirrorError(f"the mirror is not there: {told}", where=where, fix=fix)
    return MirrorError(f"the mirror cannot be {verb}: {told}", where=where, fix=_NETWORK)
