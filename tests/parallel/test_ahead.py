"""Frames that a rank begins before the last is finished: the same bytes, and what a failure in between does."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from landmark_batch.model.begun import Begun
from landmark_batch.parallel.flight import RenderThread, next_comes
from landmark_batch.parallel.shape import GroupShape
from tests.parallel import ahead_tasks
from tests.parallel.conftest import Grouped, group_of
from tests.parallel.ranks import PATIENCE, Ranks
from tests.parallel.tasks import Case
from tests.parallel.test_flight import OPAQUE, WITH_ALPHA

SETTINGS: dict[str, Any] = {"samples": 16, "alpha_mask_threshold": 0.4}
FRAMES = (("oblique", 70, 62), ("above", 70, 62), ("above", 1, 1), ("inside", 70, 62))  # the small one is one rank's alone
CASE = Case({"mask": 0.6, "division": (2, 1)}, SETTINGS, FRAMES)
OTHER = Case({}, SETTINGS, FRAMES[:1])


def in_order(frames: int) -> list[tuple[str, int]]:
    """Steps of a rank that is one frame ahead."""
    between = [step for serial in range(2, frames + 1) for step in (("begin", serial), ("finish", serial - 1))]
    return [("begin", 1), *between, ("finish", frames)]


@pytest.mark.parametrize(("outputs", "small"), [(OPAQUE, False), (WITH_ALPHA, True)])
def test_frames_begun_ahead_have_the_bytes_of_frames_one_by_one(group: Grouped, outputs: Any, small: bool) -> None:
    """On every rank each frame is begun before the one before it is finished. Two scenes in turn; buffers that are too small."""
    with group(GroupShape(1, 2)) as ranks:
        answers = [answer.get() for answer in ranks.all(range(2), ahead_tasks.begin_ahead, [CASE, OTHER], outputs, 1, small)]
    for number, case in enumerate((CASE, OTHER)):
        for answer in answers:
            assert answer[2 * number + 1][1:] == (in_order(len(case.frames)), small)
        whole, ahead = (frames for frames, *_ in answers[0][2 * number : 2 * number + 2])
        assert len(whole) == len(ahead) == len(case.frames)
        for (got, counters), (want, counted) in zip(ahead, whole, strict=True):
            assert counters == counted
            assert all(np.array_equal(got[name], want[name]) for name in want)


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_cannot_begin_a_frame(own_ranks: Ranks, failing: int) -> None:
    """The leader still finishes the frame before. Another rank that ends takes its pixels of that frame along: it is missed, not wrong."""
    with group_of(own_ranks, GroupShape(1, 2), whole=False) as ranks:
        for rank in range(2):
            ranks.send(rank, ahead_tasks.fail_to_begin, rank, replace(CASE, frames=FRAMES[:1]), failing)
        if failing:
            answer = ranks.receive(1)
            assert "out of luck" in answer.text
            ranks.processes[1].kill()
        first, second, third = ranks.receive(0).get()
    assert (first, second) == (("GroupError", "GroupError") if failing else ("RenderOutput", "RuntimeError"))
    assert "is lost" in third


class Work:
    """Frames whose steps are noted. late: ready only when told."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def frame(self, name: str, ready: Callable[[], bool]) -> Callable[[], Begun[str]]:
        def finish() -> str:
            self.steps.append(f"finish {name}")
            return name

        def begin() -> Begun[str]:
            self.steps.append(f"begin {name}")
            if name == "bad":
                raise ValueError(name)
            return Begun(finish, ready)

        return begin


def test_a_frame_is_finished_when_no_other_comes() -> None:
    """At once where its device is done; else it waits, and what comes meanwhile is begun first. A frame that cannot be begun leaves
    the one before it whole.
    """
    work, thread, late = Work(), RenderThread("test"), threading.Event()
    alone = thread.submit(work.frame("alone", lambda: True))
    assert alone.result(PATIENCE) == "alone"  # nothing else is submitted
    first = thread.submit(work.frame("first", late.is_set))
    second = thread.submit(work.frame("second", late.is_set))
    bad = thread.submit(work.frame("bad", lambda: True))
    assert second.result(PATIENCE) == "second" and first.result() == "first"
    with pytest.raises(ValueError, match="bad"):
        bad.result(PATIENCE)
    last = thread.submit(work.frame("last", late.is_set))
    thread.close(wait=True)  # which waits for what was begun
    assert last.result(0) == "last"
    assert work.steps == [
        *("begin alone", "finish alone", "begin first", "begin second", "finish first", "begin bad", "finish second", "begin last"),
        "finish last",
    ]


def test_the_next_order_goes_before_a_frame_that_is_ready() -> None:
    looks = iter([False, False, True])
    assert next_comes(lambda: next(looks), Work().frame("late", lambda: False)())
    assert next_comes(lambda: True, Begun(lambda: 0)) and not next_comes(lambda: False, Begun(lambda: 0))
