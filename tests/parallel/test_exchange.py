"""What tensor ranks exchange: lists as bits, sums in rank order, digests; and which pixels are whose."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.model import tiles
from landmark_batch.parallel.exchange import add_in_rank_order, digest, pack_flags, packed_sizes, sum_in_rank_order, unpack_flags
from landmark_batch.parallel.shape import GroupShape
from landmark_batch.parallel.share import FrameShare, owned_rays, ray_shares, row_tiles
from landmark_batch.parallel.traffic import describe_traffic, sum_traffic
from tests.factories import make_config

CPU = torch.device("cpu")


@given(st.lists(st.lists(st.booleans(), max_size=40), min_size=1, max_size=4))
def test_lists_come_back_from_their_bits(ranks: list[list[bool]]) -> None:
    flags = [torch.tensor(own, dtype=torch.bool) for own in ranks]
    bounds = [0]
    for own in ranks:
        bounds.append(bounds[-1] + len(own))
    packed = [pack_flags(own.nonzero().view(-1), len(own)) for own in flags]
    assert [part.shape[0] for part in packed] == packed_sizes(bounds)
    expected = torch.cat(flags).nonzero().view(-1)
    assert torch.equal(unpack_flags(torch.cat(packed), bounds), expected)


def test_sums_are_in_rank_order() -> None:
    parts = torch.tensor([1e8, 1.0, -1e8, 1.0])
    assert float(sum_in_rank_order(parts.clone(), 4)) == 1.0  # ((1e8 + 1) - 1e8) + 1 in float32
    assert float(sum_in_rank_order(parts[[0, 2, 1, 3]].clone(), 4)) == 2.0
    assert sum_in_rank_order(torch.ones(0, 27), 3).shape == (0, 27)
    assert torch.equal(sum_in_rank_order(torch.arange(12.0).view(6, 2), 3), torch.tensor([[12.0, 15.0], [18.0, 21.0]]))


@pytest.mark.parametrize("rank", [0, 1, 3])
def test_sums_with_an_own_part_are_in_rank_order_too(rank: int) -> None:
    """Whoever adds, and whatever lies where its own part would be."""
    parts = torch.tensor([[1e8], [1.0], [-1e8], [1.0]])
    received = parts.clone()
    received[rank] = float("nan")
    assert float(add_in_rank_order(received, parts[rank].clone(), rank)) == 1.0


def test_a_digest_sees_every_bit() -> None:
    torch.manual_seed(0)
    ray, t = torch.randint(0, 9, (500,), dtype=torch.int32).sort().values, torch.rand(500)
    base = int(digest(ray, t))
    assert base == int(digest(ray.clone(), t.clone()))
    for changed in (torch.nextafter(t[7], torch.tensor(2.0)), -t[7]):
        other = t.clone()
        other[7] = changed
        assert int(digest(ray, other)) != base
    swapped = t.clone()
    swapped[[3, 4]] = t[[4, 3]]
    assert int(digest(ray, swapped)) != base
    moved = ray.clone()
    moved[250] += 1
    assert int(digest(moved, t)) != base
    assert int(digest(ray[:-1], t[:-1])) != base
    assert int(digest(ray[:0], t[:0])) == 0


@given(st.integers(1, 90), st.integers(1, 70), st.builds(GroupShape, st.integers(1, 4), st.integers(1, 4)))
def test_every_pixel_has_one_rank(width: int, height: int, shape: GroupShape) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiles, "CPU_SAMPLES", 2**12)
        share = FrameShare.of_tiles(width, height, 32, shape, CPU)
    assert [pixels.shape[0] for pixels in share.pixels] == list(share.sizes)
    assert sorted(torch.cat(share.pixels).tolist()) == list(range(width * height))
    for row in range(shape.data):
        counts = [share.sizes[rank] for rank in range(shape.size) if shape.data_index(rank) == row]
        assert max(counts) - min(counts) <= len(share.tiles[row])


def test_rows_get_sky_and_city_alike() -> None:
    """Each band of tile rows, and each of tile columns, is shared evenly."""
    for data in (2, 3, 4):
        rows = row_tiles(1920, 1080, 256, "cpu", data)
        for share in rows:
            for band in range(0, 1080 - 256, 256):
                inside = sum(tile.rays for tile in share if band <= tile.top < band + 256)
                assert abs(inside / (1920 * 256) - 1 / data) < 0.05
            for band in range(0, 1920 - 384, 384):
                inside = sum(tile.rays for tile in share if band <= tile.left < band + 384)
                assert abs(inside / (1080 * 384) - 1 / data) < 0.06


def test_rays_are_shared_in_squares() -> None:
    shares = ray_shares(200, 130, 3, CPU)
    assert sorted(torch.cat(shares).tolist()) == list(range(200 * 130))
    square = (shares[0] // 200 // 32) + (shares[0] % 200 // 64)
    assert set((square % 3).tolist()) == {0}
    assert [owned_rays(10, index, 4) for index in range(4)] == [(0, 2), (2, 5), (5, 7), (7, 10)]
    assert sum(share.shape[0] for share in ray_shares(5, 3, 4, CPU)) == 15


def test_traffic_of_the_usual_scene() -> None:
    config = make_config(resolutions=(1, 2, 4), density_channels=16, appearance_channels=48, app_dim=27)
    traffic = sum_traffic(config, GroupShape(2, 3))
    assert (traffic.ours.density, traffic.ours.appearance) == (2.0, 54.0)
    assert (traffic.landmark_torch.density, traffic.landmark_torch.appearance) == (96.0, 288.0)
    assert (traffic.landmark_fused.density, traffic.landmark_fused.appearance) == (4.0, 108.0)
    assert traffic.landmark_torch.appearance / traffic.ours.appearance > 5
    line = describe_traffic(config, GroupShape(2), {"tensor_bytes": 25_000_000}, frames=2)
    assert "2 B a sample and 54 B a coloured sample" in line and "48 x and 5.33 x" in line and "12.5 MB exchanged a frame" in line
    assert "exchanged" not in describe_traffic(config, GroupShape(2))
    assert describe_traffic(config, GroupShape(1, 4)) == ""
