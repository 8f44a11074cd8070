"""Rays and masks shared by the tests of ops."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from landmark_batch.kernels import build

BOX = (-1.0, -0.8, -0.1, 1.2, 0.9, 0.5)


def random_rays(count: int, seed: int = 0) -> Tensor:
    """Rays from above the box, most of them downwards, some level or upwards."""
    generator = torch.Generator().manual_seed(seed)
    origin = torch.rand(count, 3, generator=generator) * torch.tensor([2.4, 2.0, 1.0]) + torch.tensor([-1.2, -1.0, 0.2])
    direction = torch.rand(count, 3, generator=generator) * 2 - 1
    direction[:, 2] = direction[:, 2] * 0.6 - 0.5
    return torch.cat([origin, direction], dim=1)


@pytest.fixture(scope="module")
def device() -> str:
    """A CUDA device with the compiled kernels; skips where there is none."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    status = build.load("cuda")
    assert status.loaded, status.reason
    return "cuda"


@pytest.fixture
def rays() -> Tensor:
    return random_rays(40)


def blobs(size: tuple[int, int, int], share: float, seed: int = 0) -> Tensor:
    """A mask [Z, Y, X] bool with coherent occupied and empty regions, about `share` of it set."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, *(max(2, math.ceil(n / 6)) for n in size), generator=generator)
    fine = torch.nn.functional.interpolate(coarse, size=size, mode="trilinear", align_corners=True)[0, 0]
    return fine > torch.quantile(fine.flatten(), 1 - share)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Torch on one thread, as the renderer runs it: otherwise an operation's bits depend on how threads share it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
