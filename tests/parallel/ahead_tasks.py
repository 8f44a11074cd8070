"""What rank processes do in tests of frames that are begun before the last is finished."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from landmark_batch.frames.spec import OutputSpec
from landmark_batch.model.begun import Begun, Sums
from landmark_batch.model.transfer import pinned_array
from landmark_batch.parallel.orders import Order
from landmark_batch.parallel.parts import RayPart
from landmark_batch.parallel.renderer import GroupRenderer
from tests.model.conftest import POSES
from tests.parallel.ranks import PATIENCE
from tests.parallel.tasks import Case, lens_of, renderer_of, scene_of, three_frames

SMALL = (1, 0.01)  # capacity and coloured samples a ray for which a fused renderer has room


class Steps:
    """What a part did: ('begin' or 'finish', serial). ahead: frames are not ready before so many more are begun, of `frames` in all."""

    def __init__(self, renderer: GroupRenderer, ahead: int, frames: int) -> None:
        self.done: list[tuple[str, int]] = []
        part, self.begun = renderer._part, 0
        begin = part.begin

        def recorded(order: Order) -> Begun[Sums]:
            found = begin(order)
            self.done.append(("begin", order.serial))
            self.begun = order.serial
            end = time.monotonic() + PATIENCE / 2

            def finish() -> Sums:
                self.done.append(("finish", order.serial))
                return found.finish()

            def ready() -> bool:
                return self.begun >= min(order.serial + ahead, frames) or time.monotonic() > end

            return Begun(finish, ready)

        part.begin = recorded  # type: ignore[method-assign]


def rays_on_cpu(renderer: GroupRenderer, case: Case) -> None:
    """Have this rank render by the fused renderer, whose frames are begun, over reference ops."""
    part = renderer._part
    part.close()
    renderer._part = RayPart(renderer.group, scene_of(case), renderer.settings, renderer.device, 1, None, None)


def begin_ahead(rank: int, cases: Sequence[Case], outputs: tuple[OutputSpec, ...], ahead: int, small: bool) -> Any:
    """All frames of each case, one by one, then begun before the last is finished, in the outputs' dtypes. small: buffers must grow.

    Gives frames with their counters, what this rank's part did, and whether buffers have grown, of each case and way.
    """
    results = []
    for case in cases:
        for way in ("one by one", "ahead"):
            renderer = renderer_of(rank, case, outputs=outputs)
            if case.device == "cpu":
                rays_on_cpu(renderer, case)
            if small and way == "ahead":
                part: Any = renderer._part
                part._renderer._capacity, part._renderer._coloured_per_ray = SMALL
            steps = Steps(renderer, ahead, len(case.frames)) if way == "ahead" and case.device == "cpu" else None
            frames = []
            if rank:
                renderer.serve()
            elif way == "one by one":
                for index, view in enumerate(_views(case)):
                    frame = renderer.render(*view)
                    frames.append((frame.quantised(outputs, frame=index), frame.counters))
            else:
                frames = _overlapped(renderer, case, outputs)
            renderer.close()
            grown = small and way == "ahead" and part._renderer._coloured_per_ray > SMALL[1]
            results.append((frames, steps.done if steps is not None else [], grown))
    return results


def _views(case: Case) -> list[Any]:
    return [(POSES[name], lens_of(width, height), width, height) for name, width, height in case.frames]


def _overlapped(renderer: GroupRenderer, case: Case, outputs: tuple[OutputSpec, ...]) -> list[Any]:
    """Begun one ahead; rounded frames are copied while the next ones are rendered, on a GPU by the device itself."""
    views, frames, copies = _views(case), [], []
    waiting = [renderer.begin(*views[0])]
    for index, (_, _, width, height) in enumerate(views):
        if index + 1 < len(views):
            waiting.append(renderer.begin(*views[index + 1]))
        frame = waiting.pop(0).finish()
        shapes = {output.name: (height, width) if output.channels is None else (height, width, output.channels) for output in outputs}
        make = pinned_array if case.device == "cuda" else np.zeros
        into = {output.name: make(shapes[output.name], output.dtype) for output in outputs}
        copies.append((frame.quantise_begin(outputs, frame=index, into=into), into))
        frames.append(frame.counters)
    found = []
    for (copy, into), counters in zip(copies, frames, strict=True):
        arrays = copy.finish()
        assert all(arrays[name] is into[name] for name in into)
        found.append(({name: array.copy() for name, array in arrays.items()}, counters))
    return found


def fail_to_begin(rank: int, case: Case, failing: int) -> list[str]:
    """One rank cannot begin its second frame, while the first is not finished; the leader says what came of each of three."""
    renderer = renderer_of(rank, case)
    steps = Steps(renderer, 1, 2)
    if rank == failing:
        begin, calls = renderer._part.begin, iter(range(1))

        def fails(order: Order) -> Begun[Sums]:
            if next(calls, None) is None:
                steps.begun = order.serial
                raise RuntimeError("out of luck")
            return begin(order)

        renderer._part.begin = fails  # type: ignore[method-assign]
    if rank:
        renderer.serve()
        return []
    return three_frames(renderer, _views(case)[0])
