"""`png_stream`: what a PNG reader makes of it are the pixels, and every device makes the same bytes."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from landmark_batch.kernels.picture import makes_pictures, png_stream
from landmark_batch.kernels.reference import deflating
from landmark_batch.kernels.reference.deflating import HEADER

from .test_rounding import DEVICES, usable

Bytes = NDArray[np.uint8]


def noise(height: int, width: int, most: int = 256) -> Bytes:
    return np.random.default_rng(height * width).integers(0, most, (height, width, 3), np.uint8)


def slope(height: int, width: int) -> Bytes:
    return (np.add.outer(np.arange(height), np.arange(width))[..., None] * np.array([1, 2, 3]) // 4).astype(np.uint8)


def rare(width: int) -> Bytes:
    """Counts like Fibonacci's numbers: codes that would be longer than 15 bits."""
    counts = [1, 1]
    while sum(counts) < 60_000:
        counts.append(counts[-1] + counts[-2])
    values = np.repeat(np.arange(len(counts), dtype=np.uint8) * 5, counts)
    values = np.random.default_rng(1).permutation(values)[: len(values) // (3 * width) * 3 * width]
    return np.cumsum(values.reshape(-1, width, 3), axis=1, dtype=np.uint8)  # a row's differences are these


PICTURES = {
    **{f"noise {size}": noise(*size) for size in [(1, 1), (1, 2), (3, 21), (2, 22), (5, 42), (7, 300), (9, 5600)]},
    **{f"flat {size}": np.full((*size, 3), 200, np.uint8) for size in [(1, 1), (40, 64), (3, 1000)]},
    "black": np.zeros((33, 33, 3), np.uint8),
    "slope": slope(60, 200),
    "few values": noise(50, 90, 3),
    "stripes": np.tile(noise(1, 7), (70, 30, 1)),
    "rare values": rare(100),
    "tall": noise(1500, 3, 20),
}


def stream_of(pixels: Bytes, device: str, room: int = 0) -> tuple[Bytes, int, int, bool]:
    """The stream, its length, the checksum, and whether it did not fit. room: bytes for it; 0 for enough."""
    size = -(-(HEADER + (room or 2 * pixels.size + 1024)) // 4) * 4
    out = torch.full((size,), 255, dtype=torch.uint8, device=device)
    png_stream(torch.from_numpy(pixels).to(device), out)
    found = out.cpu().numpy()
    length, checksum, overfull, _ = struct.unpack("<iIii", found[:HEADER].tobytes())
    return found[HEADER : HEADER + length], length, checksum, bool(overfull)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", PICTURES)
def test_a_reader_finds_the_pixels(device: str, name: str) -> None:
    usable(device)
    pixels = PICTURES[name]
    stream, _, checksum, overfull = stream_of(pixels, device)
    assert not overfull
    data = b"\x78\x01" + stream.tobytes() + struct.pack(">I", checksum)
    assert zlib.decompress(data) == deflating.filtered(pixels).tobytes()
    file = b"\x89PNG\r\n\x1a\n"
    size = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 2, 0, 0, 0)
    for kind, body in ((b"IHDR", size), (b"IDAT", data), (b"IEND", b"")):
        file += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(file))), pixels)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PICTURES)
def test_a_gpu_makes_the_bytes_of_the_reference(name: str) -> None:
    usable("cuda")
    for found, expected in zip(stream_of(PICTURES[name], "cuda"), stream_of(PICTURES[name], "cpu"), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("device", DEVICES)
def test_a_stream_that_does_not_fit_says_so(device: str) -> None:
    usable(device)
    pixels = noise(20, 100)
    _, length, checksum, overfull = stream_of(pixels, device)
    assert length > 4096 and not overfull
    assert stream_of(pixels, device, room=4096)[1:] == (length, checksum, True)
    exact = -(-length // 4) * 4
    assert stream_of(pixels, device, room=exact)[1:] == (length, checksum, False)
    assert stream_of(pixels, device, room=exact - 4)[1:] == (length, checksum, True)


def test_smooth_pictures_shrink_and_repeated_ones_vanish() -> None:
    assert stream_of(slope(60, 200), "cpu")[1] < 0.25 * 60 * 200 * 3
    assert stream_of(np.full((40, 64, 3), 9, np.uint8), "cpu")[1] < 400


@pytest.mark.gpu
def test_rows_of_any_usual_length_fit_a_gpu() -> None:
    usable("cuda")
    assert all(makes_pictures(1080, width) for width in (1, 1920, 3840, 7680)) and not makes_pictures(1080, 20_000)
    assert (
        not makes_pictures(1080, 0) and not makes_pictures(0, 1920) and not makes_pictures(2**20, 8) and not makes_pictures(100_000, 8_000)
    )
    with pytest.raises(RuntimeError, match="too long"):
        png_stream(torch.zeros(1, 20_000, 3, dtype=torch.uint8, device="cuda"), torch.zeros(1 << 20, dtype=torch.uint8, device="cuda"))
