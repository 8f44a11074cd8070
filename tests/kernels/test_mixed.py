"""Ops of the mixed mode: their references against the plain ops, lists and capacities, partial sums. Helpers of the GPU tests."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import fused, mixed, reference
from landmark_batch.kernels.lists import make_list
from tests.kernels.conftest import BOX, blobs, random_rays
from tests.kernels.test_field import LINES, PLANES

RAYS, SAMPLES = 70, 40
COMPOSITE = ("softplus", False, -1.0, 25.0, 1e-3, 1e-7)  # activation, nonlinear, shift, scale, threshold, stop


class Setting(NamedTuple):
    """Arguments of the ops, in their order: rays; march: extent .. mask_threshold; field: box .. resolutions."""

    rays: Tensor
    march: tuple[Any, ...]
    field: tuple[Any, ...]

    def to(self, device: str) -> Setting:
        def move(value: Any) -> Any:
            if isinstance(value, list) and value and isinstance(value[0], Tensor):
                return [one.to(device) for one in value]
            return value.to(device) if isinstance(value, Tensor) else value

        return Setting(self.rays.to(device), tuple(map(move, self.march)), tuple(map(move, self.field)))

    def with_field(self, **changes: Any) -> Setting:
        names = ("box", "division", "slots", "planes", "lines", "resolutions")
        return self._replace(field=tuple(changes.get(name, value) for name, value in zip(names, self.field, strict=True)))

    @property
    def planes(self) -> list[Tensor]:
        return self.field[3]  # type: ignore[no-any-return]

    @property
    def lines(self) -> list[Tensor]:
        return self.field[4]  # type: ignore[no-any-return]


def setting(
    channels: int = 16,
    resolutions: tuple[int, ...] = (1, 2, 3),
    ndims: int = 1,
    division: tuple[int, int] | None = (2, 2),
    mask: float = 0.5,
    dtype: torch.dtype = torch.float32,
    rays: int = RAYS,
    samples: int = SAMPLES,
) -> Setting:
    """Random planes of `channels` (a multiple of 8) a dim and resolution, rays from above and a mask with holes."""
    generator = torch.Generator().manual_seed(channels)
    blocks = division[0] * division[1] if division else 1
    sizes = (9, 7, 5)
    planes, lines = [], []
    for dim in range(ndims):
        for res in resolutions:
            across, down = PLANES[dim]
            planes.append(torch.randn(blocks, sizes[down] * res, sizes[across] * res, channels, generator=generator).to(dtype))
            lines.append(torch.randn(blocks, sizes[LINES[dim]] * res, channels, generator=generator).to(dtype))
    s = torch.linspace(0, 1, samples)
    all_rays = random_rays(rays)
    occupancy: list[Tensor] = []
    size = (37, 29, 18)
    if mask:
        occupancy = fused.pack_bits(blobs((size[2], size[1], size[0]), mask))
    march = (kernels.ray_hull(all_rays, 3.0, BOX[2]), 0.05 * (1 - s), s, list(BOX), occupancy, list(BOX), list(size), 0.3)
    field = (list(BOX), list(division or ()), None, planes, lines, len(resolutions))
    return Setting(all_rays, march, field)


def march_density(case: Setting, capacity: int, basis: Tensor | None = None) -> mixed.Marched:
    return mixed.Marched(*mixed.march_density(case.rays, *case.march, *case.field, basis, capacity))


def weigh_list(density: Tensor, marched: mixed.Marched, capacity: int, composite: tuple[Any, ...] = COMPOSITE) -> fused.Traced:
    return fused.Traced(*mixed.weigh_list(density, marched.t, marched.delta, marched.found, marched.offset, *composite, capacity))


def shards(case: Setting, parts: int) -> list[Setting]:
    """The same scene with the channels dealt out to `parts` ranks."""
    width = case.planes[0].shape[-1] // parts
    cuts = [slice(i * width, (i + 1) * width) for i in range(parts)]
    return [
        case.with_field(
            planes=[fused.pad_channels(plane[..., cut]) for plane in case.planes],
            lines=[fused.pad_channels(line[..., cut]) for line in case.lines],
        )
        for cut in cuts
    ]


def test_samples_are_those_of_the_march() -> None:
    case = setting()
    volume = blobs((18, 29, 37), 0.5)
    extent, base, slope, crop, _, mask_box, _, threshold = case.march
    ray, t, delta = kernels.march(case.rays, extent, base, slope, crop, kernels.pack_occupancy(volume), mask_box, threshold)
    total = len(t)
    assert 300 < total < RAYS * SAMPLES
    got = march_density(case, total + 7)
    assert got.status.tolist() == [total, 0, 0, total]
    assert torch.equal(got.ray[:total], ray) and torch.equal(got.t[:total], t) and torch.equal(got.delta[:total], delta)
    assert torch.equal(got.partial[:total], kernels.density(case.rays, ray, t, *case.field))
    assert torch.equal(got.found.to(torch.int64), torch.bincount(ray.to(torch.int64), minlength=RAYS))
    assert torch.equal(got.offset.to(torch.int64), got.found.cumsum(0) - got.found)


def test_a_list_that_is_too_short_says_so() -> None:
    case = setting()
    whole = march_density(case, RAYS * SAMPLES)
    total = int(whole.status[0])
    short = march_density(case, total - 100)
    assert short.status.tolist() == [total, 1, 0, total]
    assert torch.equal(short.t, whole.t[: total - 100]) and torch.equal(short.found, whole.found)
    traced = weigh_list(whole.partial, whole, 5)
    assert traced.list.shape == (5, 4) and int(traced.status[1]) == 1 and int(traced.status[0]) > 5
    enough = weigh_list(whole.partial, whole, total)
    assert int(enough.status[1]) == 0 and torch.equal(enough.list[:5], traced.list)


@pytest.mark.parametrize("composite", [COMPOSITE, ("relu", True, 0.0, 10.0, 1e-4, 1e-4)])
def test_list_of_the_whole_is_that_of_trace(composite: tuple[Any, ...]) -> None:
    case = setting()
    marched = march_density(case, RAYS * SAMPLES)
    got = weigh_list(marched.partial, marched, 4000, composite)
    expected = fused.Traced(*fused.trace(case.rays, *case.march, *case.field, None, *composite, SAMPLES, 4000))
    assert int(got.status[0]) > 100
    for name in ("list", "found", "offset", "alpha", "depth"):
        assert torch.equal(getattr(got, name), getattr(expected, name)), name


@pytest.mark.parametrize("parts", [2, 3])
def test_shares_of_the_channels_add_up(parts: int) -> None:
    case = setting(channels=24)
    whole = march_density(case, 3000)
    total = int(whole.status[0])
    basis = torch.randn(9, 72, generator=torch.Generator().manual_seed(1))
    traced = weigh_list(whole.partial, whole, 3000)
    count = int(traced.status[0])
    features = fused.features(case.rays, traced.list, count, *case.field, basis)
    density, summed = torch.zeros(total), torch.zeros(count, 9)
    columns = basis.view(9, 3, parts, -1)
    for rank, share in enumerate(shards(case, parts)):
        density += march_density(share, 3000).partial[:total]
        own = fused.pad_basis(columns[:, :, rank].reshape(9, -1), 3)
        summed += fused.features(share.rays, traced.list, 3000, *share.field, own, traced.status)[:count]
    torch.testing.assert_close(density, whole.partial[:total], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(summed, features, rtol=1e-4, atol=1e-4)


def test_nothing_to_see() -> None:
    for case in (setting(rays=0), setting()._replace(rays=random_rays(RAYS) + torch.tensor([9.0, 9, 9, 0, 0, 0]))):
        marched = march_density(case, 10)
        assert marched.status.tolist() == [0, 0, 0, 0]
        traced = weigh_list(marched.partial, marched, 10)
        assert traced.status.tolist() == [0, 0, 0, 0] and not traced.alpha.any()
        assert torch.equal(fused.resolve(torch.ones(10, 4), traced.offset, traced.found), torch.zeros(case.rays.shape[0], 3))


def test_absent_blocks_are_refused() -> None:
    slots = torch.tensor([0, 1, -1, 2])
    case = setting()
    case = case.with_field(slots=slots, planes=[p[:3] for p in case.planes], lines=[line[:3] for line in case.lines])
    with pytest.raises(RuntimeError, match="not in memory"):
        march_density(case, 3000)


def test_rows_of_a_list() -> None:
    ray, t, weight = torch.tensor([3, 3, 7], dtype=torch.int32), torch.tensor([0.5, 0.6, 0.7]), torch.tensor([0.1, 0.2, 0.3])
    rows = make_list(ray, t, weight, 5)
    assert rows[:, 3].tolist() == [0, 1, 2, 0, 0]
    assert torch.equal(fused.list_ray(rows)[:3], ray) and torch.equal(fused.list_weight(rows)[:3], weight)
    assert torch.equal(make_list(ray, t, weight, 2), rows[:2])


def test_resolve_leaves_out_rays_that_did_not_fit() -> None:
    found, offset = torch.tensor([2, 0, 2, 1], dtype=torch.int32), torch.tensor([0, 2, 2, 4], dtype=torch.int32)
    colour = torch.arange(12.0).view(3, 4)
    expected = torch.zeros(4, 3)
    expected[0] = colour[:2, :3].sum(0)
    assert torch.equal(fused.resolve(colour, offset, found), expected)


def test_decoder_matrices_are_those_of_shade_without_the_basis() -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(n, k, generator=generator) for n, k in ((128, 150), (128, 128), (3, 128))]
    biases = [torch.randn(n, generator=generator) for n in (128, 128, 3)]
    with_basis, bias = fused.pack_shade(torch.randn(27, 144, generator=generator), weights, biases)
    alone, same_bias = fused.pack_decoder(weights, biases)
    assert torch.equal(with_basis[144 * 32 :], alone) and torch.equal(bias, same_bias)


def op_arguments(dtype: torch.dtype = torch.float32) -> dict[str, tuple[Any, ...]]:
    """Arguments of each fused op that has a reference; lists are just as long as their samples."""
    case = setting(dtype=dtype)
    whole = reference.march(case.rays, *case.march[:4], kernels.pack_occupancy(blobs((18, 29, 37), 0.5)), *case.march[5:6], case.march[7])
    total = len(whole[0])
    marched = mixed.Marched(*mixed.reference_march_density(case.rays, *case.march, *case.field, None, total))
    weighed = (marched.partial, marched.t, marched.delta, marched.found, marched.offset, *COMPOSITE)
    coloured = int(mixed.reference_weigh_list(*weighed, total)[5][0])
    traced = fused.Traced(*mixed.reference_weigh_list(*weighed, coloured))
    basis = torch.randn(9, 48, generator=torch.Generator().manual_seed(0))
    return {
        "march_density": (case.rays, *case.march, *case.field, None, total),
        "weigh_list": (*weighed, coloured),
        "trace": (case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, coloured),
        "features": (case.rays, traced.list, coloured, *case.field, basis),
        "resolve": (torch.rand(coloured, 4), traced.offset, traced.found),
    }


@pytest.mark.parametrize("name", ["march_density", "weigh_list", "trace", "features", "resolve"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck(name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.landmark_batch, name).default, op_arguments()[name])
