"""On a CUDA device: the mixed mode's kernels, features of every width, and launch shapes, against their references."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.kernels import fused, mixed, tuning
from tests.kernels.test_mixed import COMPOSITE, SAMPLES, Setting, march_density, op_arguments, setting, shards, weigh_list

pytestmark = pytest.mark.gpu

CAPACITY = 4000
CASES: dict[str, dict[str, Any]] = {
    "usual": {},
    "eight channels": {"channels": 8, "rays": 97},
    "wide": {"channels": 48, "resolutions": (1, 2)},
    "three dims": {"channels": 8, "ndims": 3, "resolutions": (1, 2)},
    "single block": {"division": None, "resolutions": (3,)},
    "no mask": {"mask": 0.0, "samples": 20},
    "one sample": {"samples": 1},
    "many rays": {"rays": 3001, "samples": 12},
}


def ready(case: Setting) -> int:
    """Samples of the case, all of which fit into the lists of these tests."""
    total = int(mixed.reference_march_density(case.rays, *case.march, *case.field, None, 0)[6][0])
    assert total < 40000
    return total


def expected_marched(case: Setting, capacity: int, basis: Tensor | None = None) -> mixed.Marched:
    return mixed.Marched(*mixed.reference_march_density(case.rays, *case.march, *case.field, basis, capacity))


def turns_are_a_permutation(traced: fused.Traced) -> bool:
    count = int(traced.status[0])
    return traced.list[:count, 3].cpu().sort().values.tolist() == list(range(count))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", list(CASES))
@pytest.mark.parametrize("weighted", [False, True])
def test_march_density(device: str, name: str, dtype: torch.dtype, weighted: bool) -> None:
    """Samples bit for bit; densities as precise as the products, fp16 ones being rounded to 11 bits."""
    case = setting(dtype=dtype, **CASES[name])
    total = ready(case)
    basis = None
    if weighted:
        columns = len(case.planes) * case.planes[0].shape[-1]
        basis = torch.randn(1, columns, generator=torch.Generator().manual_seed(2)) / columns**0.5
    expected = expected_marched(case, total, basis)
    got = march_density(case.to(device), total + 3, None if basis is None else basis.to(device))
    assert got.status.tolist() == [total, 0, 0, total]
    for column in ("found", "offset"):
        assert torch.equal(getattr(got, column).cpu(), getattr(expected, column)), column
    for column in ("ray", "t", "delta"):
        assert torch.equal(getattr(got, column).cpu()[:total], getattr(expected, column)), column
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    scale = max(1.0, float(expected.partial.abs().max()) if total else 1.0)
    assert float((got.partial.cpu()[:total] - expected.partial).abs().max() if total else 0.0) < tolerance * scale
    again = march_density(case.to(device), total + 3, None if basis is None else basis.to(device))
    assert torch.equal(again.partial[:total], got.partial[:total])


def test_a_short_list_counts_all_and_keeps_the_first(device: str) -> None:
    case = setting().to(device)
    whole = march_density(case, CAPACITY)
    total = int(whole.status[0])
    for capacity in (0, 1, total - 1):
        short = march_density(case, capacity)
        assert short.status.tolist() == [total, 1, 0, total]
        assert torch.equal(short.partial, whole.partial[:capacity]) and torch.equal(short.ray, whole.ray[:capacity])
        traced = weigh_list(short.partial, short, CAPACITY)  # nothing is read beyond the list
        assert int(traced.status[3]) <= capacity


@pytest.mark.parametrize("composite", [COMPOSITE, ("relu", True, 0.0, 10.0, 1e-4, 1e-4), ("softplus", True, 1.0, 5.0, 0.0, 0.0)])
@pytest.mark.parametrize("name", ["usual", "many rays", "no mask"])
def test_weigh_list(device: str, name: str, composite: tuple[Any, ...]) -> None:
    case = setting(**CASES[name])
    total = ready(case)
    marched = expected_marched(case, total)
    expected = weigh_list_on_cpu(marched, composite, total)
    moved = mixed.Marched(*(value.to(device) for value in marched))
    got = weigh_list(moved.partial, moved, total, composite)
    assert int(got.status[1]) == 0 and int(got.status[2]) == 0 and int(got.status[3]) <= total
    torch.testing.assert_close(got.alpha.cpu(), expected.alpha, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(got.depth.cpu(), expected.depth, rtol=1e-4, atol=2e-4)
    count = int(got.status[0])
    assert abs(count - int(expected.status[0])) <= 2 + 0.001 * total  # weights at the threshold may fall on either side
    assert turns_are_a_permutation(got)
    assert torch.equal(got.offset.cpu().to(torch.int64), got.found.cpu().cumsum(0) - got.found.cpu())
    rows = got.list[:count].cpu()
    assert torch.equal(torch.bincount(rows[:, 0], minlength=case.rays.shape[0]), got.found.cpu().to(torch.int64))
    assert bool((fused.list_weight(rows) > composite[4]).all())
    if count == int(expected.status[0]):
        assert torch.equal(rows[:, :2], expected.list[:count, :2])
        torch.testing.assert_close(fused.list_weight(rows), fused.list_weight(expected.list[:count]), rtol=1e-3, atol=1e-5)
    short = weigh_list(moved.partial, moved, 3, composite)
    assert short.status.tolist()[:2] == [count, int(count > 3)]
    assert torch.equal(short.list[:, :3].cpu(), rows[:3, :3])


def weigh_list_on_cpu(marched: mixed.Marched, composite: tuple[Any, ...], capacity: int) -> fused.Traced:
    lists = (marched.partial, marched.t, marched.delta, marched.found, marched.offset)
    return fused.Traced(*mixed.reference_weigh_list(*lists, *composite, capacity))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_one_rank_gives_what_trace_gives(device: str, dtype: torch.dtype) -> None:
    case = setting(dtype=dtype, rays=999).to(device)
    marched = march_density(case, 40000)
    got = weigh_list(marched.partial, marched, 40000)
    expected = fused.Traced(*fused.trace(case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, 40000))
    count = int(expected.status[0])
    assert count > 1000 and int(got.status[0]) == count and turns_are_a_permutation(expected)
    assert got.status[3] == expected.status[3]
    assert torch.equal(got.found, expected.found) and torch.equal(got.list[:count, :2], expected.list[:count, :2])
    torch.testing.assert_close(got.alpha, expected.alpha, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(got.depth, expected.depth, rtol=1e-5, atol=1e-6)


def test_samples_in_absent_blocks_are_counted(device: str) -> None:
    case = setting()
    slots = torch.tensor([0, 1, -1, 2])
    case = case.with_field(slots=slots, planes=[p[:3] for p in case.planes], lines=[line[:3] for line in case.lines]).to(device)
    marched = march_density(case, CAPACITY)
    absent = int(marched.status[2])
    assert 0 < absent < int(marched.status[0])
    assert int((marched.partial[: int(marched.status[0])] == 0).sum()) >= absent
    traced = fused.Traced(*fused.trace(case.rays, *case.march, *case.field, None, *COMPOSITE[:5], 0.0, SAMPLES, CAPACITY))
    assert int(traced.status[2]) == absent


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("parts", [2, 3])
def test_shares_of_the_channels_add_up(device: str, dtype: torch.dtype, parts: int) -> None:
    """Widths of 24 and 16 for fp16 tables of 48 channels, as a rank of two or three holds."""
    case = setting(channels=48, dtype=dtype).to(device)
    whole = march_density(case, CAPACITY)
    total = int(whole.status[0])
    traced = weigh_list(whole.partial, whole, CAPACITY)
    count = int(traced.status[0])
    basis = torch.randn(27, 144, generator=torch.Generator().manual_seed(1)).to(device) / 12
    features = fused.features(case.rays, traced.list, count, *case.field, basis)
    density, summed = torch.zeros(total, device=device), torch.zeros(count, 27, device=device)
    columns = basis.view(27, 3, parts, -1)
    for rank, share in enumerate(shards(case, parts)):
        density += march_density(share, CAPACITY).partial[:total]
        own = columns[:, :, rank].reshape(27, -1).contiguous()
        summed += fused.features(share.rays, traced.list, CAPACITY, *share.field, own, traced.status)[:count]
    tolerance = 1e-4 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(density, whole.partial[:total], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(summed, features, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("channels", [8, 16, 24, 40, 48])
@pytest.mark.parametrize(
    ("resolutions", "ndims", "outputs"), [((2,), 1, 27), ((1, 2, 3), 1, 27), ((1, 2), 3, 9), ((1, 2, 3, 4), 1, 32), ((1, 2, 3), 1, 40)]
)
def test_features_of_every_width(
    device: str, dtype: torch.dtype, channels: int, resolutions: tuple[int, ...], ndims: int, outputs: int
) -> None:
    case = setting(channels, resolutions, ndims, dtype=dtype, rays=40)
    total = ready(case)
    marched = expected_marched(case, total)
    samples = weigh_list_on_cpu(marched, COMPOSITE, total)
    count = int(samples.status[0])
    basis = torch.randn(outputs, len(case.planes) * channels, generator=torch.Generator().manual_seed(1))
    basis /= basis.shape[1] ** 0.5
    expected = fused.features(case.rays, samples.list, count, *case.field, basis)
    moved, rows = case.to(device), samples.list.to(device)
    got = fused.features(moved.rays, rows, count, *moved.field, basis.to(device))
    assert got.dtype == torch.float32
    tolerance = 2e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(got.cpu(), expected, rtol=tolerance, atol=tolerance)
    padded = fused.features(moved.rays, rows, total, *moved.field, basis.to(device), samples.status.to(device))
    assert padded.shape == (total, outputs) and torch.equal(padded[:count], got)
    part = fused.features(moved.rays, rows[5:].contiguous(), count - 5, *moved.field, basis.to(device))
    assert torch.equal(part, got[5:])  # whatever comes together


def decoder(seed: int = 0) -> tuple[list[Tensor], list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(n, k, generator=generator) / k**0.5 for n, k in ((128, 150), (128, 128), (3, 128))]
    return weights, [torch.randn(n, generator=generator) / 4 for n in (128, 128, 3)]


def test_colours_of_summed_features(device: str) -> None:
    case = setting(channels=48, dtype=torch.float16, rays=500).to(device)
    if not torch.ops.landmark_batch.shade_fits(3):
        pytest.skip("this GPU's blocks have too little shared memory")
    marched = march_density(case, 40000)
    traced = weigh_list(marched.partial, marched, 40000)
    count = int(traced.status[0])
    basis = torch.randn(27, 144, generator=torch.Generator().manual_seed(1)).to(device) / 12
    weights, biases = ([tensor.to(device) for tensor in group] for group in decoder())
    features = fused.features(case.rays, traced.list, 40000, *case.field, basis, traced.status)
    packed = fused.pack_decoder(weights, biases)
    got = fused.shade_features(case.rays, traced.list, traced.status, traced.found, traced.offset, features, *packed)
    ray = fused.list_ray(traced.list[:count])
    colours = kernels.decode(features[:count], case.rays, ray, weights, biases, fea_pe=2, view_pe=2)
    weighted = torch.nn.functional.pad(colours * fused.list_weight(traced.list[:count])[:, None], (0, 1))
    expected = fused.resolve(weighted, traced.offset, traced.found)
    assert float((got - expected).abs().max()) < 5e-3
    together = fused.shade(
        case.rays, traced.list, traced.status, traced.found, traced.offset, *case.field, *fused.pack_shade(basis, weights, biases)
    )
    assert float((got - together).abs().max()) < 2e-3


@pytest.mark.parametrize("rays", [1, 33, 2000])
def test_no_bit_depends_on_the_launch(device: str, rays: int) -> None:
    half = {"dtype": torch.float16, "rays": rays}
    case = setting(**half).to(device)
    arguments = (case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, 80000)
    first = fused.Traced(*fused.trace(*arguments))
    count = int(first.status[0])
    for launch in tuning.LAUNCHES["trace"][1:]:
        other = fused.Traced(*fused.trace(*arguments, launch))
        assert torch.equal(other.list[:count], first.list[:count]) and torch.equal(other.status, first.status)
        assert torch.equal(other.alpha, first.alpha) and torch.equal(other.depth, first.depth)
    if not torch.ops.landmark_batch.shade_fits(3):
        return
    for resolutions in ((2,), (1, 3), (1, 2, 3)):
        wide = setting(48, resolutions, **half).to(device)
        basis = torch.randn(27, 48 * len(resolutions), generator=torch.Generator().manual_seed(1)) / 12
        packed = [tensor.to(device) for tensor in fused.pack_shade(basis, *decoder())]
        lists = (case.rays, first.list, first.status, first.found, first.offset)
        colours = fused.shade(*lists, *wide.field, *packed)
        assert rays == 1 or float(colours.abs().max()) > 0.01
        for launch in tuning.LAUNCHES["shade"][1:]:
            assert torch.equal(fused.shade(*lists, *wide.field, *packed, launch), colours), launch


def test_an_overfull_list_is_shaded_without_harm(device: str) -> None:
    if not torch.ops.landmark_batch.shade_fits(3):
        pytest.skip("this GPU's blocks have too little shared memory")
    case, wide = setting(rays=500).to(device), setting(48, dtype=torch.float16, rays=500).to(device)
    packed = [tensor.to(device) for tensor in fused.pack_shade(torch.randn(27, 144) / 12, *decoder())]
    for capacity in (0, 1, 200):
        arguments = (case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, capacity)
        traced = fused.Traced(*fused.trace(*arguments))
        assert int(traced.status[0]) > capacity
        for launch in tuning.LAUNCHES["shade"]:
            lists = (case.rays, traced.list, traced.status, traced.found, traced.offset)
            rgb = fused.shade(*lists, *wide.field, *packed, launch)
            assert bool(rgb.isfinite().all())


def test_the_choice_of_a_launch_is_kept(device: str, tmp_path: Any) -> None:
    case = setting(dtype=torch.float16, rays=2000).to(device)
    arguments = (case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, 80000)
    shape = tuning.Shape.of("trace", case.planes)
    launch = tuning.Launches(tmp_path).choose(shape, lambda one: fused.trace(*arguments, one))
    assert launch in tuning.LAUNCHES["trace"]
    assert tuning.Launches(tmp_path).known(shape) == launch


@pytest.mark.parametrize("name", ["march_density", "weigh_list", "trace", "features", "resolve"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck(device: str, name: str) -> None:
    def move(value: Any) -> Any:
        if isinstance(value, list) and value and isinstance(value[0], Tensor):
            return [one.to(device) for one in value]
        return value.to(device) if isinstance(value, Tensor) else value

    torch.library.opcheck(getattr(torch.ops.landmark_batch, name).default, tuple(map(move, op_arguments()[name])))
