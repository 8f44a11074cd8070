"""What `bench kernels` found: a table for people, JSON for scripts."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from typing import Any

from landmark_batch.workflows.bench_side import Ceilings
from landmark_batch.workflows.saved_report import SavedReport

HEAD = ("stage", "ms a frame", "share", "GB/s", "of copy", "GFLOP/s", "of GEMM", "torch ms", "torch / this")


@dataclass(frozen=True)
class StageRow:
    """seconds: of a frame, median; on a CPU the threads' sum over their number. None: not counted, or torch has no such stage."""

    name: str
    seconds: float
    bytes_per_second: float | None
    flop_per_second: float | None
    torch_seconds: float | None


@dataclass(frozen=True)
class FrameTime:
    """From the pose to uint8 on the host: the median, and every frame's."""

    width: int
    height: int
    runtime: str
    seconds: float
    each: tuple[float, ...]


@dataclass(frozen=True)
class KernelReport(SavedReport):
    """rows: stages at the first size. times: by size and runtime. ratio: torch over this runtime at that size, None for torch itself.

    product: the matrix product that rows are held against, FLOP/s. counts: samples a mean ray. counted: what FLOP and bytes are.
    """

    scene: str
    device: str
    device_type: str
    threads: int
    runtime: str
    precision: str
    mode: str
    samples: int
    poses: int
    rows: tuple[StageRow, ...]
    times: tuple[FrameTime, ...]
    ratio: float | None
    ceilings: Ceilings
    product: float
    counts: dict[str, float]
    counted: tuple[str, ...]
    notes: tuple[str, ...]
    machine: dict[str, Any]
    at: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def title(self) -> str:
        first = self.times[0]
        place = f"{self.device}, {self.threads} thread{'s' * (self.threads > 1)}" if self.device_type == "cpu" else self.device
        poses = f"{self.poses} pose{'s' * (self.poses > 1)}, medians"
        size = f"{first.width}×{first.height}, {self.samples} samples a ray ({self.mode}), {poses}"
        return f"{self.scene}: {self.runtime}, {self.precision}, {size}; {place}"

    def table(self) -> list[tuple[str, ...]]:
        """Rows under HEAD: stages, what is left of the frame, the frame."""
        frame = self.times[0].seconds
        beside = next((item.seconds for item in self.times if item.runtime == "torch" and self.runtime != "torch"), None)
        rest = frame - sum(row.seconds for row in self.rows)
        rest_row = StageRow("the rest", max(0.0, rest), None, None, None)
        rows = [*self.rows, rest_row, StageRow("frame", frame, None, None, beside)]
        return [
            (
                row.name,
                f"{row.seconds * 1e3:.2f}",
                f"{row.seconds / frame:.0%}",
                _number(row.bytes_per_second, 1e-9),
                _share(row.bytes_per_second, self.ceilings.copy),
                _number(row.flop_per_second, 1e-9),
                _share(row.flop_per_second, self.product),
                _number(row.torch_seconds, 1e3),
                f"{self.ratio if row.name == 'frame' and self.ratio else row.torch_seconds / row.seconds:.1f}"
                if row.torch_seconds and row.seconds
                else "",
            )
            for row in rows
        ]

    def remarks(self) -> list[str]:
        """The lines below the table."""
        half = f", fp16 {self.ceilings.fp16 * 1e-12:.0f} TFLOP/s" if self.ceilings.fp16 else ""
        lines = [
            "samples a ray: " + ", ".join(f"{value:.1f} {name}" for name, value in self.counts.items()),
            f"ceilings of the same run: copy {self.ceilings.copy * 1e-9:.1f} GB/s, fp32 {self.ceilings.fp32 * 1e-9:.0f} GFLOP/s{half}",
            *(
                f"frame, pose to uint8 on the host: {item.seconds * 1e3:.1f} ms at {item.width}×{item.height} with {item.runtime}"
                for item in self.times
            ),
        ]
        return [*lines, *(f"counted: {line}" for line in self.counted), *(f"note: {line}" for line in self.notes)]


def _number(value: float | None, scale: float) -> str:
    if value is None:
        return ""
    return f"{value * scale:.2f}" if value * scale < 100 else f"{value * scale:,.0f}"


def _share(value: float | None, ceiling: float) -> str:
    return "" if value is None else f"{value / ceiling:.0%}"
