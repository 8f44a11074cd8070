"""A scene whose planes were cut into blocks has the bits of the whole one. Helpers of the tests on other devices."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import fused
from landmark_batch.kernels.weighing import weigh
from tests.kernels.conftest import BOX, random_rays
from tests.kernels.test_field import LINES, PLANES
from tests.kernels.test_mixed import COMPOSITE as FUSED_COMPOSITE
from tests.kernels.test_mixed import setting

DIVISIONS = [(2, 3), (1, 4), (5, 1), (1, 1)]
SIZES = {"odd": (23, 17, 5), "few": (4, 7, 3), "one texel": (1, 9, 1), "no texel but one": (1, 1, 1)}  # along x, y, z
COMPOSITE: dict[str, Any] = {"activation": "softplus", "shift": -1.0, "nonlinear": False, "scale": 25.0, "threshold": 1e-3}


class Cut(NamedTuple):
    """A scene that was cut, as arguments of the ops."""

    division: list[int]
    slots: Tensor | None
    planes: list[Tensor]
    lines: list[Tensor]
    origins: Tensor
    extents: list[int]


def edges(blocks: int, texels: int) -> list[tuple[int, int]]:
    """First and one past the last texel that each block of an axis reads, exact: every step from coordinate to texel is monotonic."""
    size = np.float32(2 / blocks)
    starts = [np.float32(0)]
    for block in range(1, blocks):
        start = np.float32(block) * size  # of coordinate + 1
        while np.floor(start / size) < block:
            start = np.nextafter(start, np.float32(3))
        while np.floor(np.nextafter(start, np.float32(0)) / size) >= block:
            start = np.nextafter(start, np.float32(0))
        starts.append(start)
    ends = [np.nextafter(start, np.float32(0)) for start in starts[1:]] + [np.float32(2)]

    def texel(place: Any) -> int:
        pixel = place * np.float32(0.5) * np.float32(texels - 1)
        return max(0, min(int(np.floor(pixel)), texels - 2))

    return [(texel(start), min(texel(end) + 2, texels)) for start, end in zip(starts, ends, strict=True)]


def cut(planes: list[Tensor], lines: list[Tensor], division: tuple[int, int], resolutions: int) -> Cut:
    """The planes [1, h, w, C] of a whole scene in tiles as small as can be, filled up with NaN to the largest of their level."""
    blocks = division[0] * division[1]
    origins = torch.zeros(blocks, len(planes), 2, dtype=torch.int32)
    tiles, extents = [], []
    for level, plane in enumerate(planes):
        across, down = PLANES[level // resolutions]
        height, width = plane.shape[1:3]
        columns = edges(division[across], width)
        rows = edges(division[1], height) if down == 1 else [(0, height)]
        tile = plane.new_full((blocks, max(b - a for a, b in rows), max(b - a for a, b in columns), plane.shape[3]), float("nan"))
        for block in range(blocks):
            cell = block // division[1], block % division[1]
            (left, right), (low, high) = columns[cell[across]], rows[cell[1]] if down == 1 else rows[0]
            origins[block, level] = torch.tensor([left, low])
            tile[block, : high - low, : right - left] = plane[0, low:high, left:right]
        tiles.append(tile)
        extents += [height, width]
    return Cut(list(division), None, tiles, [line.expand(blocks, -1, -1).contiguous() for line in lines], origins, extents)


def in_slots(scene: Cut, present: list[int]) -> Cut:
    """The same with some blocks only, in this order."""
    slots = torch.full((scene.origins.shape[0],), -1)
    slots[present] = torch.arange(len(present))
    planes, lines = ([table[present] for table in tables] for tables in (scene.planes, scene.lines))
    return scene._replace(slots=slots, planes=planes, lines=lines)


def whole_scene(
    size: tuple[int, int, int], ndims: int, channels: int, dtype: torch.dtype = torch.float32, resolutions: tuple[int, ...] = (1, 2)
) -> tuple[list[Tensor], list[Tensor]]:
    """Random planes [1, h, w, C] and lines [1, n, C]."""
    generator = torch.Generator().manual_seed(channels)
    planes, lines = [], []
    for dim in range(ndims):
        for r in resolutions:
            across, down = PLANES[dim]
            planes.append(torch.randn(1, size[down] * r, size[across] * r, channels, generator=generator).to(dtype))
            lines.append((1 + 0.3 * torch.randn(1, size[LINES[dim]] * r, channels, generator=generator)).to(dtype))
    return planes, lines


def samples(division: tuple[int, int], count: int = 600, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """rays, ray, t: anywhere in and around the box, and on and beside the borders of blocks and the faces of the box."""
    generator = torch.Generator().manual_seed(seed)
    rays = random_rays(60, seed)
    ray = torch.randint(0, 60, (count,), generator=generator).sort().values
    t = torch.rand(count, generator=generator) * 1.5
    exact = []
    for column in range(division[0] + 1):
        for row in range(division[1] + 1):
            x, y = BOX[0] + (BOX[3] - BOX[0]) * column / division[0], BOX[1] + (BOX[4] - BOX[1]) * row / division[1]
            exact += [[x + dx, y + dy, 0.1, 0, 0, 1] for dx in (-1e-7, 0, 1e-7) for dy in (-1e-7, 0, 1e-7)]
    borders = torch.tensor(exact, dtype=torch.float32)
    rays = torch.cat([rays, borders])
    ray = torch.cat([ray, torch.arange(60, 60 + len(borders))]).to(torch.int32)
    return rays, ray, torch.cat([t, torch.zeros(len(borders))])


def find_blocks(rays: Tensor, ray: Tensor, t: Tensor, division: tuple[int, int]) -> Tensor:
    """Block [M] of each sample, by the definition."""
    low, high = torch.tensor(BOX[:3]), torch.tensor(BOX[3:])
    chosen = rays[ray.long()]
    v = (t[:, None] * chosen[:, 3:] + chosen[:, :3] - low) * (2.0 / (high - low)) - 1
    cell = [((v[:, a] + 1) / torch.tensor(2 / division[a])).floor().clamp(0, division[a] - 1) for a in range(2)]
    return (cell[0] * division[1] + cell[1]).long()


def cases() -> list[tuple[str, tuple[int, int], int, int, torch.dtype]]:
    """Size, division, dims, channels, dtype: all of the odd size, one in turn of each other."""
    kinds = [(1, 8, torch.float32), (3, 3, torch.float32), (3, 8, torch.float16), (1, 3, torch.float16)]
    others = [(size, division) for size in list(SIZES)[1:] for division in DIVISIONS]
    chosen = [("odd", division, *kind) for division in DIVISIONS for kind in kinds]
    return chosen + [(*where, *kinds[(i + i // 4) % 4]) for i, where in enumerate(others)]


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("size", "division", "ndims", "channels", "dtype"), cases(), ids=str)
def test_the_bits_of_the_whole(size: str, division: tuple[int, int], ndims: int, channels: int, dtype: torch.dtype) -> None:
    rays, ray, t = samples(division, 300)
    planes, lines = whole_scene(SIZES[size], ndims, channels, dtype)
    scene = cut(planes, lines, division, 2)
    basis = torch.randn(9, 2 * ndims * channels, generator=torch.Generator().manual_seed(1))
    order = torch.randperm(len(scene.origins), generator=torch.Generator().manual_seed(2)).tolist()
    for some in (scene, in_slots(scene, order)):
        common = (some.division, some.slots, some.planes, some.lines, 2)
        end = {"origins": some.origins, "extents": some.extents}
        for weights in (None, basis[:1].contiguous()):
            want = kernels.density(rays, ray, t, BOX, (), None, planes, lines, 2, weights)
            assert bool(want.isfinite().all()) and bool((want != 0).any())
            assert torch.equal(kernels.density(rays, ray, t, BOX, *common, weights, **end), want)
        want = kernels.appearance(rays, ray, t, BOX, (), None, planes, lines, 2, basis)
        assert torch.equal(kernels.appearance(rays, ray, t, BOX, *common, basis, **end), want)
    delta = torch.full_like(t, 0.02)
    whole = weigh(rays, ray, t, delta, len(rays), BOX, (), None, planes, lines, 2, **COMPOSITE)
    parts = (scene.division, None, scene.planes, scene.lines, 2)
    got = weigh(rays, ray, t, delta, len(rays), BOX, *parts, **COMPOSITE, origins=scene.origins, extents=scene.extents)
    assert all(torch.equal(a, b) for a, b in zip(got, whole, strict=True))


@pytest.mark.parametrize("ndims", [1, 3])
@pytest.mark.usefixtures("one_thread")
def test_block_after_block(ndims: int) -> None:
    """Each block's samples with that block alone in memory; what lies elsewhere is an error of its own kind."""
    division = (2, 3)
    rays, ray, t = samples(division)
    planes, lines = whole_scene(SIZES["odd"], ndims, 8)
    basis = torch.randn(27, 16 * ndims, generator=torch.Generator().manual_seed(1))
    scene = cut(planes, lines, division, 2)
    density = kernels.density(rays, ray, t, BOX, (), None, planes, lines, 2)
    features = kernels.appearance(rays, ray, t, BOX, (), None, planes, lines, 2, basis)
    blocks = find_blocks(rays, ray, t, division)
    for block in range(6):
        here = (blocks == block).nonzero().view(-1)
        assert 10 < len(here) < len(t)
        alone = in_slots(scene, [block])
        field: Any = (alone.division, alone.slots, alone.planes, alone.lines, 2)
        end: Any = {"origins": scene.origins, "extents": scene.extents}
        assert torch.equal(kernels.density(rays, ray[here], t[here], BOX, *field, **end), density[here])
        assert torch.equal(kernels.appearance(rays, ray[here], t[here], BOX, *field, basis, **end), features[here])
        with pytest.raises(kernels.AbsentBlockError, match="a sample lies in a block that is not in memory"):
            kernels.density(rays, ray, t, BOX, *field, **end)
        with pytest.raises(kernels.AbsentBlockError):
            kernels.appearance(rays, ray, t, BOX, *field, basis, **end)
        with pytest.raises(kernels.AbsentBlockError):
            weigh(rays, ray, t, t, len(rays), BOX, *field, **COMPOSITE, **end, stop=0.0)


