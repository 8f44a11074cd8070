"""The mixed mode over the CUDA kernels' own ops, here their references: two ranks in one process, in lockstep, against one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from landmark_batch.errors import GroupError
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.tiles import Tile
from landmark_batch.parallel.fused_tensor import FusedTensorStages, fused_tile_steps
from landmark_batch.parallel.share import owned_rays, tile_pixels
from landmark_batch.parallel.tensor import OwnedRays
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


class LockStep:
    """Exchanges of ranks that are driven one after another: what one asks for is answered when all have asked."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.sent = rank, size, 0
        self.asked: tuple[str, Tensor, list[int]] | None = None

    def share(self, own: Tensor, counts: Any) -> Any:
        assert own.shape[0] == counts[self.rank]
        self.asked = ("share", own.clone(), list(counts))

    def partial_sums(self, partial: Tensor, bounds: Any) -> Any:
        assert partial.shape[0] == bounds[-1]
        self.asked = ("sums", partial.clone(), list(bounds))


def answer(exchanges: list[LockStep]) -> list[Tensor]:
    asked = [exchange.asked for exchange in exchanges]
    kinds, tensors, sizes = zip(*asked, strict=True)  # type: ignore[arg-type]
    assert len(set(kinds)) == 1 and all(size == sizes[0] for size in sizes), "collective sizes differ"
    if kinds[0] == "share":
        return [torch.cat(tensors) for _ in exchanges]
    return [torch.cat([tensor[sizes[0][r] : sizes[0][r + 1]] for tensor in tensors]) for r in range(len(exchanges))]


def run(scenes: list[Any], settings: Any, size: int) -> list[OwnedRays]:
    exchanges = [LockStep(rank, size) for rank in range(size)]
    pose, lens = torch.tensor(POSES["oblique"], dtype=torch.float32), torch.tensor(lens_of(WIDTH, HEIGHT))
    tile = Tile(0, 0, WIDTH, HEIGHT)
    stages = [FusedTensorStages(weights, settings, CPU) for weights in scenes]
    stages[0]._samples_per_ray = 0.01  # grows until nothing is lost
    steps = [fused_tile_steps(stages[r], exchanges[r], pose, lens, WIDTH, tile) for r in range(size)]  # type: ignore[arg-type]
    done: list[OwnedRays | None] = [None] * size
    received: list[Any] = [None] * size
    while True:
        for rank in range(size):
            with stages[rank].running():
                try:
                    steps[rank].send(received[rank])()
                except StopIteration as end:
                    done[rank] = end.value
        if all(result is not None for result in done):
            return [result for result in done if result is not None]
        assert all(result is None for result in done), "one rank ended before the others"
        received = list(answer(exchanges))


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("scene", SCENES)
@pytest.mark.parametrize("size", [2, 3])
def test_lists_of_the_mixed_mode_give_the_frame_of_one_rank(scene: dict[str, Any], size: int) -> None:
    whole = make_scene(**scene)
    settings = settings_for(whole.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    owned = run([shard_weights(whole, ChannelShard(rank, size)) for rank in range(size)], settings, size)
    expected = Renderer(whole, settings).render(POSES["oblique"], lens_of(WIDTH, HEIGHT), WIDTH, HEIGHT)
    pixels = tile_pixels(Tile(0, 0, WIDTH, HEIGHT), WIDTH, CPU, patches=True)
    assert sorted(pixels.tolist()) == list(range(WIDTH * HEIGHT))
    assert sum(part.survived for part in owned) == expected.counters["survived"]
    assert sum(part.coloured for part in owned) == expected.counters["coloured"]
    for rank, part in enumerate(owned):
        first, last = owned_rays(WIDTH * HEIGHT, rank, size)
        mine = pixels[first:last]
        alpha = expected.alpha.view(-1)[mine]
        torch.testing.assert_close(part.alpha, alpha, rtol=0, atol=1e-5)
        torch.testing.assert_close(part.depth, expected.depth.view(-1)[mine], rtol=0, atol=1e-4)
        rgb = (part.rgb + (1 - part.alpha)[:, None]).clamp(0, 1) if settings.background == "white" else part.rgb.clamp(0, 1)
        torch.testing.assert_close(rgb, expected.rgb.view(-1, 3)[mine], rtol=0, atol=2e-5)


@pytest.mark.usefixtures("one_thread")
def test_ranks_with_other_masks_end_before_any_sum() -> None:
    scene, other = make_scene(mask=0.5, mask_size=(9, 9, 5), seed=1), make_scene(mask=0.5, mask_size=(9, 9, 5), seed=2)
    settings = settings_for(scene.config, samples=48, alpha_mask_threshold=0.3, model__runtime="torch")
    with pytest.raises(GroupError, match="sampled the tile at column 0, row 0 differently"):
        run([shard_weights(scene, ChannelShard(0, 2)), shard_weights(other, ChannelShard(1, 2))], settings, 2)
