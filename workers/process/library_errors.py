"""Conversion of any exception that a library raises on user files into typed errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from workers.errors import BrokenCheckpointError, RehearsalError, ResourceError

_LONGEST = 600  # characters of a library's message
_NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory")


@contextmanager
def reading(where: Path | str, what: str, fix: str) -> Iterator[None]:
    """Turn a library's exception on a checkpoint's file into a typed error with its message.

    Libraries raise many classes on damaged files: bare `Exception` (tokenizers), pyo3's
    PanicException, which is not an `Exception` (safetensors, tokenizers), RecursionError (json).
    Errors of Rehearsal pass unchanged.

    Args:
        where: The file or folder that is read.
        what: What failed, e.g. "the tokenizer cannot be read".
        fix: What the user can do.

    Raises:
        BrokenCheckpointError: `what`, followed by the library's message.
        ResourceError: This machine does not have enough memory for it.
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
    """An exception's message, shortened if long; its class name if it has no message."""
    said = str(error).strip()
    if isinstance(error, OSError) and error.strerror:
        said = error.strerror  # without the errno, and the path, which the error's `where` names
    if len(said) > _LONGEST:
        said = said[:_LONGEST] + " ..."
    if not said:
        return type(error).__name__
    plain = isinstance(error, (OSError, ValueError, RuntimeError))
    return said if plain else f"{type(error).__name__}: {said}"


def _is_panic(error: BaseException) -> bool:
    """Whether a Rust library has panicked; Python cannot import the exception's class."""
    return type(error).__module__ == "pyo3_runtime"
