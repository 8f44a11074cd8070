"""Ledger lines: what is said about frames, as values and as checksummed JSON."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import xxhash
from numpy.typing import NDArray

Order = tuple[int, int, int, int, str]  # (generation, 1 for frames or 0 for a discard, sequence, epoch, writer)


class FrameRecord(NamedTuple):
    """A frame that stands in the store.

    fingerprint: of everything that changes its pixels. settings: digest of the settings it was rendered with ('' unknown).
    digests: {output: xxh3_128 of its pixels}. sizes: {output: bytes of its chunk file}. seconds: its share of its chunk's render time.
    at: seconds since 1970 by the writer's clock; for people, never for order.
    """

    frame: int
    fingerprint: str
    digests: Mapping[str, str]
    sizes: Mapping[str, int]
    seconds: float
    attempt: int
    worker: str
    at: float
    host: str
    pid: int
    epoch: int
    generation: int
    settings: str


_COMMON = FrameRecord._fields[4:]


def pixel_digest(pixels: NDArray[Any]) -> str:
    """xxh3_128 of one frame's decoded pixels, with shape and dtype, so that nothing else can pass for it. pixels: [H, W(, C)]."""
    data = np.ascontiguousarray(pixels)
    digest = xxhash.xxh3_128(f"{data.dtype.newbyteorder('<').str} {data.shape} ".encode())
    digest.update(data.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def frames_line(records: Sequence[FrameRecord], *, group: str = "") -> dict[str, Any]:
    """One line for records that share everything but frame, fingerprint, digests, sizes."""
    first = records[0]
    return {
        "kind": "frames",
        "generation": first.generation,
        "epoch": first.epoch,
        "group": group,
        "attempt": first.attempt,
        "worker": first.worker,
        "host": first.host,
        "pid": first.pid,
        "at": first.at,
        "seconds": first.seconds,
        "settings": first.settings,
        "frames": [record.frame for record in records],
        "fingerprints": [record.fingerprint for record in records],
        "digests": {name: [record.digests[name] for record in records] for name in first.digests},
        "sizes": {name: [record.sizes[name] for record in records] for name in first.sizes},
    }


def discard_line(frames: Iterable[int], generation: int, reason: str, at: float) -> dict[str, Any]:
    """A tombstone: what was recorded of these frames before this generation is void."""
    return {"kind": "discard", "generation": generation, "reason": reason, "at": at, "frames": sorted(frames)}


def record_lines(records: Iterable[FrameRecord]) -> list[dict[str, Any]]:
    """As few lines as say the same: neighbours that came from one commit share one."""

    def shared(record: FrameRecord) -> tuple[object, ...]:
        return (
            record.generation,
            record.epoch,
            record.attempt,
            record.worker,
            record.host,
            record.pid,
            record.at,
            record.seconds,
            record.settings,
        )

    return [frames_line(list(group)) for _, group in groupby(records, key=shared)]


def line_order(values: Mapping[str, Any], writer: str) -> Order:
    """Place of a line in the ledger's total order (see `ledger`)."""
    is_frames = int(values["kind"] == "frames")
    return (int(values["generation"]), is_frames, int(values["sequence"]), int(values.get("epoch", 0)), writer)


def line_frames(values: Mapping[str, Any]) -> list[int]:
    """Frames of a 'frames' line that `line_records` can make records of. Raises KeyError, TypeError or ValueError if it is none of ours."""
    frames, columns = values["frames"], [*values["digests"].values(), *values["sizes"].values()]
    if (
        any(len(column) != len(frames) for column in (values["fingerprints"], *columns))
        or values["sizes"].keys() != values["digests"].keys()
    ):
        raise ValueError("columns of different lengths")
    missing = [name for name in _COMMON if name not in values]
    if missing:
        raise KeyError(missing[0])
    return list(frames)


def line_records(values: Mapping[str, Any]) -> list[FrameRecord]:
    """Records of a 'frames' line. Raises KeyError, TypeError or ValueError if it is none of ours."""
    digests, sizes = values["digests"], values["sizes"]
    names, common = tuple(digests), tuple(values[name] for name in _COMMON)
    columns = zip(
        values["frames"],
        values["fingerprints"],
        zip(*(digests[name] for name in names), strict=True),
        zip(*(sizes[name] for name in names), strict=True),
        strict=True,
    )
    return [
        FrameRecord(frame, print_, dict(zip(names, digest, strict=True)), dict(zip(names, size, strict=True)), *common)
        for frame, print_, digest, size in columns
    ]
