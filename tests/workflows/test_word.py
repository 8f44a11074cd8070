"""What a worker says of its chunks: few messages, none of them lost or late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from landmark_batch.workflows.messages import told_receipt
from landmark_batch.workflows.word import HOLD_SECONDS, ChunkWord

RECEIPT = {"frames": [1, 2], "skipped": [], "stages": {}, "counters": {}}


class Loop:
    """Of a worker: what is to be done later."""

    def __init__(self) -> None:
        self.later: list[tuple[float, Callable[[], None]]] = []

    def add_callback(self, call: Callable[..., Any], *args: Any) -> None:
        call(*args)

    def call_later(self, seconds: float, call: Callable[[], None]) -> None:
        self.later.append((seconds, call))


class Worker:
    name = "w0"
    address = "tcp://127.0.0.1:1"

    def __init__(self) -> None:
        self.loop = Loop()
        self.told: list[dict[str, Any]] = []

    def log_event(self, topic: str, message: dict[str, Any]) -> None:
        assert (topic, message["name"], message["address"]) == ("t", self.name, self.address)
        assert message["at"] > 0
        self.told.append(message)


@pytest.fixture
def worker() -> Worker:
    return Worker()


@pytest.fixture
def word(worker: Worker) -> ChunkWord:
    return ChunkWord(worker, "t")


def end(word: ChunkWord, chunk: str) -> None:
    """As the task of a chunk ends."""
    word.receipt(f"key-{chunk}", chunk, 0, RECEIPT)
    word.end(chunk)
    word.task_ended(f"key-{chunk}")


def test_a_beginning_travels_with_what_came_of_the_chunk_before(worker: Worker, word: ChunkWord) -> None:
    word.begin("a")
    assert [message["chunk"] for message in worker.told] == ["a"], "nothing is in hand: told at once"
    word.begin("b")
    assert len(worker.told) == 1
    end(word, "a")
    assert len(worker.told) == 2
    assert (worker.told[1]["chunk"], worker.told[1]["attempt"], told_receipt(worker.told[1])) == ("a", 0, RECEIPT)
    assert worker.told[1]["begun"]["chunk"] == "b"
    assert worker.told[1]["begun"]["address"] == worker.address
    end(word, "b")
    assert "begun" not in worker.told[2]
    word.begin("c")
    assert worker.told[3]["chunk"] == "c"


def test_a_beginning_does_not_wait_for_a_chunk_that_is_long_written_or_fails(worker: Worker, word: ChunkWord) -> None:
    word.begin("a")
    word.begin("b")
    ((seconds, flush),) = worker.loop.later
    assert seconds == HOLD_SECONDS
    flush()
    flush()
    assert [message["chunk"] for message in worker.told] == ["a", "b"]
    word.end("a")  # it failed
    word.task_ended("key-a")
    assert len(worker.told) == 2


def test_two_beginnings_are_both_told(worker: Worker, word: ChunkWord) -> None:
    for chunk in "abc":
        word.begin(chunk)
    assert [message["chunk"] for message in worker.told] == ["a", "b"]
    end(word, "a")
    assert worker.told[2]["begun"]["chunk"] == "c"
