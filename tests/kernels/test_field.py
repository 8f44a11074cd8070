"""Density and appearance against grid_sample, block lookup, and independence of what comes together."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels.reference import field
from tests.kernels.conftest import BOX, random_rays

PLANES = ((0, 1), (0, 2), (1, 2))
LINES = (2, 1, 0)


def grid(ndims: int, blocks: int, channels: int = 5, seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    sizes = (9, 7, 4)
    planes, lines = [], []
    for dim in range(ndims):
        for res in (1, 3):
            across, down = PLANES[dim]
            planes.append(torch.randn(blocks, sizes[down] * res, sizes[across] * res, channels, generator=generator))
            lines.append(torch.randn(blocks, sizes[LINES[dim]] * res, channels, generator=generator))
    return planes, lines


def samples(count: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Rays, ray, t of samples in and around the box."""
    rays = random_rays(20, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    ray = torch.randint(0, 20, (count,), generator=generator).sort().values.to(torch.int32)
    return rays, ray, torch.rand(count, generator=generator) * 1.5


def plain_products(
    rays: Tensor, ray: Tensor, t: Tensor, planes: list[Tensor], lines: list[Tensor], division: tuple[int, int] | None
) -> Tensor:
    """[M, K] by grid_sample, one block at a time."""
    low, high = torch.tensor(BOX[:3]), torch.tensor(BOX[3:])
    chosen = rays[ray.long()]
    xyz = (chosen[:, :3] + chosen[:, 3:] * t[:, None] - low) * (2.0 / (high - low)) - 1
    block = torch.zeros(len(t))
    local = xyz.clone()
    if division is not None:
        size = torch.tensor([2 / division[0], 2 / division[1]])
        cell = ((xyz[:, :2] + 1) / size).floor()
        block = cell[:, 0] * division[1] + cell[:, 1]
        cell = torch.stack([block.div(division[1], rounding_mode="floor"), block % division[1]], dim=1)
        lower, upper = -1 + cell * size, -1 + (cell + 1) * size
        local[:, :2] = (xyz[:, :2] - lower) * 2 / (upper - lower) - 1
    out = []
    for i, (plane, line) in enumerate(zip(planes, lines, strict=True)):
        value = torch.zeros(len(t), plane.shape[-1])
        for b in range(plane.shape[0]):
            here = (block == b).nonzero().view(-1)
            if not len(here):
                continue
            at = local[here]
            points = at[:, list(PLANES[i // 2])].view(1, -1, 1, 2)
            plane_value = F.grid_sample(plane[b].permute(2, 0, 1)[None], points, align_corners=True)[0, :, :, 0].T
            along = torch.stack([torch.zeros(len(here)), at[:, LINES[i // 2]]], dim=1).view(1, -1, 1, 2)
            line_value = F.grid_sample(line[b].T[None, :, :, None], along, align_corners=True)[0, :, :, 0].T
            value[here] = plane_value * line_value
        out.append(value)
    return torch.cat(out, dim=1)


@pytest.mark.parametrize("ndims", [1, 3])
@pytest.mark.parametrize("division", [None, (1, 1), (2, 3)])
def test_features_are_those_of_grid_sample(ndims: int, division: tuple[int, int] | None) -> None:
    planes, lines = grid(ndims, division[0] * division[1] if division else 1)
    rays, ray, t = samples(3000)
    want = plain_products(rays, ray, t, planes, lines, division)
    assert 0.2 < (want.abs().sum(1) > 0).float().mean() < 0.99  # samples inside, outside and at borders
    common: dict[str, Any] = {"box": BOX, "division": division or (), "slots": None, "planes": planes, "lines": lines, "resolutions": 2}
    torch.testing.assert_close(
        kernels.density(rays, ray, t, **common), want.sum(1), rtol=0, atol=2e-5
    )  # 10..30 float32 products of order 1
    basis = torch.randn(1, want.shape[1], generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(kernels.density(rays, ray, t, **common, basis=basis), want @ basis[0], rtol=0, atol=1e-4)
    matrix = torch.randn(4, want.shape[1], generator=torch.Generator().manual_seed(4))
    torch.testing.assert_close(kernels.appearance(rays, ray, t, **common, basis=matrix), want @ matrix.T, rtol=0, atol=1e-4)


def test_half_precision_tables_are_read_in_float32() -> None:
    planes, lines = grid(1, 1)
    rays, ray, t = samples(500)
    halves = [[item.half() for item in group] for group in (planes, lines)]
    rounded = [[item.float() for item in group] for group in halves]
    got = kernels.density(rays, ray, t, BOX, (), None, halves[0], halves[1], 2)
    want = kernels.density(rays, ray, t, BOX, (), None, rounded[0], rounded[1], 2)
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


def block_values(position: tuple[float, float], division: tuple[int, int]) -> float:
    """Density of a point where every plane and line of block b holds b + 1 in all texels (one channel)."""
    blocks = division[0] * division[1]
    plane = torch.arange(1.0, blocks + 1).view(blocks, 1, 1, 1).expand(blocks, 4, 4, 1).contiguous()
    line = torch.ones(blocks, 3, 1)
    rays = torch.tensor([[position[0], position[1], 0.0, 0.0, 0.0, 1.0]])
    box = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)
    return kernels.density(rays, torch.zeros(1, dtype=torch.int32), torch.zeros(1), box, division, None, [plane], [line], 1).item()


def test_block_index_counts_rows_first_and_seams_belong_to_the_upper_block() -> None:
    assert block_values((-0.9, -0.9), (2, 3)) == 1
    assert block_values((-0.9, 0.9), (2, 3)) == 3
    assert block_values((0.9, -0.9), (2, 3)) == 4
    assert block_values((0.0, 0.9), (2, 3)) == 6
    assert block_values((0.0, 0.0), (2, 2)) == 4


def test_a_sample_on_a_far_face_contributes_nothing() -> None:
    assert block_values((1.0, 0.5), (2, 2)) == 0
    assert block_values((-0.9, 1.0), (2, 2)) == 0  # index of the next column, where it lies outside
    assert block_values((0.5, 1.0), (1, 1)) == 0
    assert block_values((-1.0, -1.0), (2, 2)) == 1  # the near faces are inside


def test_slots_move_blocks_and_an_absent_block_is_an_error() -> None:
    planes, lines = grid(1, 4)
    rays, ray, t = samples(800)
    want = kernels.density(rays, ray, t, BOX, (2, 2), None, planes, lines, 2)
    order = torch.tensor([2, 0, 3, 1])
    moved = [[item[order.argsort()].contiguous() for item in group] for group in (planes, lines)]
    assert torch.equal(kernels.density(rays, ray, t, BOX, (2, 2), order, moved[0], moved[1], 2), want)
    absent = torch.tensor([0, 1, 2, -1])
    fewer = [[item[:3].contiguous() for item in group] for group in (planes, lines)]
    with pytest.raises(RuntimeError, match="not in memory"):
        kernels.density(rays, ray, t, BOX, (2, 2), absent, fewer[0], fewer[1], 2)


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.usefixtures("one_thread")
def test_a_sample_has_the_same_bits_wherever_it_comes(precision: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    planes, lines = grid(3, 4, channels=16)
    tables = [[item.to(precision) for item in group] for group in (planes, lines)]
    rays, ray, t = samples(2500)
    basis = torch.randn(27, 16 * 6, generator=torch.Generator().manual_seed(4))

    def both(part: Any) -> tuple[Tensor, Tensor]:
        common: dict[str, Any] = {"box": BOX, "division": (2, 2), "slots": None, "planes": tables[0], "lines": tables[1], "resolutions": 2}
        some = (rays, ray[part].contiguous(), t[part].contiguous())
        return kernels.density(*some, **common), kernels.appearance(*some, **common, basis=basis)

    whole = both(slice(None))
    some = (torch.rand(2500, generator=torch.Generator().manual_seed(5)) < 0.3).nonzero().view(-1)
    for part in (slice(3, 4), slice(0, 1025), slice(7, 2500, 3), slice(1024, 2047), some):
        assert all(torch.equal(a[part], b) for a, b in zip(whole, both(part), strict=True))
    monkeypatch.setattr(field, "CPU_CHUNK", 1024)
    assert all(torch.equal(a, b) for a, b in zip(whole, both(slice(None)), strict=True))


def test_no_samples() -> None:
    planes, lines = grid(1, 1)
    rays, ray, t = samples(0)
    assert kernels.density(rays, ray, t, BOX, (), None, planes, lines, 2).shape == (0,)
    assert kernels.appearance(rays, ray, t, BOX, (), None, planes, lines, 2, torch.zeros(9, 10)).shape == (0, 9)
