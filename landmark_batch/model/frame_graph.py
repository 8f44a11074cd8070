"""FrameGraph: a frame's work on a CUDA device, recorded once and replayed for every camera. Saves the launches of its many small steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

Frame = tuple[Tensor, Tensor, Tensor, Tensor]
Body = Callable[[Tensor, Tensor], Frame]

_log = logging.getLogger(__name__)


class FrameGraphs:
    """The graph of the frames that are being rendered now.

    A frame is recorded when it is the second one with the same key: the first shows whether its buffers are large enough. Only one
    graph is kept, since its buffers are those of a frame. Where recording fails, frames are launched step by step for good.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._works = device.type == "cuda"
        self._key: Hashable = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._camera: tuple[Tensor, Tensor] | None = None
        self._frame: Frame | None = None

    def run(self, key: Hashable, body: Body, pose: Tensor, lens: Tensor) -> Frame:
        """body(pose [3, 4], lens [4]), by replay where it can be; the tensors returned are the caller's. key: what the work depends on
        beside the camera: sizes, buffers, launch shapes.
        """
        if not self._works:
            return body(pose, lens)
        if key != self._key:
            self.forget()
            self._key = key
            return body(pose, lens)
        if self._graph is None and not self._record(body, pose, lens):
            return body(pose, lens)
        assert self._graph is not None and self._camera is not None and self._frame is not None
        self._camera[0].copy_(pose, non_blocking=True)
        self._camera[1].copy_(lens, non_blocking=True)
        self._graph.replay()
        rgb, depth, alpha, status = self._frame
        return rgb.clone(), depth.clone(), alpha.clone(), status.clone()

    def forget(self) -> None:
        """Give the graph's buffers back."""
        self._key = self._graph = self._camera = self._frame = None

    def _record(self, body: Body, pose: Tensor, lens: Tensor) -> bool:
        camera = pose.clone(), lens.clone()
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self._device)
            with torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                frame = body(*camera)
        except RuntimeError as error:
            _log.info("frames are launched step by step: %s", str(error).splitlines()[0])
            self._works = False
            return False
        self._graph, self._camera, self._frame = graph, camera, frame
        return True
