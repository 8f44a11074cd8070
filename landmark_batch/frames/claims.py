"""Claims: which of several processes that share a store renders which frame. One file a frame, made with O_EXCL.

A claim is only about not doing work twice. If two processes ever believe that they hold the same one (a file system whose
locks do not reach the other host), they render the same pixels and the store is none the worse.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from landmark_batch.object_path import ObjectPath, StorePath, at_once

from . import durable
from .layout import StoreLayout
from .locks import store_mutex

T = TypeVar("T")
_SETTLE_SECONDS = 5.0  # a claim without a name is being written, or its maker died in the act


def claim_frames(layout: StoreLayout, owner: str, frames: Iterable[int], is_live: Callable[[str], bool]) -> list[int]:
    """The frames of `frames` that `owner` holds now, those it held before included. Raises StoreError."""
    held: list[int] = []
    taken: list[int] = []
    try:
        wanted = sorted(set(frames))
        for frame, made in zip(wanted, _each(layout, lambda file: _create(file, owner), wanted), strict=True):
            (held if made else taken).append(frame)
        abandoned = []
        for frame in taken:
            holder = _holder(layout.claims / str(frame))
            if holder == owner:
                held.append(frame)
            elif holder is not None and not is_live(holder):
                abandoned.append(frame)
        if abandoned:
            with store_mutex(layout):
                for frame in abandoned:
                    file = layout.claims / str(frame)
                    holder = _holder(file)
                    if holder is not None and not is_live(holder):
                        file.unlink(missing_ok=True)
                        if _create(file, owner):
                            held.append(frame)
    except OSError as error:
        raise durable.store_error(error, layout.claims) from error
    return sorted(held)


def release_frames(layout: StoreLayout, owner: str, frames: Iterable[int]) -> None:
    """Give up claims of `owner`; others' stay."""

    def release(file: StorePath) -> None:
        if _holder(file) == owner:
            file.unlink(missing_ok=True)

    _each(layout, release, list(frames))


def release_all(layout: StoreLayout, owner: str) -> None:
    release_frames(layout, owner, [int(file.name) for file in layout.claims.iterdir() if file.name.isdecimal()])


def remove_dead_claims(layout: StoreLayout, is_live: Callable[[str], bool]) -> None:
    """For an owner alone, or under the mutex."""
    for file in layout.claims.iterdir():
        holder = _holder(file)
        if holder is not None and not is_live(holder):
            file.unlink(missing_ok=True)


def _each(layout: StoreLayout, work: Callable[[StorePath], T], frames: Sequence[int]) -> list[T]:
    """work(claim) of each frame; in an object store many at once."""
    files = [layout.claims / str(frame) for frame in frames]
    return at_once(work, files) if isinstance(layout.claims, ObjectPath) else [work(file) for file in files]


def _create(file: StorePath, owner: str) -> bool:
    if isinstance(file, ObjectPath):
        try:
            file.put(owner.encode(), over=None)
        except FileExistsError:
            return False
        return True
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return False
    try:
        durable.write_all(descriptor, owner.encode())
    finally:
        os.close(descriptor)
    return True


def _holder(file: StorePath) -> str | None:
    """Id of the claim's holder; '' for a nameless one that no one will name any more; None if there is none or it is just being made."""
    try:
        text = file.read_text(encoding="utf-8", errors="replace")
        if text:
            return text
        return "" if time.time() - file.stat().st_mtime > _SETTLE_SECONDS else None
    except FileNotFoundError:
        return None
