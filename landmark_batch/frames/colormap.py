"""Colour maps for depth: turbo, viridis and grey, by a cubic curve through every 15th colour of the published 256."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from landmark_batch.errors import ConfigError

# The maps' own values at 0, 15, 30, ..., 255: turbo (A. Mikhailov, Google, 2019), viridis (N. Smith, S. van der Walt, CC0).
_ANCHORS = {
    "turbo": """30123b 3f3d9c 4666dd 448cfd 2fb1f3 19d3cf 22eba9 51f979 8bfe4b
                b6f735 dae236 f4c43a fea12f f8741c e84b0c ce2d04 a91501 7a0402""",
    "viridis": """440154 471669 472a79 433c84 3c4d8a 355d8c 2e6c8e 287a8e 23898d
                  1e978a 20a585 2eb27c 45bf6f 64cb5d 88d547 afdc2e d7e219 fde724""",
    "gray": " ".join(f"{level:02x}" * 3 for level in range(0, 256, 15)),
}
COLORMAPS = tuple(_ANCHORS)


def check_colormap(name: str) -> None:
    """Raises ConfigError for an unknown name."""
    if name not in _ANCHORS:
        raise ConfigError(f"colormap {name!r}: not known", remedy=f"choose one of {', '.join(COLORMAPS)}")


@lru_cache(maxsize=len(_ANCHORS))
def colormap(name: str) -> NDArray[np.uint8]:
    """The map's 256 colours, [256, 3] uint8 sRGB, within 2 levels of the published ones. Raises ConfigError as `check_colormap`."""
    check_colormap(name)
    from scipy.interpolate import CubicSpline  # takes as long to import as the rest of a command

    anchors = np.array([list(bytes.fromhex(colour)) for colour in _ANCHORS[name].split()], np.float64)
    table: NDArray[np.uint8] = np.clip(np.rint(CubicSpline(np.arange(0, 256, 15), anchors)(np.arange(256))), 0, 255).astype(np.uint8)
    table.setflags(write=False)
    return table


def normalise(values: NDArray[np.floating], near: float, far: float) -> NDArray[np.float32]:
    """Values to [0, 1]: near and below is 0, far and beyond is 1. values: any shape, finite."""
    scaled = (values.astype(np.float32) - np.float32(near)) / np.float32(far - near)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def paint(values: NDArray[np.floating], near: float, far: float, name: str = "turbo") -> NDArray[np.uint8]:
    """Colour-mapped values. values: [H, W]. Returns [H, W, 3] uint8 sRGB."""
    index = np.rint(normalise(values, near, far) * 255.0).astype(np.uint8)
    picture: NDArray[np.uint8] = colormap(name)[index]
    return picture
