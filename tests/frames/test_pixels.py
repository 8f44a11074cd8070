"""Floats to the store's dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from landmark_batch.errors import PixelError
from landmark_batch.frames.pixels import quantise
from landmark_batch.frames.spec import OutputSpec


def rgb(dtype: str, values: NDArray[Any], channels: int = 3, alpha: NDArray[Any] | None = None) -> NDArray[Any]:
    rendered = {"rgb": values} if alpha is None else {"rgb": values, "alpha": alpha}
    return quantise(rendered, [OutputSpec("rgb", dtype, channels)], frame=7)["rgb"]


@pytest.mark.parametrize(("dtype", "top"), [("uint8", 255), ("uint16", 65535)])
def test_every_level_comes_back_and_halves_round_up(dtype: str, top: int) -> None:
    levels = np.arange(top + 1)
    back = rgb(dtype, np.repeat(levels[None, :, None] / top, 3, axis=2).astype(np.float32))
    assert back.dtype == dtype
    np.testing.assert_array_equal(back[0, :, 0], levels)
    chosen = np.array([-1.0, -1e-9, 0.0, 0.4999 / top, 0.5001 / top, 1.4999 / top, 1 - 0.4999 / top, 1.0, 1.0001, 99.0], np.float32)
    expected = [0, 0, 0, 0, 1, 1, top, top, top, top]
    np.testing.assert_array_equal(rgb(dtype, np.repeat(chosen[None, :, None], 3, axis=2))[0, :, 0], expected)


def test_half_is_128() -> None:
    assert rgb("uint8", np.full((1, 1, 3), 0.5, np.float32)).tolist() == [[[128, 128, 128]]]


@given(arrays.arrays(np.float32, (2, 3, 3), elements=st.floats(-0.5, 1.5, width=32)))
def test_never_further_than_half_a_level(values: NDArray[np.float32]) -> None:
    back = rgb("uint8", values).astype(np.float64) / 255
    assert np.abs(back - np.clip(values, 0, 1)).max() <= 0.5 / 255 + 1e-7


def test_floats_keep_their_values() -> None:
    values = np.array([[[1.5, -2.0, 1e-8]]], np.float32)
    np.testing.assert_array_equal(rgb("float32", values), values)
    np.testing.assert_array_equal(rgb("float16", values), values.astype(np.float16))
    with pytest.raises(PixelError, match="frame 7: depth reaches 70000, past float16"):
        quantise({"depth": np.full((2, 2), 7e4, np.float32)}, [OutputSpec("depth", "float16")], frame=7)


def test_transparent_background_joins_alpha() -> None:
    colour, alpha = np.full((2, 3, 3), 0.25, np.float32), np.full((2, 3), 0.5, np.float32)
    back = rgb("uint8", colour, 4, alpha)
    assert back.shape == (2, 3, 4) and back[0, 0].tolist() == [64, 64, 64, 128] and back.flags.c_contiguous
    with pytest.raises(KeyError):
        rgb("uint8", colour, 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float16", "float32"])
def test_nan_and_infinity_fail_the_frame(bad: float, dtype: str) -> None:
    values = np.zeros((4, 5, 3), np.float32)
    values[2, 3, 1] = bad
    with pytest.raises(PixelError, match=r"frame 7: rgb holds 1 values that are NaN or infinite, the first at \(2, 3, 1\)"):
        rgb(dtype, values)
    with pytest.raises(PixelError, match="frame 7: alpha"):
        rgb("uint8", np.zeros((4, 5, 3), np.float32), 4, values[..., 1])


def test_all_outputs_at_once() -> None:
    rendered = {"rgb": np.ones((2, 2, 3), np.float32), "depth": np.full((2, 2), 3.5, np.float32), "alpha": np.ones((2, 2), np.float32)}
    found = quantise(rendered, [OutputSpec("rgb", "uint16", 3), OutputSpec("depth", "float32"), OutputSpec("alpha", "uint8")], frame=0)
    assert {name: (array.dtype.name, array.shape, float(array.max())) for name, array in found.items()} == {
        "rgb": ("uint16", (2, 2, 3), 65535.0),
        "depth": ("float32", (2, 2), 3.5),
        "alpha": ("uint8", (2, 2), 255.0),
    }
