"""Probe: what a few rendered frames of a job tell about all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from landmark_batch.workflows.costs import CostModel


@dataclass(frozen=True)
class Probe:
    """model: seconds of a frame of the job on one worker or group. groups: that rendered side by side.

    startup: seconds from the command to the first frame. between: seconds a worker waits between two chunks. bytes_per_frame: on disk.
    host_memory: bytes of all processes at their peak, 0 where they are elsewhere; gpu_memory: of the fullest GPU, None without.
    frames: what was measured, one number a place, with its samples, and seconds scaled to the whole frame. width, height: of its windows.
    """

    model: CostModel
    groups: int
    startup: float
    between: float
    bytes_per_frame: float
    host_memory: int
    gpu_memory: int | None
    frames: tuple[int, ...]
    samples: tuple[float, ...]
    seconds: tuple[float, ...]
    width: int
    height: int

    def wall(self, seconds: float, chunks: int) -> float:
        """Wall time of frames that take one worker so long, in so many chunks, start-up left out."""
        tail = seconds / chunks / 2 if chunks > self.groups > 1 else 0.0  # groups end within a chunk of each other
        return (seconds + self.between * chunks) / max(1, min(self.groups, chunks)) + tail

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Probe:
        """What `as_dict` gave, also after a way through JSON. Raises KeyError or TypeError for anything else."""
        lists: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        model: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in values["model"].items()}
        lists["model"] = CostModel(**model)
        return cls(**lists)
