"""On a CUDA device: a scene cut into blocks has the bits of the whole, and a frame in passes those of one with every block."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from landmark_batch.kernels import fused, mixed, tuning
from tests.kernels.test_cut import Cut, cut, in_slots
from tests.kernels.test_gpu_mixed import decoder
from tests.kernels.test_mixed import COMPOSITE, SAMPLES, Setting, setting, weigh_list

pytestmark = pytest.mark.gpu

CAPACITY = 40000
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "eight channels": {"channels": 8, "rays": 97},
    "wide": {"channels": 48, "resolutions": (1, 2)},
    "three dims": {"channels": 8, "ndims": 3, "resolutions": (1, 2)},
    "three dims, usual": {"channels": 16, "ndims": 3, "resolutions": (2,)},
    "no mask": {"mask": 0.0, "samples": 20},
}
COMPOSITES = [COMPOSITE, ("relu", True, 0.0, 10.0, 1e-4, 1e-4), ("softplus", True, 1.0, 5.0, 0.0, 0.0)]
Part = tuple[Setting, dict[str, Any]]


class Listed(NamedTuple):
    """A list of coloured samples and where each ray's begin."""

    rays: Tensor
    rows: Tensor
    status: Tensor
    found: Tensor
    offset: Tensor


def whole_case(**changes: Any) -> Setting:
    """A single scene whose samples also lie outside the box, where the field is 0."""
    case = setting(division=None, **changes)
    crop = [v - 0.05 if i < 3 else v + 0.05 for i, v in enumerate(case.march[3])]
    return case._replace(march=(*case.march[:3], crop, *case.march[4:]))


def with_cut(case: Setting, scene: Cut) -> Part:
    """The case with the field of a cut scene, and the arguments that say how it was cut."""
    field = case.with_field(division=scene.division, slots=scene.slots, planes=scene.planes, lines=scene.lines)
    return field, {"origins": scene.origins, "extents": scene.extents}


def cut_case(case: Setting, division: tuple[int, int], present: list[int] | None = None) -> Part:
    scene = cut(case.planes, case.lines, division, case.field[5])
    return with_cut(case, scene if present is None else in_slots(scene, present))


def on(device: str, part: Part) -> Part:
    case, end = part
    return case.to(device), {name: value.to(device) if isinstance(value, Tensor) else value for name, value in end.items()}


def partly(case: Setting, present: list[int]) -> Setting:
    """The case with some blocks in the slots; the first slot holds what was left there, here NaN."""
    slots = torch.full((case.planes[0].shape[0],), -1)
    slots[present] = torch.arange(1, len(present) + 1)

    def tables(group: list[Tensor]) -> list[Tensor]:
        return [torch.cat([torch.full_like(table[:1], float("nan")), table[present]]) for table in group]

    return case.with_field(slots=slots, planes=tables(case.planes), lines=tables(case.lines))


def passes_of(device: str, kind: str, groups: list[list[int]], **changes: Any) -> tuple[Part, list[Part]]:
    """A scene with every block, and with each group of blocks."""
    if kind == "cut":
        whole, end = cut_case(whole_case(**changes), (2, 2))
    else:
        whole, end = setting(**changes), {}
    return on(device, (whole, end)), [on(device, (partly(whole, group), end)) for group in groups]


def density_of(part: Part, basis: Tensor | None = None) -> mixed.Marched:
    case, end = part
    return mixed.Marched(*mixed.march_density(case.rays, *case.march, *case.field, basis, CAPACITY, **end))


def trace(part: Part, basis: Tensor | None = None, composite: tuple[Any, ...] = COMPOSITE) -> fused.Traced:
    case, end = part
    return fused.Traced(*fused.trace(case.rays, *case.march, *case.field, basis, *composite, SAMPLES, CAPACITY, **end))


def listed(part: Part) -> Listed:
    traced = trace(part)
    assert int(traced.status[0]) > 50
    return Listed(part[0].rays, traced.list, traced.status, traced.found, traced.offset)


def same_samples(got: mixed.Marched, want: mixed.Marched) -> None:
    total = int(want.status[0])
    assert 0 < total <= CAPACITY and torch.equal(got.status[[0, 1, 3]], want.status[[0, 1, 3]])
    assert torch.equal(got.found, want.found) and torch.equal(got.offset, want.offset)
    for column in ("ray", "t", "delta"):
        assert torch.equal(getattr(got, column)[:total], getattr(want, column)[:total]), column


