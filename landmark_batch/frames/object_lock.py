"""A lock in an object store: one object that is taken and freed by writing it over the very state that was seen, never by force."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator

from landmark_batch.errors import StoreBusyError
from landmark_batch.object_client import ObjectStoreError
from landmark_batch.object_path import ObjectPath, Version

from .process import tag_process, writer_tag

_log = logging.getLogger(__name__)
_FREE = b"free"
_STALE_SECONDS = 20.0  # by the clock of who waits: a holder that has not freed it by then is taken for dead
_WAIT_SECONDS = (0.02, 0.5)  # between two looks: the first, and the longest


@contextlib.contextmanager
def object_mutex(lock: ObjectPath, *, timeout: float) -> Iterator[None]:
    """Held while the block runs. A holder that died on this machine is known at once, any other after 20 s.

    Raises StoreBusyError after `timeout` seconds, ObjectStoreError.
    """
    mine = writer_tag("lock").encode()
    version = _take(lock, mine, timeout)
    try:
        yield
    finally:
        try:
            lock.put(_FREE, over=version)
        except FileExistsError:
            _log.warning("%s: another process took it over, since this one held it for too long", lock)
        except ObjectStoreError as error:
            _log.warning("%s: not freed; others wait for %.0f s: %s", lock, _STALE_SECONDS, error.message)


def _take(lock: ObjectPath, mine: bytes, timeout: float) -> Version:
    began, wait = time.monotonic(), _WAIT_SECONDS[0]
    seen: Version | None = None
    since = began
    while True:
        with contextlib.suppress(FileExistsError):  # another was quicker
            try:
                holder, stat = lock.read()
            except FileNotFoundError:
                return lock.put(mine, over=None)
            if stat.version != seen:
                seen, since = stat.version, time.monotonic()
            if holder == _FREE or _is_dead(holder) or time.monotonic() - since > _STALE_SECONDS:
                return lock.put(mine, over=stat.version)
        if time.monotonic() - began > timeout:
            raise StoreBusyError(f"{lock}: another process has held this lock for {timeout:.0f} s", remedy="see whether a process hangs")
        time.sleep(wait)
        wait = min(2 * wait, _WAIT_SECONDS[1])


def _is_dead(holder: bytes) -> bool:
    process = tag_process(holder.decode("utf-8", "replace"))
    return process is not None and process.is_dead()