@pytest.mark.usefixtures("one_thread")
def test_tiles_of_another_scene_are_read_within_bounds() -> None:
    """Origins that belong to other tiles give other numbers, but no read beyond the tile."""
    planes, lines = whole_scene(SIZES["odd"], 1, 8)
    scene = cut(planes, lines, (2, 3), 2)
    rays, ray, t = samples((2, 3))
    field: Any = (scene.division, None, [torch.ones_like(plane) for plane in scene.planes], scene.lines, 2)
    for shift in (-1000, 1000):
        got = kernels.density(rays, ray, t, BOX, *field, origins=scene.origins + shift, extents=scene.extents)
        assert bool(got.isfinite().all())


def test_wrappers_name_the_wrong_argument() -> None:
    planes, lines = whole_scene(SIZES["few"], 1, 3)
    scene = cut(planes, lines, (2, 3), 2)
    rays, ray, t = samples((2, 3), 10)

    def density(**changes: Any) -> Tensor:
        values = {**scene._asdict(), "resolutions": 2, **changes}
        return kernels.density(rays, ray, t, BOX, **values)

    assert density().shape == t.shape
    with pytest.raises(ValueError, match="a cut scene needs both"):
        density(extents=())
    with pytest.raises(ValueError, match="a cut scene needs both"):
        density(origins=None)
    with pytest.raises(ValueError, match=r"origins has shape \[6, 1, 2\]"):
        density(origins=scene.origins[:, :1])
    with pytest.raises(TypeError, match=r"origins is torch\.int64"):
        density(origins=scene.origins.long())
    with pytest.raises(ValueError, match="height and width of each of the 2 whole planes"):
        density(extents=[3, 4])
    with pytest.raises(ValueError, match="the division says how the scene was cut"):
        density(division=(), planes=planes, lines=lines)


