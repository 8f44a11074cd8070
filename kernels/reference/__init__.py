"""Every op in plain torch: the path of last resort on any device, and the oracle of every parity test.

One module a family, one function an op, the op's own name. Arguments are checked by the wrappers in `kernels/__init__.py`,
not here. Rules that keep bits independent of everything but the arguments: no float atomics, matrix products in tiles of one
fixed row count, a ray's sums in sample order, transcendental functions only on padded lengths.
"""

from __future__ import annotations

from .compositing import accumulate, composite
from .decoding import decode
from .field import appearance, density
from .marching import march
from .occupancy import pack_occupancy
from .rays import pixel_rays, ray_box, ray_hull

__all__ = ["accumulate", "appearance", "composite", "decode", "density", "march", "pack_occupancy", "pixel_rays", "ray_box", "ray_hull"]
