"""What processes of a run tell each other: packed small, and the same when it has arrived."""

from __future__ import annotations

from typing import Any

import msgpack
import numpy as np
import pytest

from landmark_batch.events import ChunkDone, ChunkFailed, ChunkStarted, Event, JobDone, JobStarted, Preparing
from landmark_batch.workflows.messages import events_message, receipt_message, told_events, told_receipt

EVENTS: list[Event] = [
    Preparing("kernels", 0.5),
    JobStarted("city", "/a.zarr", frames=300, todo=200, chunks=2, workers=2, runtime="torch", dashboard=None),
    ChunkStarted("c", "w0"),
    ChunkDone("c", (3, 4, 5, 9), "w0", 0, 1.5, {"render": 1.0}, {"rays": 7}, cost=2.0),
    ChunkDone("c", (), "w0", 1, 0.0, {}, {}),
    ChunkFailed("c", tuple(range(128)), "w1", "no: 1-2", final=True),
    JobDone("city", "incomplete", 190, (0, 299), 12.0, 1.0),
]


def arrived(message: dict[str, Any]) -> dict[str, Any]:
    """As it comes out of a Dask topic: with the address of who sent it, lists for tuples."""
    return dict(msgpack.unpackb(msgpack.packb({**message, "worker": "tcp://127.0.0.1:1"})))


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_events_arrive_as_they_were_told(event: Event) -> None:
    assert told_events(arrived(events_message([event]))) == [event]


def test_events_keep_their_order() -> None:
    assert told_events(arrived(events_message(EVENTS))) == EVENTS


def test_a_receipt_arrives_without_digests() -> None:
    receipt = {"frames": [4, 5, 6], "skipped": [], "digests": {"rgb": ["a", "b", "c"]}, "seconds": 1.0, "stages": {"render": 0.5}}
    message = receipt_message("c", 2, receipt)
    assert (message["chunk"], message["attempt"]) == ("c", 2)
    assert told_receipt(arrived(message)) == {"frames": [4, 5, 6], "skipped": [], "seconds": 1.0, "stages": {"render": 0.5}}
    assert told_receipt(arrived(receipt_message("c", 0, {"stopped": True}))) == {"stopped": True}


def test_long_lists_of_frames_are_short() -> None:
    done = ChunkDone("c", tuple(range(100_000)), "w0", 0, 1.5, {}, {})
    assert len(msgpack.packb(events_message([done]))) < 300


def test_a_receipt_that_is_no_text_is_refused() -> None:
    with pytest.raises(TypeError):
        receipt_message("c", 0, {"frames": [1], "counters": {"rays": np.int64(3)}})
