"""The cache of tokenised rows on disk, shared by all commands of a user.

The name of an entry is a digest of all that its rows depend on: the content of the data, the
tokenizer, every setting of the rendering, the code of this package and the libraries it calls. An
entry is one file of plain arrays with a checksum. It is written under a temporary name and then
renamed, so several processes may use one cache, and any file in it may be deleted at any time. An
entry that is damaged, a link, or another user's is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from workers.data.formats.folders import check_folder
from workers.data.tokenize.data_sets import DataSet, Rendering
from workers.data.tokenize.encode import Chunk, Encoder
from workers.process.regular_files import open_regular, sha256_of
from workers.records.arrays import Ragged

_LIBRARIES = ("datasets", "jinja2", "numpy", "pyarrow", "tokenizers", "transformers", "validators")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx")
_SUFFIX, _UNFINISHED = ".rows", ".part"
_ABANDONED_SECONDS = 86_400.0
_DIGEST = hashlib.sha256().digest_size
_BLOCK = 2**20
_FACTS_BYTES = 2**16  # at the beginning of an entry
Facts = dict[str, Any]


def cache_folder() -> Path:
    """$REHEARSAL_CACHE, or `rehearsal` in the user's cache folder."""
    if given := os.environ.get("REHEARSAL_CACHE"):
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "rehearsal"


class RowCache:
    """Entries of one folder, at most `most_bytes` in all; the least recently used are evicted.

    Args:
        most_bytes: 0 = the cache is off.
        encoder: Creates the rows.
        rendering: The settings of `encoder`.

    Attributes:
        notes: Why rows are not cached, or why an entry was not used.
    """

    def __init__(self, most_bytes: int, encoder: Encoder, rendering: Rendering) -> None:
        self.notes: list[str] = []
        self._stamps: dict[str, str] = {}  # key -> `_stamp` of the data when it was hashed
        self._most_bytes = most_bytes
        self._folder = self._private(cache_folder()) if most_bytes else None
        self._made_by = _digest_of(_maker(encoder, rendering)) if self._folder else ""

    def key(self, each: DataSet, on_bad_line: str) -> str:
        """The cache key of the rows of a data set; "" where they are not cached."""
        if self._folder is None or ":" in each.format:  # a user's reader may change at any time
            return ""
        try:
            if Path(each.path).is_dir():
                check_folder(each.path)
            content = _content(Path(each.path))
        except (OSError, ValueError):  # reported when the data is read
            return ""
        if not content:
            return ""
        asked = asdict(replace(each, name="", path="", weight=1.0))
        key = _digest_of([self._made_by, content, str(asked), on_bad_line])
        self._stamps[key] = _stamp(Path(each.path))
        return key

    def find(self, key: str) -> Entry | None:
        """The entry of this key; None if there is none or it is damaged."""
        if not key or self._folder is None:
            return None
        path = self._folder / f"{key}{_SUFFIX}"
        try:
            entry = Entry(path)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, EOFError) as error:
            self.notes.append(f"kept rows are damaged, so the data is read again: {path}: {error}")
            return None
        with contextlib.suppress(OSError):  # deleted or read-only: only the time of use is lost
            os.utime(path)
        return entry

    @contextlib.contextmanager
    def store(self, key: str, path: str) -> Iterator[Writer]:
        """Collect the chunks of an entry, which exists once the block ends without an error."""
        if not key or self._folder is None:
            yield Writer(None, 0)
            return
        try:
            name = tempfile.mkstemp(_UNFINISHED, key, self._folder)[1]
            file = Path(name).open("r+b")  # noqa: SIM115 - closed below
        except OSError as error:
            self.notes.append(f"no rows are kept: {error}")
            yield Writer(None, 0)
            return
        writer = Writer(file, self._most_bytes)
        try:
            yield writer
            file.close()
            if writer.whole and _stamp(Path(path)) == self._stamps[key]:
                Path(name).replace(self._folder / f"{key}{_SUFFIX}")
                self._evict(self._folder)
        except OSError as error:
            self.notes.append(f"no rows are kept: {error}")
        finally:
            file.close()
            Path(name).unlink(missing_ok=True)
        if writer.problem:
            self.notes.append(f"no rows are kept: {writer.problem}")

    def _private(self, folder: Path) -> Path | None:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode):
                raise PermissionError("it is a link or a file")
            if found.st_uid != os.getuid() or found.st_mode & 0o022:
                raise PermissionError("other users may write to it")
            if not os.access(folder, os.W_OK | os.X_OK):
                raise PermissionError("it cannot be written")
        except (OSError, RuntimeError) as error:
            self.notes.append(f"no rows are kept from run to run: {folder}: {error}")
            return None
        return folder

    def _evict(self, folder: Path) -> None:
        found: list[tuple[float, int, Path]] = []
        for path in folder.iterdir():
            try:
                seen = path.lstat()
                if path.suffix == _SUFFIX:
                    found.append((seen.st_mtime, seen.st_size, path))
                elif path.suffix == _UNFINISHED and _is_abandoned(seen.st_mtime):
                    path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process has deleted it
        used = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if used <= self._most_bytes:
                return
            path.unlink(missing_ok=True)
            used -= size


def _is_abandoned(modified: float) -> bool:
    # if the clock is wrong by a day, an entry that is being written is lost, with a note
    return time.time() - modified > _ABANDONED_SECONDS  # noqa: TID251 - as files have it