def test_references_of_the_fused_ops() -> None:
    case = setting(division=None, rays=20)
    scene = cut(case.planes, case.lines, (2, 3), 3)
    field = (case.field[0], scene.division, None, scene.planes, scene.lines, 3)
    end: Any = {"origins": scene.origins, "extents": scene.extents}
    marched = fused.march_density(case.rays, *case.march, *case.field, None, 800)
    assert int(marched[6][0]) > 100
    assert all(map(torch.equal, fused.march_density(case.rays, *case.march, *field, None, 800, **end), marched))
    traced = fused.trace(case.rays, *case.march, *case.field, None, *FUSED_COMPOSITE, 40, 800)
    assert all(map(torch.equal, fused.trace(case.rays, *case.march, *field, None, *FUSED_COMPOSITE, 40, 800, **end), traced))
    basis = torch.randn(27, 48)
    features = fused.features(case.rays, traced[0], 800, *case.field, basis, traced[5])
    assert torch.equal(fused.features(case.rays, traced[0], 800, *field, basis, traced[5], **end), features)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck() -> None:
    rays, ray, t = samples((2, 3), 20)
    scene = cut(*whole_scene(SIZES["few"], 1, 3), (2, 3), 2)
    field = (list(BOX), scene.division, None, scene.planes, scene.lines, 2)
    end = (scene.origins, scene.extents)
    ops = torch.ops.landmark_batch
    torch.library.opcheck(ops.density.default, (rays, ray, t, *field, None, *end))
    torch.library.opcheck(ops.appearance.default, (rays, ray, t, *field, torch.randn(9, 6), *end))
    composite = ("relu", 0.0, False, 25.0, 1e-3, 0.0)
    torch.library.opcheck(ops.weigh.default, (rays, ray, t, t, len(rays), *field, None, *composite, *end))
