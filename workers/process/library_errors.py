"""The border to libraries that read what users hand in: whatever they raise becomes one kind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import BrokenCheckpointError, RehearsalError, ResourceError

_LONGEST = 600  # characters of a library's message
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


@contextmanager
def reading(where: Path | str, what: str, fix: str) -> Iterator[None]:
    """Turn what a library raises on a checkpoint's file into a typed error with its own words.

    Libraries raise anything on damaged files: bare `Exception` (tokenizers), pyo3's PanicException,
    which is none (safetensors, tokenizers), RecursionError (json). Errors of our own pass.

    Args:
        where: The file or folder that is read.
        what: What did not work, e.g. "the tokenizer cannot be read".
        fix: What the user can do.

    Raises:
        BrokenCheckpointError: `what`, followed by the words of the library.
        ResourceError: This machine has not enough memory for it.
    """
    try:
        yield
    except RehearsalError:
        raise
    except BaseException as error:
        if not (isinstance(error, Exception) or _is_panic(error)):
            raise
        if isinstance(error, MemoryError) or any(w in str(error) for w in _NO_MEMORY):
            raise ResourceError(
                f"{what}: not enough memory: {words(error)}",
                where=str(where),
                fix="take a smaller model, a machine with more memory, or fewer workers",
            ) from error
        raise BrokenCheckpointError(f"{what}: {words(error)}", where=str(where), fix=fix) from error


def words(error: BaseException) -> str:
    """What an exception says, its kind where it says nothing by itself; cut where it is long."""
    said = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror  # without the number and the path, which the message names itself
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + " ..."
    if not said:
        return type(error).__name__
    plain = isinstance(error, (OSError, ValueError, RuntimeError))
    return said if plain else f"{type(error).__name__}: {said}"


def _is_panic(error: BaseException) -> bool:
    """Whether a library written in Rust has panicked; the class has no name in Python."""
    return type(error).__module__ == "pyo3_runtime"
