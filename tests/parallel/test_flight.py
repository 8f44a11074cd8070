"""Frames in flight, rounded where they were rendered: the bytes of one rank's frames, and what a failure does to them."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.errors import PixelError
from landmark_batch.frames.pixels import quantise
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.model.begun import Begun, Sums
from landmark_batch.parallel.flight import PendingFrame, RenderThread
from landmark_batch.parallel.pixels import FLOATS, Layout
from landmark_batch.parallel.quantised import QuantisedFrame
from landmark_batch.parallel.shape import GroupShape
from tests.parallel import failing_tasks, tasks
from tests.parallel.conftest import Grouped, group_of
from tests.parallel.ranks import Ranks
from tests.parallel.tasks import Case

SETTINGS: dict[str, Any] = {"samples": 24, "alpha_mask_threshold": 0.4}
FRAMES = (("oblique", 37, 29), ("inside", 21, 40), ("above", 1, 1), ("oblique", 37, 29))
CASE = Case({"mask": 0.6, "division": (2, 1)}, SETTINGS, FRAMES)
CLEAR = replace(CASE, settings={**SETTINGS, "output__background": "transparent"})
OPAQUE = (OutputSpec("rgb", "uint8", 3), OutputSpec("depth", "float16"), OutputSpec("alpha", "uint16"))
WITH_ALPHA = (OutputSpec("depth", "float32"), OutputSpec("rgb", "uint16", 4))


@pytest.mark.parametrize("shape", [GroupShape(1, 2), GroupShape(2, 1), GroupShape(1, 3)])
def test_frames_in_flight_have_the_bytes_of_whole_frames(group: Grouped, shape: GroupShape) -> None:
    for case, outputs in ((CASE, OPAQUE), (CLEAR, WITH_ALPHA)):
        with group(shape) as ranks:
            whole = ranks.all(range(shape.size), tasks.render, [case])[0].get()[0]
            answers = ranks.all(range(shape.size), tasks.render_in_flight, case, outputs)
        *frames, exact = answers[0].get()
        assert all(answer.get() == [] for answer in answers[1:])
        assert all(np.array_equal(exact[name], whole[0][0][name]) for name in exact)
        for index, ((got, counters), (floats, counted)) in enumerate(zip(frames, whole, strict=True)):
            assert counters == counted
            for name, want in quantise(floats, outputs, frame=index).items():
                assert got[name].dtype == want.dtype and np.array_equal(got[name], want), (name, index)


def test_a_frame_with_nan_is_refused_and_the_group_goes_on(group: Grouped) -> None:
    with group(GroupShape(1, 2)) as ranks:
        answers = ranks.all(range(2), failing_tasks.render_broken, CASE, OPAQUE)
    told = answers[0].get()
    answers[1].get()
    assert "frame 3: rgb holds values that are NaN" in told[0]
    assert "alpha float32 was not gathered" in told[1] and "floats are gone" in told[2]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_with_two_frames_in_flight(own_ranks: Ranks, failing: int) -> None:
    """The one in which it fails and all after it are lost. A failure of the leader's own is told as it is, and the frame before stands;
    a rank that ends may take pixels of the frame before with it.
    """
    shape = GroupShape(1, 2)
    with group_of(own_ranks, shape, whole=False, timeout=20.0) as ranks:
        for rank in range(2):
            ranks.send(rank, failing_tasks.fail_in_flight, rank, CASE, failing)
        first, second, third = ranks.receive(0).get()
        if failing:
            assert first in ("RenderOutput", "GroupError") and second == "GroupError"
        else:
            assert (first, second) == ("RenderOutput", "RuntimeError")
        assert "is lost" in third


def test_pixels_of_ranks_make_the_frame() -> None:
    """Three ranks of which one has no pixels; every dtype, each in its place."""
    torch.manual_seed(3)
    count = 35
    rgb, depth, alpha = torch.rand(count, 3), torch.rand(count) * 900, torch.rand(count)
    order = torch.randperm(count)
    pixels = [order[:20], order[20:20], order[20:]]
    counters = {"rays": 7, "samples": 2**40, "survived": 1, "coloured": 0, "tensor_bytes": 5}
    for outputs in (OPAQUE, WITH_ALPHA, FLOATS):
        layout = Layout(tuple(outputs))
        parts = [layout.pack(Sums(rgb[own], depth[own], alpha[own], counters, {"decode": 0.5}), "white") for own in pixels]
        assert [part.shape[0] for part in parts] == [layout.size(own.shape[0]) for own in pixels]
        frame = layout.assemble(parts, pixels)
        white = (rgb + (1 - alpha)[:, None]).clamp(0, 1)
        want = quantise({"rgb": white[None].numpy(), "depth": depth[None].numpy(), "alpha": alpha[None].numpy()}, outputs, frame=0)  # type: ignore[arg-type]
        for index, output in enumerate(outputs):
            got = layout.values(frame, index, count).numpy().view(output.dtype)
            assert np.array_equal(got, want[output.name][0]), output
        numbers = layout.numbers(frame, count, 3)
        assert numbers[:, 1].tolist() == [2.0**40] * 3 and float(numbers[:, -2].max()) == float(depth.max())


def test_a_rounded_frame_is_copied_into_arrays_that_fit() -> None:
    """And leaves them alone where it holds what no store takes."""
    layout, order = Layout(OPAQUE), torch.arange(6)
    sums = Sums(torch.rand(6, 3), torch.rand(6), torch.rand(6), {"rays": 6})
    for wrong, words in ((None, ""), (float("inf"), "depth holds values that are NaN"), (7e4, "depth reaches 70000, past float16")):
        if wrong is not None:
            sums.depth[2] = wrong
        packed = layout.assemble([layout.pack(sums, "black")], [order])
        frame = QuantisedFrame(layout, packed, layout.numbers(packed, 6, 1), 3, 2)
        into = {"rgb": np.full((2, 3, 3), 9, np.uint8), "depth": np.zeros((2, 3), np.float16), "alpha": np.zeros((2, 3), np.uint16)}
        pending = frame.quantise_begin(OPAQUE, frame=4, into=into)
        assert pending.stage == "quantise" and (into["rgb"] == 9).all()
        if wrong is not None:
            with pytest.raises(PixelError, match=f"frame 4: {words}"):
                pending.finish()
            assert (into["rgb"] == 9).all()
            continue
        assert all(array is into[name] for name, array in pending.finish().items())
        lent = frame.quantised(OPAQUE, frame=4)
        assert all(np.array_equal(lent[name], into[name]) for name in into) and lent["alpha"].max() > 0
        with pytest.raises(TypeError, match="alpha is stored as uint16"):
            frame.quantise_begin(OPAQUE, frame=4, into=into | {"alpha": np.zeros((2, 3), np.int16)})
        with pytest.raises(ValueError, match=r"rgb is \[2, 3, 3\]"):
            frame.quantise_begin(OPAQUE, frame=4, into=into | {"rgb": np.zeros((3, 2, 3), np.uint8)})


def test_a_thread_of_frames_keeps_their_order() -> None:
    thread = RenderThread("test")
    gate, done = threading.Event(), []

    def step(number: int) -> Any:
        gate.wait(20)
        done.append(number)
        if number == 1:
            raise ValueError("one")
        return Begun(lambda: lambda: number)

    frames = [PendingFrame(thread.submit(lambda number=number: step(number))) for number in range(3)]  # type: ignore[misc]
    assert done == []
    gate.set()
    frames[1].settle()
    with pytest.raises(ValueError, match="one"):
        frames[1].finish()
    assert frames[2].finish() == 2 and frames[0].finish() == 0 and done == [0, 1, 2]
    thread.close(wait=True)
    assert not any(other.name == "test" for other in threading.enumerate())
