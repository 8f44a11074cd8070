"""`weigh` in plain torch is composite of density."""

from __future__ import annotations

import pytest
import torch

from landmark_batch import kernels
from landmark_batch.kernels.weighing import weigh
from tests.kernels.conftest import BOX, random_rays


def test_composite_of_density() -> None:
    rays = random_rays(30)
    generator = torch.Generator().manual_seed(0)
    ray = torch.randint(0, 30, (200,), generator=generator).sort().values.to(torch.int32)
    t, delta = torch.rand(200, generator=generator), torch.rand(200, generator=generator) * 0.1
    planes, lines = [torch.randn(1, 7, 9, 4, generator=generator)], [torch.randn(1, 5, 4, generator=generator)]
    arguments = {"activation": "relu", "shift": 0.0, "nonlinear": True, "scale": 25.0, "threshold": 1e-3}
    feature = kernels.density(rays, ray, t, BOX, (), None, planes, lines, 1)
    want = kernels.composite(feature, ray, delta, 30, **arguments)  # type: ignore[arg-type]
    got = weigh(rays, ray, t, delta, 30, BOX, (), None, planes, lines, 1, **arguments)  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
    with pytest.raises(ValueError, match="delta is"):
        weigh(rays, ray, t, delta[1:], 30, BOX, (), None, planes, lines, 1, **arguments)  # type: ignore[arg-type]
