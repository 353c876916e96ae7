"""Address of this machine for processes on other machines; imports no torch."""

from __future__ import annotations

import os
import socket


def own_address() -> str:
    """Address of the outward network interface (nothing is sent), or loopback.

    REHEARSAL_HOST, if set, overrides it, for example with loopback for runs on a single machine.
    """
    if told := os.environ.get("REHEARSAL_HOST"):
        return told
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # an address reserved for documentation (RFC 5737)
        except OSError:
            return "127.0.0.1"
        return probe.getsockname()[0]
