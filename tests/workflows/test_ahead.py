"""Frames begun ahead, past the end of a chunk too, and turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.workflows.ahead import AHEAD, Cameras, FramesAhead, Turns, frames_ahead
from landmark_batch.workflows.order import STOP_FILE
from tests.workflows.test_pipeline import PATIENCE, Frame, Renderer, chunk, session_of

LENS = (1.0, 1.0, 0.5, 0.5)


class Beginner(Renderer):
    """begin, and the first of `finish` of each frame. bad: frames that cannot be begun; failing: those that fail when they are taken."""

    failing: tuple[int, ...] = ()
    taking: Callable[[int], object] = staticmethod(lambda _: None)

    def begin(self, c2w: Any, intrinsics: Any, width: int, height: int, *, frame: int | None = None) -> Any:
        assert frame is not None
        self.note("begin", frame)
        if frame in self.bad:
            raise ValueError(f"frame {frame} cannot be begun")
        return _Begun(self, frame)


class _Begun:
    def __init__(self, renderer: Beginner, frame: int) -> None:
        self.renderer, self.frame = renderer, frame

    def finish(self) -> Frame:
        self.renderer.note("finish", self.frame)
        self.renderer.taking(self.frame)
        if self.frame in self.renderer.failing:
            raise RuntimeError(f"frame {self.frame} is lost")
        return Frame(self.frame, self.renderer)


def ahead_of(renderer: Beginner, ahead: int = 2) -> FramesAhead:
    """One that has given a frame already."""
    frames = FramesAhead(renderer, ahead=ahead)
    assert len(list(frames.frames(cameras(1000), lambda: cameras(1001)))) == 1
    assert renderer.events == [("begin", 1000), ("finish", 1000)], "nothing is begun before the first is done"
    renderer.events.clear()
    return frames


def cameras(*frames: int) -> Cameras:
    return ((frame, (np.eye(4)[:3], LENS, 4, 3)) for frame in frames)


def numbers(renderer: Renderer, what: str) -> list[int]:
    return [number for name, number in renderer.events if name == what]


def test_frames_are_begun_before_one_is_taken() -> None:
    renderer = Beginner()
    frames = ahead_of(renderer)
    assert [frame for frame, _ in frames.frames(cameras(*range(5)))] == list(range(5))
    begins = [("begin", frame) for frame in range(3)]
    assert renderer.events[:5] == [*begins, ("finish", 0), ("begin", 3)]
    assert numbers(renderer, "begin") == numbers(renderer, "finish") == list(range(5))


@pytest.mark.parametrize(("pixels", "frames"), [(1, AHEAD), (1920 * 1080, AHEAD), (6_000_000, 2), (3840 * 2160, 1), (10**9, 1)])
def test_large_frames_are_begun_one_ahead(pixels: int, frames: int) -> None:
    assert frames_ahead(pixels) == frames
    renderer = Beginner()
    assert len(list(ahead_of(renderer, frames_ahead(pixels)).frames(cameras(*range(8))))) == 8
    assert renderer.events.index(("finish", 0)) == frames + 1


def test_without_overlap_a_frame_is_begun_when_the_last_is_taken() -> None:
    renderer = Beginner()
    found = list(ahead_of(renderer, 0).frames(cameras(0, 1, 2), lambda: cameras(3)))
    assert len(found) == 3
    assert renderer.events == [(what, frame) for frame in range(3) for what in ("begin", "finish")]


def test_the_first_frames_of_the_next_chunk_are_begun_before_the_last_of_this_one_is_taken() -> None:
    renderer = Beginner()
    frames = ahead_of(renderer)
    assert len(list(frames.frames(cameras(0, 1, 2), lambda: cameras(10, 11, 12, 13)))) == 3
    assert renderer.events.index(("begin", 10)) < renderer.events.index(("finish", 2))
    assert numbers(renderer, "begin") == [0, 1, 2, 10, 11]
    assert [frame for frame, _ in frames.frames(cameras(10, 11, 12, 13))] == [10, 11, 12, 13]
    assert numbers(renderer, "begin") == numbers(renderer, "finish") == [0, 1, 2, 10, 11, 12, 13]


def test_a_next_chunk_that_is_known_late_or_is_short() -> None:
    renderer, known = Beginner(), list[Cameras]()
    frames = ahead_of(renderer)
    for frame, _ in frames.frames(cameras(0, 1, 2, 3), lambda: known[0] if known else None):
        if frame == 2:
            known.append(cameras(7))
    assert numbers(renderer, "begin") == [0, 1, 2, 3, 7]
    assert [frame for frame, _ in frames.frames(cameras(7), lambda: cameras(8, 9))] == [7]
    assert [frame for frame, _ in frames.frames(cameras(8, 9))] == [8, 9]
    assert numbers(renderer, "finish") == [0, 1, 2, 3, 7, 8, 9]


def test_another_chunk_than_was_expected() -> None:
    renderer = Beginner()
    frames = ahead_of(renderer)
    assert len(list(frames.frames(cameras(0), lambda: cameras(5, 6)))) == 1
    assert [frame for frame, _ in frames.frames(cameras(6, 7))] == [6, 7]
    assert numbers(renderer, "begin") == [0, 5, 6, 6, 7]
    assert numbers(renderer, "finish") == [0, 6, 7]


def test_what_cannot_be_begun_fails_where_it_is_asked_for() -> None:
    renderer = Beginner(bad=(6,))
    frames = ahead_of(renderer)
    assert len(list(frames.frames(cameras(0, 1), lambda: cameras(5, 6, 7)))) == 2
    taken = []
    with pytest.raises(ValueError, match="frame 6 cannot be begun"):
        taken += [frame for frame, _ in frames.frames(cameras(5, 6, 7))]
    assert 6 not in numbers(renderer, "finish") and 7 not in numbers(renderer, "begin")


def test_after_an_error_nothing_is_begun() -> None:
    renderer = Beginner()
    renderer.failing = (1,)
    frames = ahead_of(renderer)
    with pytest.raises(RuntimeError, match="frame 1 is lost"):
        list(frames.frames(cameras(0, 1, 2), lambda: cameras(5)))
    renderer.failing = ()
    assert len(list(frames.frames(cameras(2, 3)))) == 2
    assert numbers(renderer, "begin").count(2) == 2


def test_turns_come_in_order() -> None:
    turns: Turns[list[int]] = Turns()
    order, threads = list[int](), list[threading.Thread]()

    def come(number: int) -> None:
        with turns.turn([]):
            order.append(number)

    with turns.turn([]):
        assert turns.next() is None
        for number in range(4):
            threads.append(threading.Thread(target=come, args=(number,)))
            threads[-1].start()
            _until(lambda number=number: len(turns._line) == number + 2)
        assert turns.next() == [] and not order
    for thread in threads:
        thread.join(PATIENCE)
    assert order == [0, 1, 2, 3]


@pytest.mark.parametrize("stopped", [False, True])
def test_a_session_begins_the_next_chunk_before_the_end_of_this_one(tmp_path: Path, stopped: bool) -> None:
    renderer = Beginner()
    gate = threading.Event()
    renderer.taking = lambda frame: frame != 0 or gate.wait(PATIENCE)
    receipts: dict[int, dict[str, Any]] = {}
    with session_of(tmp_path, renderer) as (session, store):

        def render(first: int) -> None:
            receipts[first] = session.render(str(first), chunk(first), 0)

        threads = [threading.Thread(target=render, args=(first,)) for first in (0, 8)]
        threads[0].start()
        assert renderer.await_event("finish", 0)
        threads[1].start()
        _until(lambda: session._turns.next() is not None)
        if stopped:
            (tmp_path / STOP_FILE).touch()
        gate.set()
        for thread in threads:
            thread.join(PATIENCE)
        assert set(store.finished()) == {*chunk(0), *(() if stopped else chunk(8))}
    assert receipts[0]["frames"] == [0, 1, 2, 3]
    assert renderer.events.index(("begin", 8)) < renderer.events.index(("finish", 3))
    assert receipts[8].get("stopped", False) is stopped
    assert numbers(renderer, "begin").count(8) == 1
    assert (8 in numbers(renderer, "finish")) is not stopped


def _until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)
