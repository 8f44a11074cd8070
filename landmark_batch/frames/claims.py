"""Claims: which of several processes that share a store renders which frame. One small file a process lists all that it has in hand.

A process writes what it wants into its own list first and then looks for others: of two that want a frame at once at least one sees
the other's wish, and gives way under the store's mutex. Lists of processes that are dead count for nothing. A process that finds
itself alone has written one file and looked into one folder: who comes later reads its list.

A claim is only about not doing work twice. If two processes ever believe that they hold the same one (a file system whose
locks do not reach the other host), they render the same pixels and the store is none the worse.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from landmark_batch.chunks import format_frame_ranges, parse_frame_ranges
from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.object_path import StorePath

from . import durable
from .layout import PARTIAL, StoreLayout
from .locks import store_mutex

_log = logging.getLogger(__name__)
_NO_LIMIT = 2**63


class FrameClaims:
    """What the owner `owner` of a store claims. others: ids of the other living ones. Thread-safe."""

    def __init__(self, layout: StoreLayout, owner: str, others: Callable[[], Sequence[str]]) -> None:
        self._layout = layout
        self._file = layout.claims / owner
        self._others = others
        self._held: frozenset[int] = frozenset()
        self._lock = threading.Lock()

    def take(self, frames: Iterable[int]) -> list[int]:
        """Those of `frames` that are claimed here from now on, those that were before included. Ascending. Raises StoreError."""
        wanted = frozenset(frames)
        with self._lock:
            before = self._held
            if not wanted <= before:
                try:
                    self._write(before | wanted)
                    if self._others():
                        with store_mutex(self._layout):
                            taken = frozenset[int]().union(*(_listed(self._layout.claims / other) for other in self._others()))
                            self._write(before | (wanted - taken))
                except BaseException:
                    self._held = before  # what stands in the list besides keeps others from it until the list is written again
                    raise
            return sorted(wanted & self._held)

    def give_up(self, frames: Iterable[int], *, later: bool = False) -> None:
        """These are claimed no more, if they were. Others learn of it at once; later, or on a full disk: when the list is next written."""
        with self._lock:
            left = self._held.difference(frames)
            if left != self._held and not later:
                try:
                    self._write(left)
                except StoreError as error:
                    _log.warning("%s", error)
            self._held = left

    def give_up_all(self) -> None:
        """Raises StoreError."""
        with self._lock:
            self._write(frozenset())

    def _write(self, frames: frozenset[int]) -> None:
        """Whole or not at all for who reads it; it need not outlive a power cut."""
        text = format_frame_ranges(tuple(frames))
        try:
            if not text:
                self._file.unlink(missing_ok=True)
            elif isinstance(self._file, Path):
                temporary = self._file.with_name(f"{self._file.name}{PARTIAL}")
                temporary.write_text(text, encoding="ascii")
                temporary.replace(self._file)
            else:
                self._file.write_text(text)
        except OSError as error:
            raise durable.store_error(error, self._file) from error
        self._held = frames


def _listed(file: StorePath) -> list[int]:
    """Frames of a list; none where there is no list, or one of another kind."""
    try:
        return parse_frame_ranges(file.read_text(encoding="utf-8", errors="replace"), _NO_LIMIT)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise durable.store_error(error, file) from error
    except ConfigError as error:
        _log.warning("%s: not a list of frames: %s", file, error.message)
        return []


def remove_dead_claims(layout: StoreLayout, living: Callable[[], Iterable[str]]) -> None:
    """Remove the lists of all who are not among the living, as asked when the lists have been seen."""
    files: list[StorePath] = [*layout.claims.iterdir()]
    kept = set(living())
    for file in files:
        if file.name.removesuffix(PARTIAL) not in kept:
            file.unlink(missing_ok=True)
