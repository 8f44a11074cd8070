"""What a run's processes say to each other through Dask's topics, packed small: the scheduler keeps the last thousands of such messages,
and those who pass them on need not look into them: what is long is one text.

Messages travel in the stream that a process has to the scheduler anyway, together with what else it has to say.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from landmark_batch.chunks import format_frame_ranges, parse_frame_ranges
from landmark_batch.events import Event, event_from_record, event_record

_LISTS = ("frames", "skipped", "missing")  # of frames: as ranges


def topic(run: str) -> str:
    """Dask topic on which the workers of a run tell what they begin, what has come of it and what befalls them."""
    return f"landmark-batch-{run}"


def events_topic(run: str) -> str:
    """Dask topic on which the driver of a run tells its events."""
    return f"landmark-batch-events-{run}"


def events_message(events: Sequence[Event]) -> dict[str, Any]:
    """Events on their way; in an entry of their own, since Dask adds to a message who sent it."""
    return {"events": _text([_packed(event_record(event)) for event in events])}


def told_events(message: Mapping[str, Any]) -> list[Event]:
    return [event_from_record(_unpacked(record)) for record in json.loads(message["events"])]


def receipt_message(chunk: str, attempt: int, receipt: Mapping[str, Any]) -> dict[str, Any]:
    """What came of a chunk's task, ahead of Dask's word that it has ended, so that nobody has to fetch it. Without the pixels' digests.

    Raises TypeError where it holds something that does not travel so.
    """
    told = {name: value for name, value in receipt.items() if name != "digests"}
    return {"chunk": chunk, "attempt": attempt, "receipt": _text(_packed(told))}


def told_receipt(message: Mapping[str, Any]) -> dict[str, Any]:
    return _unpacked(json.loads(message["receipt"]))


def _text(values: Any) -> str:
    return json.dumps(values, separators=(",", ":"))


def _packed(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: format_frame_ranges(value) if name in _LISTS and isinstance(value, list | tuple) else value for name, value in values.items()
    }


def _unpacked(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: (parse_frame_ranges(value, sys.maxsize) if value else []) if name in _LISTS and isinstance(value, str) else value
        for name, value in values.items()
    }
