"""The PNG writer against Pillow and against a decoder that shares nothing with it."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from PIL import Image

from landmark_batch.frames import png
from landmark_batch.frames.png import encode_png, read_png_text

from .export_sources import photographs, pictures


def chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    found, at = [], 8
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        (checksum,) = struct.unpack_from(">I", data, at + 8 + size)
        assert checksum == zlib.crc32(kind + body), kind
        found.append((kind, body))
        at += 12 + size
    return found


def decode(data: bytes) -> NDArray[np.uint8] | NDArray[np.uint16]:
    """Straight from the specification: any of the five row filters, byte by byte."""
    parts = chunks(data)
    width, height, depth, colour, *rest = struct.unpack(">IIBBBBB", parts[0][1])
    assert rest == [0, 0, 0]
    channels = {0: 1, 2: 3, 6: 4}[colour]
    step = channels * depth // 8
    raw = zlib.decompress(b"".join(body for kind, body in parts if kind == b"IDAT"))
    rows, above = [], [0] * (width * step)
    for y in range(height):
        line = raw[y * (width * step + 1) : (y + 1) * (width * step + 1)]
        row: list[int] = []
        for i, value in enumerate(line[1:]):
            left = row[i - step] if i >= step else 0
            corner = above[i - step] if i >= step else 0
            guess = [0, left, above[i], (left + above[i]) // 2, _paeth(left, above[i], corner)][line[0]]
            row.append((value + guess) & 255)
        rows.append(row)
        above = row
    flat = np.array(rows, np.uint8).reshape(height, width, step)
    values = flat if depth == 8 else flat.view(">u2").astype(np.uint16)
    return values[..., 0] if channels == 1 else values


def _paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    return min((abs(p - a), 0, a), (abs(p - b), 1, b), (abs(p - c), 2, c))[2]


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (24, 33)])
def test_decodes_to_the_same_pixels(dtype: str, channels: int, size: tuple[int, int]) -> None:
    pixels = pictures(1, *size, channels, dtype)[0]
    pixels = pixels[..., 0] if channels == 1 else pixels
    assert np.array_equal(decode(encode_png(pixels)), pixels)


@given(
    pixels=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 20), st.integers(1, 12), st.sampled_from([1, 3, 4])),
        fill=st.nothing(),
    )
)
@settings(max_examples=40, deadline=None)
def test_any_pixels_survive(pixels: NDArray[np.uint8] | NDArray[np.uint16]) -> None:
    expected = pixels[..., 0] if pixels.shape[2] == 1 else pixels
    assert np.array_equal(decode(encode_png(pixels)), expected)


def test_pillow_reads_a_photograph_back_exactly(reference_dir: Path) -> None:
    for photograph in photographs(reference_dir, 3):
        with Image.open(io.BytesIO(encode_png(photograph))) as image:
            assert image.mode == "RGB" and image.info["srgb"] == 0
            assert np.array_equal(np.asarray(image), photograph)


def test_pillow_reads_grey_16_and_rgba_back_exactly() -> None:
    grey = pictures(1, 40, 50, 1, "uint16")[0][..., 0]
    with Image.open(io.BytesIO(encode_png(grey, srgb=False))) as image:
        assert image.mode == "I;16" and "srgb" not in image.info
        assert np.array_equal(np.asarray(image), grey)
    rgba = pictures(1, 40, 50, 4)[0]
    with Image.open(io.BytesIO(encode_png(rgba))) as image:
        assert np.array_equal(np.asarray(image), rgba)


def test_both_filters_are_used() -> None:
    across = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (33, 1))
    used = [zlib.decompress(dict(chunks(encode_png(pixels)))[b"IDAT"])[0] for pixels in (across.T.copy(), across)]
    assert used == [1, 2]  # columns alike: Sub leaves zeros; rows alike: Up does
    assert np.array_equal(decode(encode_png(across.T)), across.T)


@pytest.mark.parametrize("band", [1, 100, 500, 2001])
def test_bands_join_without_a_seam(monkeypatch: pytest.MonkeyPatch, band: int) -> None:
    smooth = np.tile(np.arange(0, 200, 4, dtype=np.uint16)[:, None, None], (1, 33, 3))
    for pixels in (smooth, smooth.transpose(1, 0, 2).copy(), pictures(1, 50, 33)[0]):
        whole = encode_png(pixels)
        with monkeypatch.context() as patch:
            patch.setattr(png, "_BAND", band)
            assert np.array_equal(decode(encode_png(pixels)), pixels)
        assert np.array_equal(decode(whole), pixels)


@pytest.mark.parametrize("band", [700, 1 << 20])
@pytest.mark.parametrize("order", ["smooth first", "noise first", "in turns"])
def test_16_bits_are_compressed_where_it_pays(monkeypatch: pytest.MonkeyPatch, band: int, order: str) -> None:
    """Rows alike, rows with a noisy lower byte, and rows of noise, next to each other in every order."""
    monkeypatch.setattr(png, "_BAND", band)
    random = np.random.default_rng(2)
    smooth = np.tile(np.arange(0, 99 * 256, 256, dtype=np.uint16).reshape(1, 33, 3), (24, 1, 1))
    noisy = smooth + random.integers(0, 256, smooth.shape, dtype=np.uint16)
    noise = random.integers(0, 65536, smooth.shape, dtype=np.uint16)
    parts = {"smooth first": (smooth, noisy, noise), "noise first": (noise, noisy, smooth), "in turns": (noisy, smooth, noise, smooth)}
    pixels = np.concatenate(parts[order])
    data = encode_png(pixels)
    assert np.array_equal(decode(data), pixels)
    with Image.open(io.BytesIO(data)) as image:
        image.load()  # libpng's own checks
    kinds = set(zlib.decompress(b"".join(body for kind, body in chunks(data) if kind == b"IDAT"))[:: 1 + 33 * 6])
    if band == 700:  # a few rows
        assert 0 in kinds and kinds & {1, 2}
        assert len(encode_png(smooth)) < smooth.nbytes / 10 and smooth.nbytes * 2 < len(data) < pixels.nbytes


def test_rows_longer_than_a_stored_block() -> None:
    pixels = np.random.default_rng(3).integers(0, 65536, (2, 12000, 3), dtype=np.uint16)
    with_filter, without = encode_png(pixels), encode_png(pixels, compress=False)
    raw = [zlib.decompress(b"".join(body for kind, body in chunks(data) if kind == b"IDAT")) for data in (with_filter, without)]
    assert raw[0] == raw[1]  # noise: stored either way
    assert b"".join(raw[0][i * 72001 + 1 : (i + 1) * 72001] for i in (0, 1)) == pixels.astype(">u2").tobytes()


@pytest.mark.parametrize("shape", [(1, 1), (3, 65534), (3, 65535), (2, 32767), (40, 33, 3), (700, 33, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_stored_pixels(shape: tuple[int, ...], dtype: str) -> None:
    """Sizes at, below and above a whole number of stored blocks."""
    pixels = np.random.default_rng(1).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)
    data = encode_png(pixels, {"Title": "x"}, compress=False)
    assert np.array_equal(decode(data), pixels)
    raw = b"".join(part for kind, part in chunks(data) if kind == b"IDAT")
    count = 1 + pixels.itemsize * int(np.prod(shape[1:]))
    assert set(zlib.decompress(raw)[::count]) == {0} and len(raw) > pixels.nbytes


def test_strided_and_big_endian_arrays(reference_dir: Path) -> None:
    photograph = photographs(reference_dir, 1)[0][::7, ::11, ::-1]
    assert np.array_equal(decode(encode_png(photograph)), photograph)
    big = pictures(1, dtype="uint16")[0].astype(">u2")
    assert np.array_equal(decode(encode_png(big)), big)


def test_text_is_read_without_the_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    text = {"Software": "landmark-batch", "Title": "flüg 7", "Other": "高度"}
    path.write_bytes(encode_png(pictures(1)[0], text))
    assert read_png_text(path) == text
    with Image.open(path) as image:
        assert image.text == text  # type: ignore[attr-defined]
    kinds = [kind for kind, _ in chunks(path.read_bytes())]
    assert kinds == [b"IHDR", b"sRGB", b"tEXt", b"tEXt", b"iTXt", b"IDAT", b"IEND"]


def test_a_cut_or_foreign_file_has_no_text(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    data = encode_png(pictures(1)[0], {"Title": "x"})
    for broken in (b"", data[:5], data[:30], data[:-1], data[:-12], b"GIF89a" + bytes(40)):
        path.write_bytes(broken)
        assert read_png_text(path) == {}, len(broken)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_what_png_cannot_hold_is_refused(pixels: NDArray[np.uint8]) -> None:
    with pytest.raises(ValueError, match="PNG holds"):
        encode_png(pixels)
