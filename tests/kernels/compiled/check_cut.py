"""Cut scenes with every instruction set; test_cut.py runs with the library, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from landmark_batch import kernels
from tests.kernels.compiled.check_frames import variant
from tests.kernels.conftest import BOX
from tests.kernels.test_cut import DIVISIONS, SIZES, cut, in_slots, samples, whole_scene

__all__ = ["variant"]


@pytest.mark.parametrize("name", ["portable", "avx2", "avx512"])
@pytest.mark.parametrize("ndims", [1, 3])
def test_the_bits_of_the_whole(name: str, ndims: int, variant: Callable[[str], str]) -> None:
    if variant(name) != name:
        pytest.skip(f"no {name} here")
    for division in DIVISIONS:
        rays, ray, t = samples(division, 101)
        t[7] = float("nan")  # reads some tile, and stays
        for channels in (8, 24):
            planes, lines = whole_scene(SIZES["odd"], ndims, channels)
            scene = in_slots(cut(planes, lines, division, 2), torch.randperm(division[0] * division[1]).tolist())
            common: Any = (scene.division, scene.slots, scene.planes, scene.lines, 2)
            end: Any = {"origins": scene.origins, "extents": scene.extents}
            basis = torch.randn(27, 2 * ndims * channels, generator=torch.Generator().manual_seed(1))
            want = kernels.density(rays, ray, t, BOX, (), None, planes, lines, 2)
            got = kernels.density(rays, ray, t, BOX, *common, **end)
            assert want.isnan().nonzero().view(-1).tolist() == [7]
            assert torch.equal(got.nan_to_num(), want.nan_to_num()) and torch.equal(got.isnan(), want.isnan())
            want = kernels.appearance(rays, ray, t, BOX, (), None, planes, lines, 2, basis)
            got = kernels.appearance(rays, ray, t, BOX, *common, basis, **end)
            assert torch.equal(got.nan_to_num(), want.nan_to_num()) and torch.equal(got.isnan(), want.isnan())
