"""Rendering ops: checked wrappers over `torch.ops.landmark_batch.*`, see `checked`.

They are loaded when one is first asked for: `build`, `cache` and `toolchain`, which say what compiled kernels there are, are of use to
processes that render nothing and do without torch, whose import takes seconds.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

__all__ = [
    "ACTIVATIONS",
    "NAMESPACE",
    "SCHEMAS",
    "AbsentBlockError",
    "accumulate",
    "appearance",
    "composite",
    "decode",
    "density",
    "library",
    "march",
    "pack_occupancy",
    "pixel_rays",
    "plain_ops",
    "ray_box",
    "ray_hull",
]

if TYPE_CHECKING:
    from . import library
    from .absent import AbsentBlockError
    from .checked import (
        ACTIVATIONS,
        accumulate,
        appearance,
        composite,
        decode,
        density,
        march,
        pack_occupancy,
        pixel_rays,
        ray_box,
        ray_hull,
    )
    from .library import NAMESPACE, SCHEMAS, plain_ops
else:

    def __getattr__(name: str) -> object:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        for home in ("absent", "library", "checked"):
            found = vars(import_module(f".{home}", __name__))
            globals().update({known: found[known] for known in __all__ if known in found})
        return globals()[name]