def same_list(got: fused.Traced, want: fused.Traced) -> None:
    count = int(want.status[0])
    assert count > 0 and torch.equal(got.status[[0, 3]], want.status[[0, 3]])
    assert torch.equal(got.list[:count, :3], want.list[:count, :3])
    for column in ("found", "offset", "alpha", "depth"):
        assert torch.equal(getattr(got, column), getattr(want, column)), column


def weights_of(case: Setting, weighted: bool) -> Tensor | None:
    columns = len(case.planes) * case.planes[0].shape[-1]
    return torch.randn(1, columns, generator=torch.Generator().manual_seed(2)).to(case.rays.device) / columns**0.5 if weighted else None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("division", [(2, 3), (1, 4), (1, 1)], ids=str)
@pytest.mark.parametrize("name", list(CASES))
def test_a_cut_scene_has_the_bits_of_the_whole(device: str, name: str, division: tuple[int, int], dtype: torch.dtype) -> None:
    case = whole_case(dtype=dtype, **CASES[name])
    whole = on(device, (case, {}))
    order = torch.randperm(division[0] * division[1], generator=torch.Generator().manual_seed(0)).tolist()
    for present in (None, order):
        part = on(device, cut_case(case, division, present))
        for weighted in (False, True):
            basis = weights_of(whole[0], weighted)
            want, got = density_of(whole, basis), density_of(part, basis)
            same_samples(got, want)
            assert torch.equal(got.partial[: int(want.status[0])], want.partial[: int(want.status[0])])
            want_list, got_list = trace(whole, basis), trace(part, basis)
            same_list(got_list, want_list)
            assert got_list.status.tolist() == want_list.status.tolist()
        samples = listed(whole)
        columns = len(case.planes) * case.planes[0].shape[-1]
        for outputs in (27, 40):
            matrix = torch.randn(outputs, columns, generator=torch.Generator().manual_seed(1)).to(device)
            count = int(samples.status[0])
            want_features, got_features = (
                fused.features(samples.rays, samples.rows, count, *one.field, matrix, **end) for one, end in (whole, part)
            )
            assert bool(want_features.any()) and torch.equal(got_features, want_features)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("composite", COMPOSITES, ids=str)
@pytest.mark.parametrize("name", list(CASES))
def test_densities_and_then_weights_have_the_bits_of_trace(device: str, name: str, composite: tuple[Any, ...], dtype: torch.dtype) -> None:
    for part in (
        on(device, (setting(dtype=dtype, **CASES[name]), {})),
        on(device, cut_case(whole_case(dtype=dtype, **CASES[name]), (2, 3))),
    ):
        for weighted in (False, True):
            basis = weights_of(part[0], weighted)
            marched = density_of(part, basis)
            same_list(weigh_list(marched.partial, marched, CAPACITY, composite), trace(part, basis, composite))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("groups", [[[0, 3], [2, 1]], [[1], [0], [3, 2]]], ids=str)
@pytest.mark.parametrize("kind", ["cut", "multi-block"])
@pytest.mark.parametrize("name", ["usual", "wide", "three dims"])
def test_sums_of_passes(device: str, name: str, kind: str, groups: list[list[int]], dtype: torch.dtype) -> None:
    """Densities and features: 0 in absent blocks whatever lies in the slots, so that their sums have every bit."""
    whole, parts = passes_of(device, kind, groups, dtype=dtype, **CASES[name])
    want = density_of(whole)
    total = int(want.status[0])
    summed = torch.zeros_like(want.partial[:total])
    absent = 0
    for part in parts:
        got = density_of(part)
        same_samples(got, want)
        assert int(got.status[2]) > 0
        absent += int(got.status[2])
        summed += got.partial[:total]
    assert torch.equal(summed, want.partial[:total])
    assert absent <= (len(groups) - 1) * total and (kind != "cut" or absent == (len(groups) - 1) * total)
    samples = listed(whole)
    count = int(samples.status[0])
    for outputs in (27, 40):
        columns = len(whole[0].planes) * whole[0].planes[0].shape[-1]
        matrix = torch.randn(outputs, columns, generator=torch.Generator().manual_seed(1)).to(device)
        shares = [fused.features(samples.rays, samples.rows, count, *case.field, matrix, **end) for case, end in parts]
        every = fused.features(samples.rays, samples.rows, count, *whole[0].field, matrix, **whole[1])
        assert bool((torch.stack([share.any(1) for share in shares]).sum(0) <= 1).all())
        assert all(bool(share.any()) for share in shares) and torch.equal(torch.stack(shares).sum(0), every)


