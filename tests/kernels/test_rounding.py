"""`read_back`: the bits of frames.pixels.quantise, and no value that cannot be stored goes unseen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from landmark_batch.frames.pixels import quantise as on_the_host
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.kernels import build
from landmark_batch.kernels.picture import png_stream
from landmark_batch.kernels.rounding import read_back

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
DTYPES = {"uint8": torch.uint8, "uint16": torch.int16, "float16": torch.float16, "float32": torch.float32}
LIMITS = {"float16": 65504.0}
LARGEST = torch.finfo(torch.float32).max
SIZES = [(1, 1), (1, 2), (3, 7), (17, 61), (64, 48)]  # of a frame: 4 does not divide them all, nor 1024


def usable(device: str) -> None:
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        status = build.load("cuda")
        assert status.loaded, status.reason


def floats(*shape: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(sum(shape))) * 1.5 - 0.25


def host(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.full(shape, 77, dtype=dtype, pin_memory=device == "cuda")


def call(device: str, dtype: str, colour: Tensor, alpha: Tensor | None) -> tuple[Tensor, list[int]]:
    """The values, and the words of three outputs, of which this is the second."""
    fine = torch.zeros(1, device=device)
    planes, alphas = [fine, colour.to(device), fine], [None, None if alpha is None else alpha.to(device), None]
    places = [host((1,), torch.float32, device) for _ in range(3)]
    places[1] = host(tuple(colour.shape) if alpha is None else (*colour.shape[:-1], 4), DTYPES[dtype], device)
    wrong = host((3,), torch.int32, device)
    read_back(planes, alphas, [LARGEST, LIMITS.get(dtype, LARGEST), LARGEST], places, wrong, None, -1)
    if device == "cuda":
        torch.cuda.synchronize()
    return places[1], wrong.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_the_bits_of_the_host(device: str, dtype: str, size: tuple[int, int]) -> None:
    usable(device)
    rgb, alpha = floats(*size, 3), floats(*size)
    for channels in (3, 4):
        frame = {"rgb": rgb.numpy(), "depth": alpha.numpy(), "alpha": alpha.numpy()}
        (expected,) = on_the_host(frame, [OutputSpec("rgb", dtype, channels)], frame=0).values()
        out, wrong = call(device, dtype, rgb, alpha if channels == 4 else None)
        assert out.numpy().view(expected.dtype).tobytes() == np.ascontiguousarray(expected).tobytes() and wrong == [0, 0, 0]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 65505.0])
def test_one_value_that_cannot_be_stored(device: str, dtype: str, bad: float) -> None:
    usable(device)
    expected = [0, int(bad != 65505.0 or dtype == "float16"), 0]
    for size in SIZES:
        for place in {0, size[0] * size[1] // 2, size[0] * size[1] - 1}:
            rgb, alpha = floats(*size, 3), floats(*size)
            rgb.view(-1, 3)[place, 2] = bad
            assert call(device, dtype, rgb, None)[1] == expected
            assert call(device, dtype, rgb, alpha)[1] == expected
            alpha.view(-1)[place] = bad
            assert call(device, dtype, floats(*size, 3), alpha)[1] == expected


@pytest.mark.parametrize("device", DEVICES)
def test_a_frame_is_read_back_whole(device: str) -> None:
    usable(device)
    rgb, alpha, depth = floats(17, 61, 3), floats(17, 61), floats(17, 61) * 1e5
    apart = torch.empty(17, 61 * 2, device=device)[:, ::2]  # neither side by side
    odd = torch.empty(17 * 61 + 1, device=device)[1:].view(17, 61)  # nor at a multiple of 16 bytes
    for place, tensor in ((apart, depth), (odd, alpha)):
        place.copy_(tensor)
    assert not apart.is_contiguous() and odd.data_ptr() % 16 != 0
    frame = {"rgb": rgb.numpy(), "depth": depth.numpy(), "alpha": alpha.numpy()}
    outputs = [
        OutputSpec("alpha", "float32"),
        OutputSpec("rgb", "uint8", 3),
        OutputSpec("rgb", "uint16", 4),
        OutputSpec("depth", "float16"),
    ]
    planes = [odd, rgb.to(device), rgb.to(device), apart]
    alphas = [None, None, odd, None]
    limits = [LIMITS.get(output.dtype, LARGEST) for output in outputs]
    shapes = [tuple(plane.shape) if alpha is None else (17, 61, 4) for plane, alpha in zip(planes, alphas, strict=True)]
    places = [host(shape, DTYPES[output.dtype], device) for shape, output in zip(shapes, outputs, strict=True)]
    wrong, picture = host((4,), torch.int32, device), host((8192,), torch.uint8, device)
    read_back(planes, alphas, limits, places, wrong, picture, 1)
    if device == "cuda":
        torch.cuda.synchronize()
        stream = torch.empty(8192, dtype=torch.uint8, device=device)
        png_stream(places[1].to(device), stream)
        length = 16 + int(stream[:4].view(torch.int32).item())
        assert length > 1000 and picture[:length].equal(stream[:length].cpu())
    assert wrong.tolist() == [0, 0, 0, 1]
    for output, place in zip(outputs[:3], places, strict=False):
        (expected,) = on_the_host(frame, [output], frame=0).values()
        assert place.numpy().view(expected.dtype).tobytes() == np.ascontiguousarray(expected).tobytes()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_opcheck(device: str) -> None:
    usable(device)
    for alpha in (None, floats(5, 7).to(device)):
        places = [host((5, 7, 3 if alpha is None else 4), torch.uint8, device)]
        read = ([floats(5, 7, 3).to(device)], [alpha], [LARGEST], places, host((1,), torch.int32, device), None, -1)
        torch.library.opcheck(torch.ops.landmark_batch.read_back.default, read)
