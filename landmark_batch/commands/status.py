"""status: how far a store is, from its ledger alone. No torch, no scene, no cluster."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

import click

from landmark_batch.chunks import format_frame_ranges
from landmark_batch.commands.common import human_bytes, human_time, json_option, say_json, say_table
from landmark_batch.object_path import StorePath, as_store_path

if TYPE_CHECKING:
    from landmark_batch.frames.records import FrameRecord
    from landmark_batch.frames.store import FrameStore

_RECENT = 600.0  # seconds before the last commit that make its speed
_CHUNKS = 4  # or as long as so many chunks take
_PAUSE = 5.0  # seconds without a frame in hand: a job stood still, and the time says nothing of its speed
_LISTED = 20  # ranges shown before the rest is counted


@click.command("status")
@click.argument("store", type=as_store_path)
@json_option
def command(store: StorePath, as_json: bool) -> None:
    """How far STORE is: frames done and missing, size, speed, who writes it now, what it was rendered with."""
    from landmark_batch.frames.store import FrameStore

    found = examine(FrameStore.open(store))
    if as_json:
        say_json(found)
    else:
        _say(found)


def examine(store: FrameStore) -> dict[str, Any]:
    """Everything status shows, JSON-ready."""
    from landmark_batch.frames.owner import store_owners
    from landmark_batch.workflows.control import running_jobs
    from landmark_batch.workflows.predicted import compare_prediction

    finished = store.finished()
    total = store.spec.frames
    missing = [frame for frame in range(total) if frame not in finished]
    settings = store.settings()
    values: Mapping[str, Any] = settings.values if settings is not None else {}
    speed = recent_speed(finished)
    per_frame = store.measured_bytes_per_frame()
    last = max((record.at for record in finished.values()), default=None)
    workers = Counter(_worker(record) for record in finished.values())
    return {
        "store": str(store.path),
        "name": store.name,
        "frames": total,
        "done": len(finished),
        "missing": len(missing),
        "missing_frames": format_frame_ranges(missing),
        "damaged_frames": format_frame_ranges(_remembered_damage(store)),
        "size": [store.spec.width, store.spec.height],
        "outputs": {output.name: output.dtype for output in store.spec.outputs},
        "bytes": round((per_frame or 0.0) * len(finished)),
        "bytes_to_come": round(per_frame * len(missing)) if per_frame is not None else None,
        "last_commit": last,
        "workers": dict(workers.most_common()),
        "frames_per_second": speed,
        "seconds_to_come": len(missing) / speed if speed else None,
        "predicted": compare_prediction(store.path, total, finished),
        "attempts": sum(record.attempt > 0 for record in finished.values()),
        "written_by": [str(entry) for entry in store_owners(store.path)],
        "jobs": [job.describe() for job in running_jobs(store.path)],
        "settings": dict(values),
        "mixed": _mixed(store, finished),
    }


def _mixed(store: FrameStore, finished: Mapping[int, FrameRecord]) -> list[dict[str, Any]]:
    """Frames that were rendered with other settings than the store's newest, and what differs (an `--update` of a part leaves some)."""
    from landmark_batch.frames.fingerprint import settings_difference

    newest = store.settings()
    frames: dict[str, list[int]] = {}
    for frame, record in finished.items():
        if record.settings not in ("", store.definition.settings):
            frames.setdefault(record.settings, []).append(frame)
    found = [(store.settings(digest), some) for digest, some in frames.items()]
    return [
        {"frames": format_frame_ranges(some), "differ": settings_difference(newest.values, other.values)}
        for other, some in found
        if newest is not None and other is not None
    ]


def _worker(record: FrameRecord) -> str:
    return record.worker if record.worker.startswith(f"{record.host}/") else f"{record.host}/{record.worker}"


def recent_speed(finished: Mapping[int, FrameRecord]) -> float | None:
    """Frames a second over the ten minutes before the last commit, or over a few chunks where these take longer, since the last pause in
    which nobody rendered; None without a frame.

    A chunk counts from the start of its rendering, so that several workers that commit at the same instant are no burst.
    """
    chunks: dict[tuple[str, str, float], list[float]] = {}
    for record in finished.values():
        chunks.setdefault((record.host, record.worker, record.at), []).append(record.seconds)
    spans = [(at - sum(seconds), at, len(seconds)) for (_, _, at), seconds in chunks.items()]
    if not spans:
        return None
    last = max(at for _, at, _ in spans)
    longest = max(at - start for start, at, _ in spans if at >= last - _RECENT)
    first = last - max(_RECENT, _CHUNKS * longest)
    recent = [(start, at, count) for start, at, count in spans if at > first]
    begin = max(first, _since_pause(recent, max(_PAUSE, longest)))
    recent = [(start, at, count) for start, at, count in recent if at > begin]
    if begin >= last:
        return None
    done = sum(count * min(1.0, (at - begin) / (at - start)) if at > start else count for start, at, count in recent)
    return done / (last - begin)


