"""GroupRenderer: one scene rendered by all ranks of a group. The leader calls `render`, the others are in `serve`."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import SupportsFloat

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from landmark_batch.errors import GroupError
from landmark_batch.model.output import RenderOutput, on_background
from landmark_batch.model.profile import span
from landmark_batch.model.renderer import full_precision
from landmark_batch.model.settings import RenderSettings
from landmark_batch.scene.weights import SceneWeights

from .group import RenderGroup
from .orders import Opcode, Order, close_order, empty_order, render_order
from .parts import COUNTERS, TIMES, open_part


class GroupRenderer:
    """Renders frames of one scene with one set of settings on all ranks of a group. Every rank makes one, with the same arguments
    but for its share of the scene's channels.

    With data ranks alone a frame has the bits that `Renderer` or `FusedRenderer` gives it on one rank. With tensor ranks its bits
    depend on their number, and on nothing else.

    weights: the scene, or this rank's channels of it (`ChannelShard(tensor_index, tensor)`). threads: tiles at once on a CPU.
    Raises GroupError for weights of another share. A GroupError of any method means that the group is lost: end the process.
    """

    def __init__(
        self, group: RenderGroup, weights: SceneWeights, settings: RenderSettings, device: torch.device | str = "cpu", threads: int = 1
    ) -> None:
        self.group, self.settings, self.config = group, settings, weights.config
        self.device = torch.device(device)
        _check_share(group, weights)
        self._scene = _scene_number(weights, settings)
        self._serial = 0
        self._lost = self._closed = False
        self._part = open_part(group, weights, settings, self.device, threads)

    def render(self, c2w: NDArray[np.floating], intrinsics: Sequence[SupportsFloat], width: int, height: int) -> RenderOutput:
        """One frame, on the leader. Arguments as for Renderer.render. counters are summed over ranks; tensor_bytes: sent among tensor
        ranks. stages: seconds summed over ranks (CPU).

        Raises CameraError for a wrong pose, lens or size, and the group goes on; GroupError where a rank is lost.
        """
        if not self.group.leader:
            raise GroupError(f"{self.group.membership.describe()} serves its leader, which alone renders")
        self._check_open()
        order = render_order(self._serial + 1, self._scene, c2w, intrinsics, width, height)
        with self._guarded():
            self._send(order)
            output = self._render(order)
        assert output is not None
        return output

    def serve(self) -> None:
        """Do what the leader orders until it closes its renderer, on every other rank. Raises what rendering raises."""
        self._check_open()
        with self._guarded():
            while True:
                buffer = empty_order()
                self.group.control.broadcast(buffer)
                order = Order.unpack(buffer)
                self._serial += 1
                if order.serial != self._serial:
                    raise GroupError(
                        f"{self.group.membership.describe()} expected order {self._serial}, got {order.serial}",
                        remedy="every rank makes its renderers in the same order",
                    )
                if order.opcode is Opcode.CLOSE:
                    return
                if order.scene != self._scene:
                    raise GroupError(
                        f"{self.group.membership.describe()} has another scene, or other settings, than its leader",
                        remedy="give every rank the same job, the same checkpoint and the same version",
                    )
                self._render(order)

    def close(self) -> None:
        """End the renderer's threads; on the leader, have the other ranks return from `serve`. The group stays."""
        if self._closed:
            return
        self._closed = True
        try:
            if self.group.leader and not self._lost:
                self._send(close_order(self._serial + 1))
        finally:
            self._part.close()

    def _send(self, order: Order) -> None:
        self._serial = order.serial
        self.group.control.broadcast(order.pack())

    def _render(self, order: Order) -> RenderOutput | None:
        group, device = self.group, self.device
        chosen: AbstractContextManager[object] = torch.cuda.device(device) if device.type == "cuda" else nullcontext()
        with torch.inference_mode(), full_precision(), chosen:
            rows, counters, seconds = self._part.render(order)
            with span("gather", device):
                pending = group.pixels.gather(rows, self._part.sizes(order.width, order.height))
                numbers = [counters[name] for name in COUNTERS] + [seconds.get(name, 0.0) for name in TIMES]
                size = group.membership.shape.size
                table = group.frame.gather(torch.tensor([numbers], dtype=torch.float64), [1] * size).wait()
                everything = pending.wait()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)  # a loss shows here, not in whoever reads the frame
            if not group.leader:
                return None
            return self._assemble(order, everything, table.sum(0).tolist())

    def _assemble(self, order: Order, rows: Tensor, totals: list[float]) -> RenderOutput:
        width, height = order.width, order.height
        frame = torch.empty(width * height, 5, dtype=torch.float32, device=self.device)
        frame[self._part.order(width, height)] = rows
        frame = frame.view(height, width, 5)
        rgb, depth, alpha = frame[..., :3].contiguous(), frame[..., 3].contiguous(), frame[..., 4].contiguous()
        counters = {name: int(value) for name, value in zip(COUNTERS, totals, strict=False)}
        seconds = {name: value for name, value in zip(TIMES, totals[len(COUNTERS) :], strict=True) if value > 0}
        return RenderOutput(on_background(rgb, alpha, self.settings.background), depth, alpha, counters, seconds)

    def _check_open(self) -> None:
        if self._lost or self._closed:
            state = "is lost" if self._lost else "has closed this renderer"
            raise GroupError(f"{self.group.membership.describe()} {state}", remedy="end this process; a new group takes over")

    def _guarded(self) -> AbstractContextManager[None]:
        return _Guard(self)


class _Guard(AbstractContextManager[None]):
    """Whatever is raised inside, the ranks are out of step afterwards."""

    def __init__(self, renderer: GroupRenderer) -> None:
        self._renderer = renderer

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._renderer._lost = True


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


def _scene_number(weights: SceneWeights, settings: RenderSettings) -> int:
    """A number below 2**48, which float64 holds, that ranks with other scenes or settings do not share."""
    text = json.dumps(settings.pixel_settings(), sort_keys=True, default=str) + repr(weights.config)
    return int(hashlib.sha256(text.encode()).hexdigest()[:12], 16)
