"""render_fetched: a frame of a scene whose blocks come and go, begun again where a block was not foreseen or GPU memory ran out."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from landmark_batch import kernels

from .blocks import FrameFetcher

Result = TypeVar("Result")
Camera = tuple[int | None, NDArray[np.floating], Sequence[float], int, int]  # as `FrameFetcher.begin` takes it

FEWER_SLOTS = "out of GPU memory with %d slots: %d from here on, with the same pixels"

logger = logging.getLogger(__name__)


class Renewal(NamedTuple):
    """What renders from a fetcher's tables, made anew for others. free: lets go of it, and so of the tables. reopen: leaves nothing where
    it raises.
    """

    free: Callable[[], None]
    reopen: Callable[[], None]


def render_fetched(
    fetcher: FrameFetcher,
    camera: Camera,
    render: Callable[[Sequence[int]], Result],
    renewal: Renewal | None,
    *,
    who: str = "",
) -> Result:
    """What `render` gives for the frame of a camera. render: of the blocks that it needs, which it holds itself.

    A frame that met a block that was not foreseen is rendered again with it, once. Out of GPU memory, slots become fewer, with a
    warning, as often as it takes. renewal: None where there must stay as many. who: begins what is logged.

    Raises AbsentBlockError for a block that is absent again; torch.OutOfMemoryError without a renewal, or with one slot left.
    """
    blocks, looked = fetcher.begin(*camera), False
    while True:
        short = False
        try:
            return render(blocks)
        except kernels.AbsentBlockError:
            if looked:
                raise
        except torch.OutOfMemoryError:
            if renewal is None or fetcher.capacity < 2:
                raise
            short = True
        # Out here nothing of the error is left, nor what its frames had in hand.
        if short and renewal is not None:
            before = fetcher.capacity
            _take_fewer_slots(fetcher, renewal)
            logger.warning("%s" + FEWER_SLOTS, who, before, fetcher.capacity)
            blocks, looked = fetcher.begin(*camera), False
        else:
            blocks, looked = sorted({*blocks, *fetcher.look(*camera)}), True
            logger.info("%sframe %s met a block that was not foreseen: rendered again", who, camera[0])


def _take_fewer_slots(fetcher: FrameFetcher, renewal: Renewal) -> None:
    """As many as leave room for what is made anew."""
    renewal.free()
    while True:
        gc.collect()
        torch.cuda.empty_cache()
        fetcher.shrink()
        try:
            renewal.reopen()
            return
        except torch.OutOfMemoryError:
            if fetcher.capacity < 2:
                raise
