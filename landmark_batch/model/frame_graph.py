"""FrameGraph: a frame's work on a CUDA device, recorded once and replayed for every camera. Saves the launches of its many small steps."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable

import torch
from torch import Tensor

from landmark_batch.model.profile import unseen

Frame = tuple[Tensor, Tensor]  # values, status
Body = Callable[[Tensor], Frame]

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
        self._camera: Tensor | None = None
        self._frame: Frame | None = None

    def run(self, key: Hashable, body: Body, camera: Tensor) -> Frame:
        """body(camera on the device), by replay where it can be. camera: in host memory, pinned: nothing waits for its copy. The values
        returned are the caller's; their status is to be read, or copied, on this stream before the next run. key: what the work depends
        on beside the camera: sizes, buffers, launch shapes.
        """
        if not self._works:
            return body(camera.to(self._device, non_blocking=True))
        if key != self._key:
            self.forget()
            self._key = key
            return body(camera.to(self._device, non_blocking=True))
        if self._graph is None and not self._record(body, camera):
            return body(camera.to(self._device, non_blocking=True))
        assert self._graph is not None and self._camera is not None and self._frame is not None
        self._camera.copy_(camera, non_blocking=True)
        self._graph.replay()
        values, status = self._frame
        return values.clone(), status

    def forget(self) -> None:
        """Give the graph's buffers back."""
        self._key = self._graph = self._camera = self._frame = None

    def _record(self, body: Body, host: Tensor) -> bool:
        camera = host.to(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            torch.cuda.synchronize(self._device)
            with unseen(), torch.cuda.device(self._device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
                frame = body(camera)
        except RuntimeError as error:
            _log.info("frames are launched step by step: %s", str(error).splitlines()[0])
            self._works = False
            return False
        self._graph, self._camera, self._frame = graph, camera, frame
        return True
