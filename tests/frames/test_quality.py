"""PSNR, SSIM and LPIPS against hand calculations; checks of single frames."""

from __future__ import annotations

import math
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import correlate1d

from landmark_batch.errors import ConfigError
from landmark_batch.frames.quality import Lpips, check_frame, lpips_is_installed, psnr, ssim

from .export_sources import photographs, pictures


def test_psnr_by_hand() -> None:
    a, b = np.zeros((4, 4, 3), np.float32), np.full((4, 4, 3), 0.1, np.float32)
    assert psnr(a, b) == pytest.approx(20.0, abs=1e-5)
    assert psnr(b, b) == math.inf
    b[0, 0, 0] = 1.0
    assert psnr(a, b) == pytest.approx(-10 * math.log10((47 * 0.01 + 1) / 48), abs=1e-5)


def wang(a: NDArray[Any], b: NDArray[Any]) -> float:
    """The index as its authors define it: 11×11 Gaussian of sigma 1.5, only where the window lies inside the picture."""
    window = np.exp(-(np.arange(-5, 6) ** 2) / 4.5)
    window /= window.sum()

    def mean(values: NDArray[Any]) -> NDArray[Any]:
        return correlate1d(correlate1d(values, window, 0), window, 1)[5:-5, 5:-5]

    total = []
    for x, y in zip(np.moveaxis(a.astype(float), 2, 0), np.moveaxis(b.astype(float), 2, 0), strict=True):
        mx, my = mean(x), mean(y)
        vx, vy, xy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
        total.append(np.mean((2 * mx * my + 1e-4) * (2 * xy + 9e-4) / ((mx * mx + my * my + 1e-4) * (vx + vy + 9e-4))))
    return float(np.mean(total))


def test_ssim_is_the_published_index(reference_dir: Path) -> None:
    shot = photographs(reference_dir, 1, (160, 90))[0].astype(np.float32) / 255
    noisy = np.clip(shot + np.random.default_rng(0).normal(0, 0.05, shot.shape), 0, 1).astype(np.float32)
    found = ssim(noisy, shot)
    assert found == pytest.approx(wang(noisy, shot), abs=1e-6) and 0.3 < found < 0.98
    assert ssim(shot, shot) == pytest.approx(1.0)


def test_ssim_needs_its_window() -> None:
    small = pictures(1, 10, 40, dtype="float32")[0]
    assert ssim(small, small) is None


def test_different_shapes_are_our_fault() -> None:
    with pytest.raises(ValueError, match="cannot be compared"):
        psnr(np.zeros((4, 4, 3), np.float32), np.zeros((4, 5, 3), np.float32))


def test_lpips_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpips", None)
    monkeypatch.setattr("landmark_batch.frames.quality.util.find_spec", lambda name: None)
    assert not lpips_is_installed()
    with pytest.raises(ConfigError, match=r"landmark-batch\[lpips\]"):
        Lpips()


def test_lpips_gives_its_network_what_it_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package: the distance is the mean absolute difference of [1, 3, H, W] in -1..1."""
    import torch

    class Net:
        def __init__(self, net: str, verbose: bool) -> None:
            assert net == "alex" and verbose is False

        def eval(self) -> Net:
            return self

        def __call__(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            assert a.shape == (1, 3, 40, 50) and a.dtype == torch.float32
            assert float(a.min()) >= -1 and float(a.max()) <= 1
            return (a - b).abs().mean().reshape(1, 1, 1, 1)

    package = types.ModuleType("lpips")
    package.LPIPS = Net  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lpips", package)
    monkeypatch.setattr("landmark_batch.frames.quality.util.find_spec", lambda name: object())
    a, b = pictures(2, 40, 50, dtype="float32")
    assert Lpips()(a, b) == pytest.approx(2 * float(np.abs(a - b).mean()), rel=1e-5)
    assert Lpips()(a[:20], b[:20]) is None

    def broken(net: str, verbose: bool) -> Net:
        raise OSError("no route to host")

    package.LPIPS = broken  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="no route to host"):
        Lpips()


def test_frame_checks() -> None:
    frame = pictures(1)[0]
    found = check_frame(frame)
    assert (found.is_finite, found.is_flat) == (True, False)
    assert (found.low, found.high, found.mean) == (0, 255, pytest.approx(frame.mean()))
    black = check_frame(np.zeros((8, 8, 3), np.uint8))
    assert black.is_finite and black.is_flat and black.high == 0
    sky = np.zeros((8, 8, 3), np.float16)
    sky[..., 2] = 0.5
    assert check_frame(sky).is_flat
    depth = np.ones((8, 8), np.float32)
    depth[3, 3] = 2
    assert not check_frame(depth).is_flat
    for value in (np.nan, np.inf):
        depth[3, 3] = value
        found = check_frame(depth)
        assert not found.is_finite and math.isnan(found.mean)
