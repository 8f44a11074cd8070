"""Channel shares: what a rank reads is what cutting the whole gives, shares add up, and a rank takes its share of memory."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.errors import CheckpointError
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.export import save_landmark_block, save_landmark_blocks, save_landmark_checkpoint
from landmark_batch.scene.shard import ChannelShard, idle_shares, shard_weights
from landmark_batch.scene.weights import SceneWeights, scene_bytes
from tests.factories import make_config, make_scene
from tests.scene.conftest import assert_same_weights, rewrite

logger = logging.getLogger(__name__)


def grids_in(weights: SceneWeights) -> list[Tensor]:
    return [*weights.density_planes, *weights.density_lines, *weights.app_planes, *weights.app_lines]


def check_shares(path: Path, sizes: tuple[int, ...] = (1, 2, 3), **options: Any) -> SceneWeights:
    """Every share read from `path` against the whole scene, cut. Returns the whole."""
    whole = load_scene(path, **options)
    for size in sizes:
        for rank in range(size):
            shard = ChannelShard(rank, size)
            read, cut = load_scene(path, shard=shard, **options), shard_weights(whole, shard)
            assert_same_weights(read, cut)
            assert (read.shard, cut.shard, whole.shard) == (shard, shard, None)
            assert (read.config, read.warnings) == (whole.config, whole.warnings)
            assert all(tensor.is_contiguous() for tensor in grids_in(read))
    return whole


@given(st.integers(1, 200), st.integers(1, 40))
def test_spans_cover_every_channel_once(channels: int, size: int) -> None:
    spans = [ChannelShard(rank, size).span(channels) for rank in range(size)]
    assert [channel for start, stop, _ in spans for channel in range(start, stop)] == list(range(channels))
    assert {width for *_, width in spans} == {-(-channels // size)}
    assert all(0 <= start <= stop <= channels and stop - start <= width for start, stop, width in spans)


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 40))
def test_shares_without_a_channel_are_counted(density: int, appearance: int, size: int) -> None:
    config = make_config(density_channels=density, appearance_channels=appearance)
    spans = [(ChannelShard(rank, size).span(density), ChannelShard(rank, size).span(appearance)) for rank in range(size)]
    assert idle_shares(config, size) == sum(all(start == stop for start, stop, _ in pair) for pair in spans)


@pytest.mark.parametrize(("rank", "size"), [(2, 2), (-1, 2), (0, 0)])
def test_ranks_outside_a_group_are_refused(rank: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"rank {rank} of {size}"):
        ChannelShard(rank, size)


def test_the_last_shares_are_filled_up_with_zeros() -> None:
    scene = make_scene(resolutions=(1,), density_channels=5, appearance_channels=7, nonlinear_density=True)
    assert scene.basis_density is not None
    third, last = (shard_weights(scene, ChannelShard(rank, 4)) for rank in (2, 3))
    assert torch.equal(third.density_planes[0][..., 0], scene.density_planes[0][..., 4])
    assert third.density_planes[0].shape[-1] == 2
    assert not third.density_planes[0][..., 1].any()
    assert not any(tensor.any() for tensor in (*last.density_planes, *last.density_lines, last.basis_density) if tensor is not None)
    assert torch.equal(last.app_lines[0], torch.nn.functional.pad(scene.app_lines[0][..., 6:], (0, 1)))
    assert torch.equal(last.basis_mat, torch.nn.functional.pad(scene.basis_mat[:, 6:], (0, 1)))
    with pytest.raises(ValueError, match="share 3 of 4 already"):
        shard_weights(last, ChannelShard(0, 2))


scenes = st.fixed_dictionaries(
    {
        "division": st.sampled_from([(1, 1), (2, 2), (3, 1)]),
        "layout": st.sampled_from([None, "multi-block"]),
        "ndims": st.sampled_from([1, 3]),
        "resolutions": st.sampled_from([(1,), (1, 2), (1, 2, 4)]),
        "grid_size": st.tuples(st.integers(2, 6), st.integers(2, 6), st.integers(2, 4)),
        "density_channels": st.integers(1, 5),
        "appearance_channels": st.integers(1, 7),
        "nonlinear_density": st.booleans(),
        "bias": st.booleans(),
        "embedding_rows": st.sampled_from([0, 3]),
        "mask": st.sampled_from([None, 0.3]),
        "seed": st.integers(0, 1000),
    }
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(axes=scenes, size=st.integers(2, 5))
def test_a_share_read_is_the_share_cut(tmp_path: Path, axes: dict[str, Any], size: int) -> None:
    scene = make_scene(**axes)
    path = tmp_path / "town-merged-stack.th"
    save_landmark_checkpoint(scene, path)
    assert_same_weights(check_shares(path, (size,)), scene)


def test_files_as_landmark_writes_them_and_old_ones(merged: Path) -> None:
    def write_contiguous(content: dict[str, Any]) -> None:
        content["state_dict"] = {key: value.contiguous().double() for key, value in content["state_dict"].items()}

    whole = check_shares(rewrite(merged, write_contiguous), (3,))
    content = torch.load(merged, weights_only=False)
    torch.save(content, merged, _use_new_zipfile_serialization=False)
    assert_same_weights(check_shares(merged, (3,)), whole)


def test_blocks_one_of_them_alone_and_edits(tmp_path: Path) -> None:
    scene, added = (make_scene(division=(2, 2), mask=0.4, density_channels=3, seed=seed) for seed in (0, 1))
    save_landmark_blocks(scene, tmp_path / "town")
    assert added.mask is not None
    grids = {name: [item[2] for item in getattr(added, name)] for name in ("density_planes", "density_lines", "app_planes", "app_lines")}
    save_landmark_block(added.config, 2, tmp_path / "town", **grids, decoder=added, edit="add")  # type: ignore[arg-type]
    np.save(tmp_path / "alpha_volume_add.npy", added.mask.volume.numpy().astype(np.uint8).reshape(-1))
    check_shares(tmp_path, (2,))
    check_shares(tmp_path / "town-sub3.th", (2,))
    edited = check_shares(tmp_path, (2, 4), edit="new")
    assert torch.equal(edited.app_planes[0][2], added.app_planes[0][2])


def test_dims_with_different_channels(tmp_path: Path) -> None:
    scene = make_scene(ndims=3, resolutions=(1, 2), nonlinear_density=True)  # 4 density and 6 appearance channels
    path = tmp_path / "a.th"
    save_landmark_checkpoint(scene, path)

    def thin(content: dict[str, Any]) -> None:
        state = content["state_dict"]
        for index in range(2, 6):
            for kind, count in (("density", 1), ("app", 2)):
                for part in ("plane", "line"):
                    state[f"{kind}_{part}.{index}"] = state[f"{kind}_{part}.{index}"][:, :count].clone()
        for key, full, count in (("basis_mat", 6, 2), ("basis_den", 4, 1)):
            parts = state[f"{key}.weight"].split(full, dim=1)
            state[f"{key}.weight"] = torch.cat([part[:, : full if i < 2 else count] for i, part in enumerate(parts)], dim=1)
        content["kwargs"]["density_n_comp"], content["kwargs"]["appearance_n_comp"] = [4, 1, 1], [6, 2, 2]

    check_shares(rewrite(path, thin), (2, 4))


@pytest.mark.parametrize("name", ["seq1.th", "bp0-merged-stack.th", "bp0-sub0.th", "bp0-merged-stack-wo_plane.th"])
def test_shares_of_trained_scenes(reference_dir: Path, name: str) -> None:
    check_shares(reference_dir / "ckpt" / name, (4,))


def test_a_number_that_is_none_is_found_by_the_rank_that_holds_it(sequential: Path) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["state_dict"]["app_plane.1"] = content["state_dict"]["app_plane.1"].contiguous()
        content["state_dict"]["app_plane.1"][0, 5, 0, 0] = float("nan")

    rewrite(sequential, spoil)
    load_scene(sequential, shard=ChannelShard(0, 2))
    with pytest.raises(CheckpointError, match=r"park\.th: app_plane\.1 holds NaN or Inf \(1 of"):
        load_scene(sequential, shard=ChannelShard(1, 2))


# -- partial sums


def features(weights: SceneWeights, count: int = 500) -> tuple[Tensor, Tensor]:
    """Density [M] and appearance [M, F] of random samples in the scene's box, of whatever channels the weights hold."""
    config = weights.config
    generator = torch.Generator().manual_seed(5)
    low, high = torch.tensor(config.aabb)
    points = low + (high - low) * torch.rand(count, 3, generator=generator)
    rays = torch.cat([points, torch.tensor([0.0, 0.0, -1.0]).expand(count, 3)], dim=1).contiguous()
    ray, t = torch.arange(count, dtype=torch.int32), torch.zeros(count)
    box = [float(value) for corner in config.aabb for value in corner]
    division = () if config.layout == "single" else config.division
    common = (rays, ray, t, box, division, None)
    levels = len(config.resolutions)
    density = kernels.density(*common, weights.density_planes, weights.density_lines, levels, weights.basis_density)
    return density, kernels.appearance(*common, weights.app_planes, weights.app_lines, levels, weights.basis_mat)


