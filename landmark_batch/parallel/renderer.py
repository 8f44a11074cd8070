"""GroupRenderer: one scene rendered by all ranks of a group. The leader begins frames, the others are in `serve`."""

from __future__ import annotations

import hashlib
import json
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import GroupError
from landmark_batch.model.begun import Begun, Sums
from landmark_batch.model.blocks import FrameFetcher
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.profile import span
from landmark_batch.model.quantise import Output
from landmark_batch.model.renderer import full_precision
from landmark_batch.model.settings import RenderSettings
from landmark_batch.model.transfer import side_stream
from landmark_batch.scene.weights import SceneWeights

from .channel import Pending
from .flight import PendingFrame, RenderThread, next_comes
from .group import RenderGroup
from .orders import Opcode, Order, close_order, empty_order, render_order
from .parts import open_part
from .pixels import FLOATS, Layout, totals
from .quantised import QuantisedFrame

IN_FLIGHT = 3  # frames ordered and not yet rendered: one that a device works on, one behind it, and one that can follow at once

GroupFrame = RenderOutput | QuantisedFrame


class GroupRenderer:
    """Renders frames of one scene with one set of settings on all ranks of a group. Every rank makes one, with the same arguments
    but for its share of the scene's channels.

    With data ranks alone a frame has the bits that `Renderer` or `FusedRenderer` gives it on one rank. With tensor ranks its bits
    depend on their number, and on nothing else.

    weights: the scene, or this rank's channels of it (`ChannelShard(tensor_index, tensor)`). threads: tiles at once on a CPU.
    outputs: what a store wants of a frame: pixels are then rounded to its dtypes on the ranks that render them, and a quarter of the
    bytes is gathered; None gathers floats. fetcher: brings this rank's share of blocks, weights being its base; tensor ranks have as
    many slots and foresee the same. It is closed with the renderer. memory: bytes for the rays in hand of a GPU's fused kernels; None: a
    share of the device's. All methods of the leader belong to one thread at a time.
    Raises GroupError for weights of another share. A GroupError of any method means that the group is lost: end the process.
    """

    def __init__(
        self,
        group: RenderGroup,
        weights: SceneWeights,
        settings: RenderSettings,
        device: torch.device | str = "cpu",
        threads: int = 1,
        *,
        outputs: Sequence[Output] | None = None,
        fetcher: FrameFetcher | None = None,
        memory: int | None = None,
    ) -> None:
        self.group, self.settings, self.config = group, settings, weights.config
        self.device = torch.device(device)
        _check_share(group, weights)
        self._floats = Layout(FLOATS)
        self._rounded = Layout(tuple(outputs)) if outputs else None
        self._scene = _scene_number(weights, settings, outputs)
        self._serial = 0
        self._closed = False
        self._failed = math.inf  # serial of the first order that failed
        self._part = open_part(group, weights, settings, self.device, threads, fetcher, memory)
        self._thread = RenderThread(f"landmark-frames-{group.membership.group}")
        self._flight: deque[PendingFrame[GroupFrame]] = deque()
        self._leaving: deque[Pending] = deque()  # this rank's pixels, on their way to the leader

    def render(
        self,
        c2w: NDArray[np.floating],
        intrinsics: Sequence[SupportsFloat],
        width: int,
        height: int,
        *,
        frame: int | None = None,
        floats: bool = False,
    ) -> GroupFrame:
        """One frame: `begin` and `finish` in one."""
        return self.begin(c2w, intrinsics, width, height, frame=frame, floats=floats).finish()

    def begin(
        self,
        c2w: NDArray[np.floating],
        intrinsics: Sequence[SupportsFloat],
        width: int,
        height: int,
        *,
        frame: int | None = None,
        floats: bool = False,
    ) -> PendingFrame[GroupFrame]:
        """Have all ranks render a frame, on the leader; `finish` of what is returned gives it. Begin the next frame before: its
        rendering then runs while this one is gathered and read. Waits while IN_FLIGHT frames are being rendered.

        Arguments as for Renderer.render. frame: its number in the flight, for a fetcher. floats: a RenderOutput, though the renderer was
        made for a store. A frame's counters are summed over ranks; tensor_bytes: sent among tensor ranks. stages: seconds summed over
        ranks (CPU).

        Raises CameraError for a wrong pose, lens or size, and the group goes on; GroupError where a rank is lost.
        """
        if not self.group.leader:
            raise GroupError(f"{self.group.membership.describe()} serves its leader, which alone renders")
        self._check_open()
        exact = floats or self._rounded is None
        order = render_order(self._serial + 1, self._scene, c2w, intrinsics, width, height, floats=exact, frame=frame)
        while len(self._flight) >= IN_FLIGHT:
            self._flight.popleft().settle()
        self._check_open()
        with self._guarded(order.serial):
            self._serial = order.serial
            told = self.group.control.broadcast(order.pack())
            pending = PendingFrame(self._thread.submit(lambda: self._lead(order, told)))
        self._flight.append(pending)
        return pending

    def serve(self) -> None:
        """Do what the leader orders until it closes its renderer, on every other rank. Raises what rendering raises."""
        self._check_open()
        with self._guarded(self._serial):
            coming = self.group.control.broadcast(empty_order())
            last: tuple[Order, Begun[Sums]] | None = None
            while True:
                if last is not None and not next_comes(coming.arrived, last[1]):
                    self._follow(*last)
                    last = None
                order = self._taken(coming)
                if order.opcode is Opcode.CLOSE:
                    break
                coming = self.group.control.broadcast(empty_order())  # the next one comes while this one is rendered
                begun = self._render(order)
                if last is not None:
                    self._follow(*last)
                last = order, begun
            if last is not None:
                self._follow(*last)
            self._drain()

    def _taken(self, coming: Pending) -> Order:
        """The next order, once it is there. Raises GroupError for one that is not the next, or of another scene."""
        order = Order.unpack(coming.wait())
        self._serial += 1
        if order.serial != self._serial:
            raise GroupError(
                f"{self.group.membership.describe()} expected order {self._serial}, got {order.serial}",
                remedy="every rank makes its renderers in the same order",
            )
        if order.opcode is Opcode.RENDER and order.scene != self._scene:
            raise GroupError(
                f"{self.group.membership.describe()} has another scene, or other settings, than its leader",
                remedy="give every rank the same job, the same checkpoint and the same version",
            )
        return order

    @property
    def slots(self) -> int:
        """Blocks that this rank has room for; 0 of a scene that it holds whole, or where there was no memory for one any more."""
        return self._part.fetcher.capacity if self._part.fetcher is not None else 0

    def close(self) -> None:
        """End the renderer's threads; on the leader, have the other ranks return from `serve`. The group stays."""
        if self._closed:
            return
        self._closed = True
        try:
            self._thread.close(wait=not self._lost)
            if self.group.leader and not self._lost:
                self._serial += 1
                self.group.control.broadcast(close_order(self._serial).pack()).wait()
                self._drain()
        finally:
            self._part.close()

    def _render(self, order: Order) -> Begun[Sums]:
        """Begin this rank's pixels."""
        with self._computing():
            return self._part.begin(order)

    def _follow(self, order: Order, begun: Begun[Sums]) -> None:
        """Finish a frame on a rank that does not lead. It goes on before the leader has the pixels."""
        with self._computing(), self._packed(order, begun) as packed, span("gather", self.device):
            self._leaving.append(self.group.pixels.gather(packed, []))
            while len(self._leaving) > IN_FLIGHT:
                self._leaving.popleft().wait()

    def _lead(self, order: Order, told: Pending) -> Begun[Callable[[], GroupFrame]]:
        """Begin a frame on the leader, in the thread of frames."""
        self._check_lost(order.serial)
        with self._guarded(order.serial):
            begun = self._render(order)
        return Begun(lambda: self._gathered(order, told, begun), begun.ready)

    def _gathered(self, order: Order, told: Pending, begun: Begun[Sums]) -> Callable[[], GroupFrame]:
        """Finish a frame on the leader, in the thread of frames; what is returned waits for the pixels of all ranks and gives it."""
        self._check_lost(order.serial)  # frames before the one that failed are whole
        with self._guarded(order.serial), self._computing(), self._packed(order, begun) as packed, span("gather", self.device):
            told.wait()
            layout, size = self._layout(order), (order.width, order.height)
            pixels, counts = self._part.pixels(*size), [layout.size(count) for count in self._part.sizes(*size)]
            gathered = self.group.pixels.gather(packed[:0], [0, *counts[1:]])  # its own pixels are here already
            frame = layout.assemble([packed, *torch.split(gathered.wait(), counts[1:])], pixels)
            numbers = layout.numbers(frame, order.width * order.height, len(counts))
            if not frame.is_cuda:
                return lambda: self._output(order, layout, frame, numbers)
            for own in pixels:
                own.record_stream(torch.cuda.current_stream(self.device))
            host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True).copy_(numbers, non_blocking=True)
            over = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            over.record()

        def finish() -> GroupFrame:
            with self._guarded(order.serial):  # a loss shows here, not in whoever reads the frame
                over.synchronize()
            return self._output(order, layout, frame, host, over)

        return finish

    @contextmanager
    def _packed(self, order: Order, begun: Begun[Sums]) -> Iterator[Tensor]:
        """Finish this rank's pixels and pack them. On a CUDA device this, and all inside, is done on the side stream behind their frame
        alone: the main stream has the next frame by now.
        """
        sums = begun.finish()
        beside: AbstractContextManager[object] = nullcontext()
        if self.device.type == "cuda":
            side = side_stream(self.device)
            side.wait_event(torch.cuda.current_stream(self.device).record_event() if sums.after is None else sums.after)
            for plane in (sums.rgb, sums.depth, sums.alpha):
                plane.record_stream(side)  # its memory is not another's before it is packed
            beside = torch.cuda.stream(side)
        with beside:
            with span("round", self.device):
                packed = self._layout(order).pack(sums, self.settings.background)
            yield packed

    def _output(self, order: Order, layout: Layout, frame: Tensor, numbers: Tensor, after: torch.cuda.Event | None = None) -> GroupFrame:
        width, height = order.width, order.height
        if not order.floats:
            return QuantisedFrame(layout, frame, numbers, width, height)
        if after is not None:
            frame.record_stream(torch.cuda.current_stream(self.device))  # whose it is from now on
        rgb, depth, alpha = (layout.values(frame, index, width * height) for index in range(len(FLOATS)))
        counters, seconds = totals(numbers)
        return RenderOutput(
            rgb.view(height, width, 3), depth.view(height, width), alpha.view(height, width), counters, seconds, after=after
        )

    def _layout(self, order: Order) -> Layout:
        return self._floats if order.floats or self._rounded is None else self._rounded

    def _drain(self) -> None:
        """Wait until all pixels have left: a group that closes lets nothing through any more."""
        while self._leaving:
            self._leaving.popleft().wait()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    @property
    def _lost(self) -> bool:
        return self._failed < math.inf

    def _check_lost(self, serial: int) -> None:
        """Raises GroupError where this order's frame, or one before it, has failed."""
        if serial >= self._failed:
            self._check_open()

    def _check_open(self) -> None:
        if self._lost or self._closed:
            state = "is lost" if self._lost else "has closed this renderer"
            raise GroupError(f"{self.group.membership.describe()} {state}", remedy="end this process; a new group takes over")

    @contextmanager
    def _computing(self) -> Iterator[None]:
        """Where a rank renders: on its device, with full precision, remembering nothing for gradients."""
        chosen: AbstractContextManager[object] = torch.cuda.device(self.device) if self.device.type == "cuda" else nullcontext()
        with torch.inference_mode(), full_precision(), chosen:
            yield

    @contextmanager
    def _guarded(self, serial: int) -> Iterator[None]:
        """Whatever is raised inside, the ranks are out of step afterwards, from this order on."""
        try:
            yield
        except BaseException:
            self._failed = min(self._failed, serial)
            raise


def _check_share(group: RenderGroup, weights: SceneWeights) -> None:
    """Raises GroupError unless weights hold this rank's channels."""
    member = group.membership
    wanted = (member.tensor_index, member.shape.tensor)
    held = (weights.shard.rank, weights.shard.size) if weights.shard is not None else (0, 1)
    if held != wanted:
        raise GroupError(
            f"{member.describe()} holds channel share {held[0]} of {held[1]}, and needs {wanted[0]} of {wanted[1]}",
            remedy="load the scene with ChannelShard(membership.tensor_index, membership.shape.tensor)",
        )


def _scene_number(weights: SceneWeights, settings: RenderSettings, outputs: Sequence[Output] | None) -> int:
    """A number below 2**48, which float64 holds, that ranks with other scenes, settings or outputs do not share."""
    text = json.dumps(settings.pixel_settings(), sort_keys=True, default=str) + repr(weights.config)
    text += repr([(output.name, output.dtype, output.channels) for output in outputs or ()])
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
