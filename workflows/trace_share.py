"""What share of the time a worker's GPU, or its renderer, worked, by the trace that it wrote."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_HOST = {"frame": "frame", "profiler": "profiler"}  # ranges of the host that count by themselves
STEPS = frozenset(  # of rendering on a CPU, as the renderers name them; not what waits for other ranks
    (
        *("rays", "march", "density", "march and density", "weigh", "image"),
        *("appearance", "decode", "appearance and decode", "accumulate", "round"),
    )
)
Interval = tuple[float, float]


@dataclass(frozen=True)
class BusyShare:
    """what: 'GPU' (ranges measured on its streams), 'GPU kernels' (what it said it ran, for the first seconds) or 'renderer' (steps on
    the host). share: of `seconds`, from where the first frame begins to where the last one ends (of kernels: first to last).
    """

    what: str
    share: float
    seconds: float


def busy_shares(events: Iterable[Mapping[str, Any]]) -> list[BusyShare]:
    """Shares of one process by the events of its trace; none where nothing was rendered. Ranges that overlap count once. Time in which
    all waited for the profiler of kernels does not count.
    """
    found: dict[str, list[Interval]] = {"device": [], "kernel": [], "step": [], "frame": [], "profiler": []}
    for event in events:
        if event.get("ph") != "X":
            continue
        kind = str(event.get("cat", ""))
        if kind == "host":
            kind = _HOST.get(event["name"], "step" if event["name"] in STEPS else "")
        if kind in found:
            begin = float(event["ts"]) * 1e-6
            found[kind].append((begin, begin + float(event["dur"]) * 1e-6))
    shares = []
    if found["device"]:
        shares.append(_share("GPU", found["device"], [*found["frame"], *found["device"]], found["profiler"]))
        if found["kernel"]:
            shares.append(_share("GPU kernels", found["kernel"], found["kernel"], ()))
    elif found["step"] or found["frame"]:
        shares.append(_share("renderer", found["step"] or found["frame"], found["frame"] or found["step"], ()))
    return [share for share in shares if share.seconds > 0]


def read_trace(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a trace of ours, one a line; also of one whose process was killed. Raises OSError."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                event = json.loads(line.strip().rstrip(","))
            except ValueError:
                continue  # a bracket, or the line at which the process was killed
            if isinstance(event, dict):
                yield event


def describe_busy(paths: Sequence[Path]) -> list[str]:
    """A line for each kind of share, over the traces of all workers. Traces that cannot be read, or show no frame, are left out."""
    kinds: dict[str, list[tuple[str, BusyShare]]] = {}
    for path in paths:
        try:
            shares = busy_shares(read_trace(path))
        except OSError:
            continue
        for share in shares:
            kinds.setdefault(share.what, []).append((path.name.removesuffix(".trace.json").rpartition(".")[2], share))
    lines = []
    for what, of in kinds.items():
        seconds = sum(share.seconds for _, share in of)
        mean = sum(share.share * share.seconds for _, share in of) / seconds
        each = ", ".join(f"{worker} {share.share:.0%}" for worker, share in of) if len(of) > 1 else ""
        ends = "of kernels" if what == "GPU kernels" else "from first to last frame"
        lines.append(f"{what} busy: {mean:.0%} of {seconds / len(of):.1f} s {ends}" + (f" ({each})" if each else ""))
    return lines


def traces_of(log: Path, since: float = 0.0) -> list[Path]:
    """Traces beside a job's log that were written since then (time.time())."""
    return [path for path in sorted(log.parent.glob(f"{log.stem}.*.trace.json")) if path.stat().st_mtime >= since]


def _share(what: str, ranges: Sequence[Interval], bounds: Sequence[Interval], lost: Sequence[Interval]) -> BusyShare:
    """lost: when nothing could be rendered; what a device still did meanwhile counts neither."""
    low, high = min(begin for begin, _ in bounds), max(end for _, end in bounds)
    apart = _union(lost, low, high)
    seconds = high - low - _length(apart)
    busy = _length(_union([*ranges, *apart], low, high)) - _length(apart)
    return BusyShare(what, busy / seconds if seconds > 0 else 0.0, seconds)


def _union(ranges: Iterable[Interval], low: float, high: float) -> list[Interval]:
    """The same times within low and high, ascending, none of them twice."""
    found: list[Interval] = []
    until = low
    for begin, end in sorted(ranges):
        begin, end = max(begin, until), min(end, high)
        if end > begin:
            found.append((begin, end))
            until = end
    return found


def _length(ranges: Iterable[Interval]) -> float:
    return sum(end - begin for begin, end in ranges)
