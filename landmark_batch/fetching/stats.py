"""What fetching cost: bytes, loads and waits, counted by the threads that read and the one that renders."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field, fields


@dataclass
class FetchStats:
    """Cumulative counters of one BlockCache.

    blocks_read: blocks brought into host memory. bytes_read: of their planes as stored, read from the store; bytes_shared: of those that
    another rank of the host had read. bytes_copied: put into slots of a GPU from host memory, bytes_pulled: from slots of another rank's
    GPU, with copy_seconds for both by the device's clock (0 on a CPU). loads: blocks put into slots. hits: blocks of a hold that were in
    their slots when it was entered. stalls, stall_seconds: holds that rendering waited for, and how long: the host for reads, the device
    for copies. host_peak_bytes: buffers in host memory, and this rank's part of what ranks share. slot_bytes: tables of all slots.
    """

    blocks_read: int = 0
    bytes_read: int = 0
    bytes_shared: int = 0
    bytes_copied: int = 0
    bytes_pulled: int = 0
    copy_seconds: float = 0.0
    loads: int = 0
    hits: int = 0
    stalls: int = 0
    stall_seconds: float = 0.0
    host_peak_bytes: int = 0
    slot_bytes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False, compare=False)

    def add(self, **counts: int | float) -> None:
        """Add to counters, by name; from any thread."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, getattr(self, name) + count)

    def raise_to(self, **counts: int) -> None:
        """Make counters at least these, by name."""
        with self._lock:
            for name, count in counts.items():
                setattr(self, name, max(getattr(self, name), count))

    @property
    def copy_rate(self) -> float:
        """Achieved GB/s (1e9 bytes) of the copies to the device; 0 where none was measured."""
        return (self.bytes_copied + self.bytes_pulled) / self.copy_seconds / 1e9 if self.copy_seconds > 0 else 0.0

    def as_dict(self) -> dict[str, int | float]:
        """The counters as plain numbers."""
        with self._lock:
            return {entry.name: getattr(self, entry.name) for entry in fields(self) if not entry.name.startswith("_")}