def _since_pause(spans: list[tuple[float, float, int]], pause: float) -> float:
    """When the first of the newest spans begins that no longer pause parts from each other."""
    begin = end = -math.inf
    for start, at, _ in sorted(spans):
        if start - end > pause:
            begin = start
        end = max(end, at)
    return begin


def _remembered_damage(store: FrameStore) -> list[int]:
    """Frames that `verify` found damaged and nobody has rendered since."""
    from landmark_batch.frames.sealed import DamagedError, read_sealed

    try:
        return [int(frame) for frame in read_sealed(store.layout.damaged)["frames"]]
    except (OSError, DamagedError, LookupError):
        return []


def _say(found: Mapping[str, Any]) -> None:
    share = found["done"] / found["frames"]
    rows = [
        ["frames", f"{found['done']:,} of {found['frames']:,} done ({share:.1%})"],
        ["missing", _shorten(found["missing_frames"]) or "none"],
    ]
    if found["damaged_frames"]:
        rows.append(["damaged", f"{_shorten(found['damaged_frames'])} (found by verify; the next render renders them again)"])
    outputs = ", ".join(f"{name} {dtype}" for name, dtype in found["outputs"].items())
    rows.append(["holds", f"{found['size'][0]}x{found['size'][1]}, {outputs}"])
    to_come = f", about {human_bytes(found['bytes_to_come'])} to come" if found["bytes_to_come"] else ""
    rows.append(["frames take", human_bytes(found["bytes"]) + to_come])
    if found["last_commit"] is not None:
        when = datetime.fromtimestamp(found["last_commit"]).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
        rows.append(["last commit", f"{when} ({human_time(max(0.0, time.time() - found['last_commit']))} ago)"])
        shown = [f"{name} ({count:,})" for name, count in list(found["workers"].items())[:8]]
        rows.append(["rendered by", ", ".join(shown) + (f" and {len(found['workers']) - 8} more" if len(found["workers"]) > 8 else "")])
    if found["frames_per_second"] is not None:
        rows.append(["speed", f"{found['frames_per_second']:.2f} frames/s when last seen"])
        if found["missing"]:
            rows.append(["rest", f"about {human_time(found['seconds_to_come'])} at that speed"])
    if found["predicted"] is not None and (text := _predicted(found["predicted"])):
        rows.append(["predicted", text])
    if found["attempts"]:
        rows.append(["retried", f"{found['attempts']:,} frames, after a failure or a pause"])
    rows.append(["written now", "; ".join(found["written_by"]) or "by nobody"])
    rows += [["job", text] for text in found["jobs"]]
    recorded = {key.rpartition(".")[2]: str(value) for key, value in found["settings"].items()}
    rows += [[key, recorded[key]] for key in ("runtime", "device", "precision") if key in recorded]
    rows += [["mixed", f"{_shorten(other['frames'])} differ: {', '.join(other['differ'])}"] for other in found["mixed"] if other["differ"]]
    click.echo(f"{found['store']}: {found['name']}")
    say_table(rows, indent="  ")


def _predicted(found: Mapping[str, Any]) -> str:
    """Seconds of rendering over all workers, expected and taken, of the frames that stand; and what is to come."""
    parts = []
    if found["frames"] and found["predicted"] > 0:
        off = found["actual"] / found["predicted"] - 1
        of = f" for {found['frames']:,} frames"
        parts.append(f"{human_time(found['predicted'])} of rendering{of}, they took {human_time(found['actual'])} ({off:+.0%})")
    if found["to_come"] > 0:
        parts.append(f"{human_time(found['to_come'])} of rendering to come")
    return "; ".join(parts)


def _shorten(ranges: str) -> str:
    parts = ranges.split(",")
    return ranges if len(parts) <= _LISTED else f"{','.join(parts[:_LISTED])} and {len(parts) - _LISTED} more ranges (--json lists all)"