@pytest.mark.parametrize("kind", ["cut", "multi-block"])
@pytest.mark.parametrize("resolutions", [(2,), (1, 3), (1, 2, 3)], ids=str)
def test_colours_of_passes(device: str, resolutions: tuple[int, ...], kind: str) -> None:
    """shade_pass writes what is present and nothing else; resolve then gives what shade gives."""
    if not torch.ops.landmark_batch.shade_fits(len(resolutions)):
        pytest.skip("this GPU's blocks have too little shared memory")
    whole, parts = passes_of(device, kind, [[0, 3], [1], [2]], channels=48, resolutions=resolutions, dtype=torch.float16, rays=300)
    samples = listed(whole)
    count = int(samples.status[0])
    basis = torch.randn(27, 48 * len(resolutions), generator=torch.Generator().manual_seed(1)) / 12
    packed = [tensor.to(device) for tensor in fused.pack_shade(basis, *decoder())]
    want = fused.shade(*samples, *whole[0].field, *packed, **whole[1])
    assert float(want.abs().max()) > 0.01
    for launch in tuning.LAUNCHES["shade"]:
        assert torch.equal(fused.shade(*samples, *whole[0].field, *packed, launch, **whole[1]), want)
        colour = torch.full((CAPACITY, 4), float("nan"), device=device)
        written = torch.zeros(count, dtype=torch.bool, device=device)
        for case, end in parts:
            before = colour.clone()
            fused.shade_pass(samples.rays, samples.rows, samples.status, *case.field, *packed, colour, launch, **end)
            now = colour[:count].isfinite().all(1)
            assert torch.equal(colour[:count][written], before[:count][written]) and bool(now[written].all())
            assert int(now.sum()) > int(written.sum()) and bool(colour[count:].isnan().all())
            written = now
        assert bool(written.all())
        assert torch.equal(fused.resolve(colour, samples.offset, samples.found), want)


def test_a_cut_single_scene_is_shaded_as_the_whole(device: str) -> None:
    if not torch.ops.landmark_batch.shade_fits(3):
        pytest.skip("this GPU's blocks have too little shared memory")
    case = whole_case(channels=48, dtype=torch.float16, rays=300)
    whole, (part, end) = on(device, (case, {})), on(device, cut_case(case, (2, 3), [5, 0, 3, 1, 4, 2]))
    samples = listed(whole)
    packed = [tensor.to(device) for tensor in fused.pack_shade(torch.randn(27, 144) / 12, *decoder())]
    for launch in tuning.LAUNCHES["shade"]:
        want = fused.shade(*samples, *whole[0].field, *packed, launch)
        assert torch.equal(fused.shade(*samples, *part.field, *packed, launch, **end), want)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck(device: str) -> None:
    """On a list that is just as long as its samples: what lies behind the last one is not written."""
    case, end = on(device, cut_case(whole_case(channels=48, dtype=torch.float16), (2, 3)))
    samples = listed((case, end))
    count = int(samples.status[0])
    rows = samples.rows[:count].contiguous()
    total = int(density_of((case, end)).status[0])
    ops = torch.ops.landmark_batch
    torch.library.opcheck(ops.march_density.default, (case.rays, *case.march, *case.field, None, total), end)
    torch.library.opcheck(ops.trace.default, (case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, count), end)
    basis = torch.randn(27, 144) / 12
    torch.library.opcheck(ops.features.default, (case.rays, rows, count, *case.field, basis.to(device)), end)
    if torch.ops.landmark_batch.shade_fits(3):
        packed = [tensor.to(device) for tensor in fused.pack_shade(basis, *decoder())]
        lists = (case.rays, rows, samples.status, samples.found, samples.offset)
        torch.library.opcheck(ops.shade.default, (*lists, *case.field, *packed), end)
        colour = torch.zeros(count, 4, device=device)
        torch.library.opcheck(ops.shade_pass.default, (*lists[:3], *case.field, *packed, colour), end)
