"""Stored pixels to the encoder's own frames: matte or colour map, padding, and BT.709 limited range where it is not RGB."""

from __future__ import annotations

from typing import Any

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError

from .colormap import paint
from .picture import opaque, to_bits, to_float
from .video_codec import EncoderPlan
from .video_settings import VideoSettings

_SCALER = 0x4 | 0x40000 | 0x2000 | 0x4000  # swscale's BICUBIC, ACCURATE_RND, FULL_CHR_H_INT, FULL_CHR_H_INP: PyAV names them all from 18 on
_TOP = 65280  # swscale takes 16-bit RGB as 8.8 fixed point: its white is 255·256; 65535 would come out 0.4 % too bright


class FramePreparer:
    """deep: the pixels have more than 8 bits. Use from one thread at a time."""

    def __init__(self, plan: EncoderPlan, settings: VideoSettings, *, deep: bool) -> None:
        self._plan, self._settings, self._deep = plan, settings, deep
        self._reformatter = VideoReformatter()

    def prepare(self, pixels: NDArray[Any]) -> av.VideoFrame:
        """Stored pixels of one frame, [H, W(, C)], in the film's size and pixel format. From one thread at a time."""
        plan, rgb = self._plan, self._rgb(pixels)
        pad = ((0, plan.height - rgb.shape[0]), (0, plan.width - rgb.shape[1]), (0, 0))
        if any(after for _, after in pad):
            rgb = np.pad(rgb, pad, mode="edge")
        if plan.bits == 8 or not self._deep:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(to_bits(rgb, 8)), format="rgb24")
        else:
            deep = to_bits(rgb, 16) if plan.is_rgb else np.rint(np.clip(to_float(rgb), 0.0, 1.0) * np.float32(_TOP)).astype(np.uint16)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(deep), format="rgb48le")
        if frame.format.name == plan.pix_fmt:
            return frame
        if plan.is_rgb:
            return self._reformatter.reformat(frame, format=plan.pix_fmt)
        return self._reformatter.reformat(
            frame,
            format=plan.pix_fmt,
            src_colorspace=Colorspace.ITU709,
            dst_colorspace=Colorspace.ITU709,
            src_color_range=ColorRange.JPEG,
            dst_color_range=ColorRange.MPEG,
            interpolation=_SCALER,
        )

    def _rgb(self, pixels: NDArray[Any]) -> NDArray[Any]:
        if self._settings.output == "rgb":
            return opaque(pixels, self._settings.matte)
        if self._settings.output == "alpha":
            return np.repeat(pixels[..., None], 3, axis=2)
        near, far = self._settings.near, self._settings.far
        if near is None or far is None:
            raise ConfigError("a film of depth needs near and far", remedy="name them, or export when all frames are there")
        return paint(pixels, near, far, self._settings.colormap)
