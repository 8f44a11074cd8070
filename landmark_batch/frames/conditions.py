"""Whether an object store keeps its word: what is asked for on a condition must not be done where the condition does not hold."""

from __future__ import annotations

import contextlib
from functools import lru_cache

from landmark_batch.errors import StoreError
from landmark_batch.object_client import ObjectStoreError
from landmark_batch.object_path import ObjectPath

from .layout import StoreLayout
from .process import writer_tag


def require_conditions(layout: StoreLayout) -> None:
    """Nothing to do for a folder. Raises StoreError where the server ignores or refuses conditions, ObjectStoreError."""
    if isinstance(layout.hidden, ObjectPath):
        _try(layout.hidden)


@lru_cache(maxsize=16)
def _try(hidden: ObjectPath) -> None:
    probe = hidden / f"{writer_tag('probe')}.partial"
    try:
        _ask(probe)
    except StoreError:
        with contextlib.suppress(ObjectStoreError):  # who may not write may not delete either: the first refusal says more
            probe.unlink()
        raise
    probe.unlink()


def _ask(probe: ObjectPath) -> None:
    first = probe.put(b"first", over=None)
    second = probe.put(b"second", over=first)
    if not first or _does(probe, b"third", None) or _does(probe, b"fourth", first) or first == second:
        raise StoreError(
            f"{probe.bucket}: this server ignores conditions of writes (If-None-Match, If-Match): two writers could undo each other",
            remedy="use a server that knows them, as Amazon S3, Google Cloud Storage, Azure and MinIO do, or write to a folder",
        )


def _does(probe: ObjectPath, data: bytes, over: dict[str, str] | None) -> bool:
    try:
        probe.put(data, over=over)
    except FileExistsError:
        return False
    return True
