"""The mixed mode over the CUDA kernels' own ops, here their references: ranks in threads of one process against one."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor

from landmark_batch.errors import GroupError
from landmark_batch.kernels import fused
from landmark_batch.model.renderer import Renderer
from landmark_batch.parallel import share, tensor_frame
from landmark_batch.parallel.exchange import TensorExchange
from landmark_batch.parallel.fused_tensor import FusedTensorStages
from landmark_batch.parallel.share import ray_batches, ray_shares
from landmark_batch.parallel.tensor_frame import TensorFrames
from landmark_batch.scene.shard import ChannelShard, shard_weights
from tests.factories import make_scene
from tests.kernels.conftest import one_thread
from tests.model.conftest import POSES, settings_for
from tests.parallel.tasks import lens_of

__all__ = ["one_thread"]

CPU = torch.device("cpu")
WIDTH, HEIGHT = 37, 30
SCENES: list[dict[str, Any]] = [
    {"division": (2, 2), "mask": 0.5, "mask_size": (40, 36, 20)},
    {"ndims": 3, "activation": "relu", "nonlinear_density": True, "density_channels": 5, "appearance_channels": 7},
    {"mask": 0.0, "mask_size": (9, 9, 5)},
]


class Board:
    """Where ranks in threads leave what they send."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.barrier = threading.Barrier(size)


class Received:
    def __init__(self, value: Tensor) -> None:
        self._value = value

    def wait(self) -> Tensor:
        return self._value


class BoardChannel:
    """A channel of threads. This rank's own rows come back as garbage, as on a GPU, where they are never written."""

    def __init__(self, board: Board, rank: int, size: int) -> None:
        self.board, self.rank, self.size = board, rank, size
        self.lengths: list[int] = []

    def swap(self, parts: list[Tensor], rows: int) -> Received:
        self.board.slots[self.rank] = [part.clone() for part in parts]
        self.lengths.append(rows)
        self.board.barrier.wait(60)
        sent = [self.board.slots[other][self.rank] for other in range(self.size)]
        self.board.barrier.wait(60)
        assert [part.shape[0] for part in sent] == [rows] * self.size, "ranks send other lengths than this one takes"
        own = sent[self.rank]
        sent[self.rank] = torch.full_like(own, float("nan") if own.is_floating_point() else 7)
        return Received(torch.stack(sent))


class Rendered:
    """What came of some frames on all ranks: rgb, depth, alpha [P] of each rank's pixels, in the frame's order; counters; exchanges."""

    def __init__(self, scenes: list[Any], settings: Any, frames: int = 1, **options: Any) -> None:
        size = len(scenes)
        board = Board(size)
        self.channels = [BoardChannel(board, rank, size) for rank in range(size)]
        pixels = tuple(ray_shares(WIDTH, HEIGHT, size, CPU))
        pose, lens = torch.tensor(POSES["oblique"], dtype=torch.float32), torch.tensor(lens_of(WIDTH, HEIGHT))

        def rank(index: int) -> list[Any]:
            torch.set_num_threads(1)
            exchange = TensorExchange(self.channels[index])  # type: ignore[arg-type]
            renderer = TensorFrames(FusedTensorStages(scenes[index], settings, CPU), exchange, **options)
            try:
                return [renderer.render(pose, lens, WIDTH, pixels, size) for _ in range(frames)]
            except BaseException:
                board.barrier.abort()
                raise

        with ThreadPoolExecutor(size) as pool:
            futures = [pool.submit(rank, index) for index in range(size)]
            errors = [error for future in futures if (error := future.exception()) is not None]
            for error in errors:
                if not isinstance(error, threading.BrokenBarrierError):
                    raise error
            results = [future.result()[-1] for future in futures]
        self.counters = [result[3] for result in results]
        self.rgb, self.depth, self.alpha = (torch.empty(WIDTH * HEIGHT, *more) for more in ((3,), (), ()))
        for own, result in zip(pixels, results, strict=True):
            self.rgb[own], self.depth[own], self.alpha[own] = result[:3]


def shares_of(scene: Any, size: int) -> list[Any]:
    return [shard_weights(scene, ChannelShard(rank, size)) for rank in range(size)]


