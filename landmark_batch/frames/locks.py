"""A short lock over a store's own files, between threads, processes and, where the file system passes locks on, hosts."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator

from landmark_batch.errors import StoreBusyError
from landmark_batch.object_path import ObjectPath

from . import durable
from .layout import StoreLayout
from .object_lock import object_mutex

_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


def try_lock(descriptor: int, *, shared: bool = False) -> bool | None:
    """True: locked. False: another holds it. None: this file system has no locks. shared: only to see whether it is free."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return None
        raise
    return True


@contextlib.contextmanager
def store_mutex(layout: StoreLayout, *, timeout: float = 60.0) -> Iterator[None]:
    """Held for milliseconds, around changes to owners, fence, discards and `done`. Not reentrant. The kernel frees it if its holder dies.

    Raises StoreBusyError after `timeout` seconds, StoreError if the lock file cannot be opened.
    """
    if isinstance(layout.lock, ObjectPath):
        with object_mutex(layout.lock, timeout=timeout):
            yield
        return
    try:
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise durable.store_error(error, layout.lock) from error
    try:
        deadline = time.monotonic() + timeout
        while try_lock(descriptor) is False:
            if time.monotonic() > deadline:
                raise StoreBusyError(
                    f"{layout.root}: another process has held its lock for {timeout:.0f} s", remedy="see whether a process hangs"
                )
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)