@pytest.mark.parametrize("size", [2, 3, 4, 7])
@pytest.mark.parametrize(
    "axes",
    [
        {},
        {"division": (2, 2), "resolutions": (1, 2, 4), "density_channels": 16, "appearance_channels": 48, "app_dim": 27},
        {"ndims": 3, "nonlinear_density": True, "density_channels": 5, "appearance_channels": 7},
        {"division": (3, 2), "nonlinear_density": True, "density_channels": 3},
    ],
    ids=["single", "landmark", "three dims", "nonlinear"],
)
def test_shares_add_up_to_the_whole(axes: dict[str, Any], size: int) -> None:
    """The bound is some float32 roundings of sums whose terms are of the size of the result."""
    scene = make_scene(**axes)
    density, appearance = features(scene)
    parts = [features(shard_weights(scene, ChannelShard(rank, size))) for rank in range(size)]
    torch.testing.assert_close(torch.stack([part[0] for part in parts]).sum(0), density, rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(torch.stack([part[1] for part in parts]).sum(0), appearance, rtol=1e-5, atol=2e-5)
    assert not torch.allclose(parts[0][0], density, atol=1e-2)


# -- memory

MEASURE = """
import sys
from pathlib import Path
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.shard import ChannelShard

def status(key):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(key)) * 1024

load_scene(Path(sys.argv[2]))  # code and allocator warm up
for share in sys.argv[3:]:
    rank, size = share.split("/")
    before, held = status("VmRSS"), status("RssAnon")
    open("/proc/self/clear_refs", "w").write("5")
    weights = load_scene(Path(sys.argv[1]), shard=ChannelShard(int(rank), int(size)))
    print(share, status("VmHWM") - before, status("RssAnon") - held)
    del weights
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak of a process is read from Linux's /proc")
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_a_rank_takes_its_share_of_memory(tmp_path: Path, layout: str) -> None:
    """Real processes: bytes of their own and the peak, in which pages of the mapped file count (the system may drop those)."""
    scene = make_scene(
        division=(2, 2), resolutions=(1, 2), grid_size=(96, 96, 8), density_channels=16, appearance_channels=48, mask=0.5, embedding_rows=50
    )
    path, small = tmp_path / "town-merged-stack.th", tmp_path / "small.th"
    save_landmark_checkpoint(scene, path)
    save_landmark_checkpoint(make_scene(), small)
    if layout == "channels first":  # as LandMark writes them; this package's own files hold them as they lie in memory
        rewrite(path, lambda content: content.update(state_dict={key: item.contiguous() for key, item in content["state_dict"].items()}))
    root = Path(__file__).resolve().parents[2]
    planes, rest = scene.config.grid_parameters() * 4, scene_bytes(replace(scene.config, density_channels=0, appearance_channels=0))
    slack = 6 * 2**20  # code of torch's that is touched for the first time, the unpickler
    edges = 8 * 2**20  # a page cache of large folios maps up to 2 MiB around both ends of a slice, of four large tensors
    shares = ["0/1", "1/2", "2/4"] if layout == "channels first" else ["2/4"]
    words = [sys.executable, "-c", MEASURE, str(path), str(small), *shares]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}  # glibc gives back what a share before has freed
    run = subprocess.run(words, capture_output=True, text=True, cwd=root, env=environment, check=False)
    assert run.returncode == 0, run.stderr
    for line in run.stdout.splitlines():
        share, *numbers = line.split()
        size, (peak, own) = int(share.partition("/")[2]), (int(number) for number in numbers)
        mapped = planes / size if layout == "channels first" else planes
        text = f"{layout}, share {share}: own %.1f MiB, peak %.1f MiB, planes %.1f MiB"
        figures = text % (own / 2**20, peak / 2**20, planes / 2**20)
        logger.info(figures)  # pytest --log-cli-level=info shows them
        assert 0.9 * planes / size <= own <= planes / size + rest + slack, figures
        assert peak <= planes / size + mapped + rest + slack + edges, figures
    assert len(run.stdout.splitlines()) == len(shares)