@pytest.fixture
def small_rooms(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lists start with room for few samples, and are rendered again until nothing is lost; frames of this size take several batches,
    and are shared out in small squares.
    """
    monkeypatch.setattr(share, "MACRO", (8, 4))
    monkeypatch.setattr(tensor_frame, "LEAST_ROOM", 1)
    monkeypatch.setattr(tensor_frame, "BATCH_RAYS", 64)


@pytest.mark.usefixtures("one_thread", "small_rooms")
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("size", [2, 3])
def test_lists_of_the_mixed_mode_give_the_frame_of_one_rank(scene: dict[str, Any], size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_frame._Need, "samples", 0.01)
    if size == 3:
        monkeypatch.setattr(share, "MACRO", (64, 32))  # one rank has all rays
    whole = make_scene(**scene)
    settings = settings_for(whole.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    expected = Renderer(whole, settings).render(POSES["oblique"], lens_of(WIDTH, HEIGHT), WIDTH, HEIGHT)
    frames = [
        Rendered(shares_of(whole, size), settings, padded=padded, batches=batches) for padded, batches in ((True, 3), (False, 3), (True, 1))
    ]
    first = frames[0]
    for name in ("survived", "coloured"):
        assert sum(counters[name] for counters in first.counters) == expected.counters[name]
    torch.testing.assert_close(first.alpha, expected.alpha.view(-1), rtol=0, atol=1e-5)
    torch.testing.assert_close(first.depth, expected.depth.view(-1), rtol=0, atol=1e-4)
    rgb = (first.rgb + (1 - first.alpha)[:, None]).clamp(0, 1)
    torch.testing.assert_close(rgb, expected.rgb.view(-1, 3), rtol=0, atol=2e-5)
    for other in frames[1:]:
        assert other.counters == first.counters
        for name in ("rgb", "depth", "alpha"):
            assert torch.equal(getattr(other, name), getattr(first, name)), name


@pytest.mark.usefixtures("one_thread", "small_rooms")
def test_lengths_are_known_beforehand_or_exact() -> None:
    """Padded: a second frame is exchanged with the lengths of the first, none of which were looked at. Counted: as long as needed."""
    whole = make_scene(**SCENES[0])
    settings = settings_for(whole.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    padded, counted = (Rendered(shares_of(whole, 2), settings, 3, padded=padded, batches=1) for padded in (True, False))
    for rank in range(2):
        second, third = padded.channels[rank].lengths[-6:-3], padded.channels[rank].lengths[-3:]
        assert second == third
        densities, _, features = counted.channels[rank].lengths[-3:]
        assert densities == counted.counters[rank]["survived"] < third[0] < 2 * densities
        assert features == counted.counters[rank]["coloured"] < third[2] < 2 * features


@pytest.mark.usefixtures("one_thread")
def test_ranks_with_other_masks_end_before_any_sum() -> None:
    scene, other = make_scene(mask=0.5, mask_size=(9, 9, 5), seed=1), make_scene(mask=0.5, mask_size=(9, 9, 5), seed=2)
    settings = settings_for(scene.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    with pytest.raises(GroupError, match="sampled the frame differently"):
        Rendered([shard_weights(scene, ChannelShard(0, 2)), shard_weights(other, ChannelShard(1, 2))], settings)


@pytest.mark.usefixtures("one_thread")
def test_ranks_that_find_other_samples_know_by_the_end_of_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = make_scene(mask=0.5, mask_size=(9, 9, 5))
    settings = settings_for(whole.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    right = FusedTensorStages.march

    def march(self: FusedTensorStages, rays: Tensor, capacity: int) -> fused.Marched:
        found = right(self, rays, capacity)
        if self is wrong[0] and rays.shape[0]:
            found.found[0] += 1
        return found

    wrong: list[FusedTensorStages] = []
    begin = FusedTensorStages.__init__

    def __init__(self: FusedTensorStages, *arguments: Any) -> None:
        begin(self, *arguments)
        wrong.append(self)

    monkeypatch.setattr(FusedTensorStages, "__init__", __init__)
    monkeypatch.setattr(FusedTensorStages, "march", march)
    with pytest.raises(GroupError, match="sampled the frame differently"):
        Rendered(shares_of(whole, 2), settings)


@pytest.mark.parametrize(("width", "height", "shares", "count"), [(640, 360, 2, 4), (37, 30, 3, 3), (5, 3, 4, 2)])
def test_batches_are_spread_over_the_frame(width: int, height: int, shares: int, count: int) -> None:
    for pixels in ray_shares(width, height, shares, CPU):
        places = ray_batches(pixels, width, shares, count)
        assert sorted(torch.cat(places).tolist()) == list(range(pixels.shape[0]))
        if width == 640:
            rows = torch.stack([(pixels[part] // width).double().mean() for part in places])
            assert (rows.max() - rows.min()) < height / 3
