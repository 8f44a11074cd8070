"""What was begun on a device and is taken later, while the device works on what was begun after it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

import torch
from torch import Tensor

from landmark_batch.model.transfer import HostWord

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Result = TypeVar("Result")
Frame = TypeVar("Frame", bound="DataclassInstance")


@dataclass(frozen=True)
class Sums:
    """rgb [P, 3] before the background, depth [P], alpha [P] of some pixels, in their order, on the renderer's device. seconds: by stage.
    counters, after: as of RenderOutput.
    """

    rgb: Tensor
    depth: Tensor
    alpha: Tensor
    counters: dict[str, int]
    seconds: dict[str, float] = field(default_factory=dict)
    after: torch.cuda.Event | None = None


class Begun(Generic[Result]):
    """finish: gives the result, once; it may raise AbsentBlockError and OutOfMemoryError. ready: whether it would not wait for what was
    begun: it gives the result, raises at once, or does all of the work itself.
    """

    def __init__(self, finish: Callable[[], Result], ready: Callable[[], bool] = lambda: True) -> None:
        self.finish, self.ready = finish, ready


def _passed(event: torch.cuda.Event | None) -> bool:
    try:
        return event is None or bool(event.query())  # type: ignore[no-untyped-call]
    except RuntimeError:  # the device has failed
        return True


def begin(
    launch: Callable[[], tuple[Frame, Tensor]], counted: Callable[[Sequence[int]], dict[str, int] | None], whole: Callable[[], Frame]
) -> Begun[Frame]:
    """A frame, with fields `counters` and `after`, that is launched here and looked at in `finish`.

    launch: gives the frame, without its counters, and its status [S]. counted: its counters, of that status; None: it is to be rendered
    again. whole: renders it in one go, as is done where memory is short.
    """
    try:
        with torch.inference_mode():
            found, status = launch()
            told = HostWord(status)
    except torch.OutOfMemoryError:
        again = whole()
        return Begun(lambda: again)

    def finish() -> Frame:
        counters = counted(told.read())
        return whole() if counters is None else replace(found, counters=counters, after=told.over)

    return Begun(finish, partial(_passed, told.over))