class Entry:
    """A cache entry whose checksum is correct.

    Attributes:
        facts: The facts that were stored with the rows.

    Raises:
        FileNotFoundError: There is no entry.
        OSError, ValueError, EOFError: It is damaged, a link, or another user's.
    """

    def __init__(self, path: Path) -> None:
        if path.is_symlink():
            raise ValueError("a link")
        self._file = open_regular(path)
        if os.fstat(self._file.fileno()).st_uid != os.getuid():
            raise ValueError("another user's file")
        self._size = os.fstat(self._file.fileno()).st_size - _DIGEST
        digest, left = hashlib.sha256(), self._size
        while left > 0 and (block := self._file.read(min(_BLOCK, left))):
            digest.update(block)
            left -= len(block)
        if self._file.read() != digest.digest():
            raise ValueError("damaged")
        self._file.seek(0)
        self.facts: Facts = _read_facts(self._file)

    def chunks(self) -> Iterator[Chunk]:
        """The chunks, as they were stored."""
        with self._file as file:
            while file.tell() < self._size:
                yield _read_chunk(file)


class Writer:
    """Writes the chunks of an entry."""

    def __init__(self, file: BinaryIO | None, most_bytes: int) -> None:
        self.whole = False
        self.problem = ""
        self._file, self._most_bytes = file, most_bytes

    def add(self, chunk: Chunk) -> None:
        """Append a chunk; an entry larger than the whole cache is given up."""
        if self._file is None or self.problem:
            return
        try:
            if self._file.tell() == 0:
                self._file.write(bytes(_FACTS_BYTES))
            _write_chunk(self._file, chunk)
        except OSError as error:
            self.problem = str(error)
        if self._file.tell() > self._most_bytes:
            self.problem = f"they are over {self._most_bytes / 2**20:g} MiB (data.cache_mib)"

    def finish(self, facts: Facts) -> None:
        """Write the facts and the checksum."""
        if self._file is None or self.problem:
            return
        told = json.dumps(facts).encode()
        if len(told) > _FACTS_BYTES:
            self.problem = "their notes are too long"
            return
        try:
            self._file.seek(0)
            self._file.write(told.ljust(_FACTS_BYTES))
            self._file.seek(0)
            digest = hashlib.sha256()
            while block := self._file.read(_BLOCK):
                digest.update(block)
            self._file.write(digest.digest())
            self._file.flush()
        except OSError as error:
            self.problem = str(error)
            return
        self.whole = True


def _read_facts(file: BinaryIO) -> Facts:
    facts = json.loads(file.read(_FACTS_BYTES))
    if not isinstance(facts, dict):
        raise ValueError("damaged")
    return facts


def _write_chunk(file: BinaryIO, chunk: Chunk) -> None:
    for each in fields(Chunk):
        value = getattr(chunk, each.name)
        for array in _arrays(value):
            np.save(file, array, allow_pickle=False)


def _arrays(value: object) -> list[Any]:
    if isinstance(value, Ragged):
        return [value.values, value.offsets]
    if isinstance(value, Counter):
        return [np.frombuffer(json.dumps(value).encode(), np.uint8)]
    return [np.asarray(value)]


def _read_chunk(file: BinaryIO) -> Chunk:
    def array() -> Any:
        return np.load(file, allow_pickle=False)

    values: dict[str, Any] = {}
    for each in fields(Chunk):
        if each.type == "Ragged":
            values[each.name] = Ragged(array(), array())
        elif each.name == "dropped":
            values[each.name] = Counter(json.loads(array().tobytes()))
        else:
            found = array()
            values[each.name] = int(found) if found.ndim == 0 else found
    return Chunk(**values)


def _maker(encoder: Encoder, rendering: Rendering) -> list[str]:
    """Everything besides the data that rows depend on."""
    code = [path.read_bytes() for path in sorted(Path(__file__).parents[1].rglob("*.py"))]
    libraries = [f"{name} {metadata.version(name)}" for name in _LIBRARIES]
    asked = asdict(replace(rendering, checkpoint="", chat_template="", date="", embeddings=0))
    return [
        hashlib.sha256(b"\0".join(code)).hexdigest(),
        *libraries,
        str(asked),
        encoder.date,
        str(encoder.tokenizer.chat_template),
        _tokenizer_files(Path(rendering.checkpoint)),
        "default" if rendering.chat_template == "default" else "",
    ]


def _tokenizer_files(folder: Path) -> str:
    """Digest of all files except the weights, as a tokenizer may read any of them."""
    parts: list[str] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix not in _WEIGHTS:
            parts += [str(path.relative_to(folder)), sha256_of(path)]
    return _digest_of(parts)


def _content(path: Path) -> str:
    """Digest of a data file or folder; "" where there is neither."""
    if path.is_file():
        return _digest_of([path.name, sha256_of(path)])
    if not path.is_dir():
        return ""
    parts: list[str] = []
    for each in sorted(path.rglob("*")):
        if each.is_file():
            parts += [str(each.relative_to(path)), sha256_of(each)]
    return _digest_of(parts)


def _stamp(path: Path) -> str:
    """Size, time and inode of each file, to detect data that changes while it is read."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    seen = [each.stat() for each in files]
    return str([(each.st_size, each.st_mtime_ns, each.st_ino) for each in seen])


def _digest_of(parts: list[str]) -> str:
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
