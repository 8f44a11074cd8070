"""The processes of a ProcessPool: a server that imports, forks and waits, and its children, each at the end of a socket."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any


def main(arguments: Sequence[str]) -> None:
    """nice, sockets (their descriptors, with commas between them), modules to import. Returns when all children have ended."""
    nice, sockets, *modules = arguments
    for word in (signal.SIGINT, signal.SIGTERM, signal.SIGTTOU):  # words of a terminal or a batch job are for who asks
        signal.signal(word, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.nice(int(nice))
    for module in modules:
        importlib.import_module(module)
    descriptors = [int(text) for text in sockets.split(",")]
    gc.collect()
    gc.freeze()
    for own in descriptors:
        if os.fork() == 0:
            for other in descriptors:
                if other != own:
                    os.close(other)
            serve(Connection(own))
            sys.stderr.flush()
            os._exit(0)
    for descriptor in descriptors:
        os.close(descriptor)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()


def serve(caller: Connection) -> None:
    """Say that it is there, and do one call after another, until the caller has gone."""
    with contextlib.suppress(OSError):
        caller.send(None)
    while True:
        try:
            function, arguments, named = caller.recv()
        except (EOFError, OSError):
            return
        answer: Any
        try:
            done, answer = True, function(*arguments, **named)
        except BaseException as error:  # noqa: BLE001  it is the caller's
            done, answer = False, error
        try:
            caller.send((done, answer))
        except OSError:
            return
        except Exception:  # noqa: BLE001  what cannot be pickled is told in words
            text = "".join(traceback.format_exception(answer)) if isinstance(answer, BaseException) else f"{type(answer)} cannot be pickled"
            caller.send((False, RuntimeError(text)))
