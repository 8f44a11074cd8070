"""How good a picture is: PSNR, SSIM, LPIPS against a photograph, and what is wrong with it on its own."""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass
from importlib import util
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError

Float = NDArray[np.floating[Any]]
SSIM_NOTE = "SSIM: Gaussian window 11×11, sigma 1.5, data range 1, mean of the three channels (Wang et al. 2004; scikit-image)"
_WINDOW = 11
_LPIPS_LEAST = 32


def psnr(picture: Float, reference: Float) -> float:
    """Peak signal-to-noise ratio in dB: −10·log10 of the mean squared error over all values, peak 1. Infinite for equal pictures.

    picture, reference: [H, W, 3] or any equal shapes, in [0, 1].
    """
    _same_shape(picture, reference)
    error = float(np.mean(np.square(picture.astype(np.float64) - reference.astype(np.float64))))
    return math.inf if error == 0 else -10.0 * math.log10(error)


def ssim(picture: Float, reference: Float) -> float | None:
    """Structural similarity (see SSIM_NOTE). None if a side is below the 11 pixels of the window. [H, W, 3] in [0, 1]."""
    _same_shape(picture, reference)
    if min(picture.shape[:2]) < _WINDOW:
        return None
    from skimage import metrics

    compare: Any = metrics.structural_similarity

    return float(
        compare(
            picture.astype(np.float64),
            reference.astype(np.float64),
            channel_axis=2,
            data_range=1.0,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
        )
    )


def _same_shape(picture: Float, reference: Float) -> None:
    if picture.shape != reference.shape:
        raise ValueError(f"pictures of {picture.shape} and {reference.shape} cannot be compared")


def lpips_is_installed() -> bool:
    return util.find_spec("lpips") is not None


class Lpips:
    """Learned perceptual distance (Zhang et al. 2018) by the package `lpips`, 0 = alike. net: 'alex' (its authors' choice) or 'vgg'.

    Raises ConfigError if the package is absent or its network cannot be loaded (torchvision fetches it once).
    """

    def __init__(self, net: str = "alex") -> None:
        if not lpips_is_installed():
            raise ConfigError("LPIPS: the package lpips is not installed", remedy="pip install 'landmark-batch[lpips]', or leave LPIPS out")
        import warnings

        import lpips
        import torch

        self.net = net
        self._torch = torch
        self._lock = threading.Lock()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's own deprecations
                self._model: Any = lpips.LPIPS(net=net, verbose=False).eval()
        except (OSError, RuntimeError, ValueError) as error:
            raise ConfigError(
                f"LPIPS: its network {net!r} cannot be loaded ({error})", remedy="fetch it once with a network, or leave LPIPS out"
            ) from None

    def __call__(self, picture: Float, reference: Float) -> float | None:
        """None if a side is below 32 pixels. [H, W, 3] in [0, 1]. Safe to call from several threads."""
        _same_shape(picture, reference)
        if min(picture.shape[:2]) < _LPIPS_LEAST:
            return None
        torch = self._torch
        pair = [torch.from_numpy(np.ascontiguousarray(item, np.float32)).permute(2, 0, 1)[None] * 2 - 1 for item in (picture, reference)]
        with self._lock, torch.no_grad():
            return float(self._model(*pair))


@dataclass(frozen=True)
class FrameCheck:
    """is_finite: no NaN or Inf. is_flat: every pixel is the same (an empty sky can be; a whole flight should not).

    low, high, mean: over all values.
    """

    is_finite: bool
    is_flat: bool
    low: float
    high: float
    mean: float


def check_frame(pixels: NDArray[Any]) -> FrameCheck:
    """What can be said of one frame without another. pixels: [H, W] or [H, W, C], any dtype of a store, in its own units."""
    if pixels.dtype.kind == "f" and not bool(np.isfinite(pixels).all()):
        return FrameCheck(False, False, math.nan, math.nan, math.nan)
    flat = pixels.reshape(-1, pixels.shape[2] if pixels.ndim == 3 else 1)
    low, high = flat.min(axis=0), flat.max(axis=0)
    return FrameCheck(True, bool((low == high).all()), float(low.min()), float(high.max()), float(flat.mean(dtype=np.float64)))
