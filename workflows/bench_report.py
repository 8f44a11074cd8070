"""What `bench job` found: rows, bars, one table."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from landmark_batch.workflows.saved_report import SavedReport

Tell = Callable[[str], None]


@dataclass(frozen=True)
class BenchRow:
    """One measured figure."""

    part: str
    what: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True)
class BenchBar:
    """A bound that a figure should keep."""

    what: str
    value: float
    limit: float
    unit: str = ""

    @property
    def held(self) -> bool:
        return self.value <= self.limit


@dataclass(frozen=True)
class BenchReport(SavedReport):
    """rows in the order measured; bars that are promised; machine and job they were measured on."""

    rows: tuple[BenchRow, ...]
    bars: tuple[BenchBar, ...]
    job: dict[str, Any]
    machine: dict[str, Any]
    at: float = field(default_factory=time.time)

    def as_dict(self) -> dict[str, Any]:
        bars = [{**asdict(bar), "held": bar.held} for bar in self.bars]
        return {"rows": [asdict(row) for row in self.rows], "bars": bars, "job": self.job, "machine": self.machine, "at": self.at}

    def describe(self) -> str:
        """The table for people."""
        rows = [(row.part, row.what, f"{row.value:,.{_digits(row.value)}f}", row.unit, row.note) for row in self.rows]
        rows += [
            ("bar", bar.what, f"{bar.value:.4g}", f"≤ {bar.limit:g}{bar.unit and f' {bar.unit}'}", "held" if bar.held else "NOT held")
            for bar in self.bars
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(5)]
        return "\n".join(f"{a:{widths[0]}}  {b:{widths[1]}}  {c:>{widths[2]}} {d:{widths[3]}}  {e}".rstrip() for a, b, c, d, e in rows)


class Findings:
    """Collects rows and bars. tell: gets one line a step."""

    def __init__(self, tell: Tell | None = None) -> None:
        self.tell = tell or (lambda line: None)
        self.rows: list[BenchRow] = []
        self.bars: list[BenchBar] = []

    def add(self, part: str, what: str, value: float, unit: str, note: str = "") -> None:
        self.rows.append(BenchRow(part, what, value, unit, note))

    def bar(self, what: str, value: float, limit: float, unit: str = "") -> None:
        self.bars.append(BenchBar(what, value, limit, unit))


def _digits(value: float) -> int:
    return 3 if abs(value) < 1 else 2 if abs(value) < 100 else 0
