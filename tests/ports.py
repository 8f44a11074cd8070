"""Ports for servers that tests start."""

from __future__ import annotations

import socket

_kept: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody is given while this process lives: it is bound here, for all addresses, and not listened on.

    A server that sets SO_REUSEADDR, as Dask's do, can listen on it; until one does, whoever connects is refused.
    """
    kept = socket.socket()
    kept.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    kept.bind(("", 0))
    _kept.append(kept)
    return int(kept.getsockname()[1])
