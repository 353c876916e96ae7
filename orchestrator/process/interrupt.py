"""Ctrl-C before a command has begun and after it is over. Needs the standard library alone."""

import os
from collections.abc import Callable
from types import FrameType


def end_at_once(
    number: int, frame: FrameType | None, leave: Callable[[int], object] = os._exit
) -> None:
    """Handler of SIGINT that raises nothing.

    An exception would not do: modules that are being imported drop some, or replace them.
    """
    del frame
    try:
        os.write(2, b"stopped\n")
    finally:
        leave(128 + number)
