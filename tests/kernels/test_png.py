"""The compiled code for PNGs: zlib and Pillow find the pixels in what it makes, and every instruction set makes the same bytes."""

from __future__ import annotations

import io
import os
import shlex
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from isal import isal_zlib
from numpy.typing import NDArray
from PIL import Image

from landmark_batch.frames.png import encode_png
from landmark_batch.kernels import build, ninja_run
from landmark_batch.kernels.cache import build_lock
from landmark_batch.kernels.png import Effort, PngLibrary, PngPacker, packer

from ..frames.test_png import decode

Pixels = NDArray[Any]
VARIANTS = ("portable", "avx2", "avx512")


def noise(*shape: int, most: int = 256, dtype: str = "uint8") -> Pixels:
    return np.random.default_rng(sum(shape)).integers(0, most, shape, dtype=dtype)


def scene(height: int, width: int, dtype: str = "uint8") -> Pixels:
    """A plain sky over a slope with a little noise, as renders are."""
    slope = np.add.outer(np.arange(height) * 2.0, np.arange(width))[..., None] * np.array([0.2, 0.3, 0.25])
    picture = 30 + slope + np.random.default_rng(0).normal(0, 0.6, (height, width, 3))
    picture[: height // 3] = 200
    scale = 1 if dtype == "uint8" else 256
    return (np.clip(picture, 0, 255) * scale).astype(dtype)


def rare(width: int) -> Pixels:
    """Differences that occur as often as Fibonacci's numbers say: codes that would be longer than 14 bits."""
    counts = [1, 1]
    while sum(counts) < 200_000:
        counts.append(counts[-1] + counts[-2])
    values = np.random.default_rng(1).permutation(np.repeat(np.arange(len(counts), dtype=np.uint8) * 5, counts))
    rows = values[: len(values) // (3 * width) * 3 * width].reshape(-1, width, 3)
    return np.cumsum(rows, axis=1, dtype=np.uint8)


def runs() -> Pixels:
    """Rows that repeat one byte for so many, at every place in a piece."""
    rows = np.random.default_rng(4).integers(0, 256, (80, 700), dtype=np.uint8)
    for number, length in enumerate([1, 63, 64, 65, 127, 128, 129, 191, 192, 255, 256, 257, 258, 319, 320, 321, 512, 600, 699, 700]):
        for place in range(4):
            rows[4 * number + place, place * 21 : place * 21 + length] = 7 * number
    return rows


def flat(height: int, width: int, value: int, dtype: str = "uint8") -> Pixels:
    return np.full((height, width, 3), value, dtype)


PICTURES = {
    **{f"noise {size}": noise(*size) for size in [(1, 1), (1, 1, 3), (3, 21, 3), (5, 42, 4), (7, 300, 3), (2, 66_000)]},
    **{f"deep noise {size}": noise(*size, most=65536, dtype="uint16") for size in [(1, 1), (4, 33, 3), (3, 65, 4), (2, 12_000, 3)]},
    **{f"flat {size}": flat(*size, 200) for size in [(1, 1), (40, 64), (3, 1000)]},
    "black": flat(33, 43, 0),
    "deep flat": flat(20, 200, 4660, "uint16"),
    "scene": scene(90, 311),
    "deep scene": scene(50, 130, "uint16"),
    "few values": noise(50, 90, 3, most=3),
    "stripes": np.tile(noise(1, 7, 3), (70, 30, 1)),
    "rare differences": rare(100),
    "runs": runs(),
    "tall": noise(1500, 3, 3, most=20),
    "grey slope": np.tile(np.arange(0, 250, 2, dtype=np.uint8), (40, 1)).T.copy(),
}


@pytest.fixture(scope="module", params=VARIANTS)
def packing(request: pytest.FixtureRequest, png_library: Path) -> PngPacker:
    """One for each instruction set that this processor has. Not the one that other tests share."""
    found = PngPacker(png_library)
    if found.variant(request.param) != request.param:
        pytest.skip(f"this processor has no {request.param}")
    return found


def stream(found: PngPacker, pixels: Pixels, effort: Effort = Effort.DEFLATE, band: int = 1 << 19) -> bytes:
    rows = pixels.reshape(len(pixels), -1)
    channels = 1 if pixels.ndim == 2 else pixels.shape[2]
    return b"".join(bytes(part) for parts in found.zlib_stream(rows, channels, effort, band) for part in parts)


def lines(pixels: Pixels, data: bytes) -> NDArray[np.uint8]:
    """[H, 1 + bytes]: what zlib makes of a stream; it checks the checksum, too."""
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(len(pixels), -1)


@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("name", PICTURES)
def test_readers_find_the_pixels(packing: PngPacker, name: str, effort: Effort) -> None:
    pixels = PICTURES[name]
    bands = (1, 1000, 1 << 19) if pixels.nbytes < 100_000 else (1 << 19,)
    made = [lines(pixels, stream(packing, pixels, effort, band)) for band in bands]
    if effort == Effort.STORE:
        raw = pixels.astype(pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(len(pixels), -1)
        assert all(not each[:, 0].any() and np.array_equal(each[:, 1:], raw) for each in made)
    if pixels.nbytes < 30_000:
        data = encode_png(pixels, packer=packing)
        assert np.array_equal(decode(data), pixels)
        with Image.open(io.BytesIO(data)) as image:
            image.load()  # libpng's own checks


@pytest.mark.parametrize("effort", Effort)
@pytest.mark.parametrize("name", PICTURES)
def test_every_instruction_set_makes_the_same_bytes(png_library: Path, name: str, effort: Effort) -> None:
    found = PngPacker(png_library)
    made = {variant: stream(found, PICTURES[name], effort, 5000) for variant in VARIANTS if found.variant(variant) == variant}
    assert "portable" in made and len(set(made.values())) == 1, [*made]


@given(
    pixels=hnp.arrays(
        st.sampled_from([np.uint8, np.uint16]),
        st.tuples(st.integers(1, 12), st.integers(1, 90), st.sampled_from([1, 3, 4])),
        elements=st.one_of(st.just(0), st.integers(0, 255)),
    ),
    band=st.sampled_from([1, 300, 1 << 19]),
    effort=st.sampled_from(Effort),
)
@settings(max_examples=60, deadline=None)
def test_any_pixels_survive(png_library: Path, pixels: Pixels, band: int, effort: Effort) -> None:
    found = packer(png_library)
    assert found is not None
    expected = pixels.astype(pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(len(pixels), -1)
    step, above = pixels.shape[2] * pixels.itemsize, np.zeros(expected.shape[1], np.uint8)
    for line, row in zip(lines(pixels, stream(found, pixels, effort, band)), expected, strict=True):
        left, corner = (np.concatenate([np.zeros(step, np.uint8), values[:-step]])[: len(row)] for values in (row, above))
        guess = left.astype(int) + above - corner
        near = [np.abs(guess - each) for each in (left, above, corner)]
        mixed = np.where((near[0] <= near[1]) & (near[0] <= near[2]), left, np.where(near[1] <= near[2], above, corner))
        filters: dict[int, NDArray[np.uint8]] = {0: np.zeros_like(row), 1: left, 2: above, 4: mixed}
        assert np.array_equal(line[1:], row - filters[int(line[0])])
        above = row


def test_each_row_has_the_filter_that_suits_it(packing: PngPacker) -> None:
    across = np.tile(np.arange(0, 256, 2, dtype=np.uint8), (9, 1))
    steps = across + noise(9, 1)  # no row is like the one above
    hills = (np.add.outer(np.arange(24) ** 2 % 90, np.arange(160) * 3 % 70) % 256).astype(np.uint8)
    kinds = [lines(pixels, stream(packing, pixels))[2:, 0].tolist() for pixels in (across, steps, hills)]
    assert set(kinds[0]) == {2} and 1 in kinds[1] and 2 not in kinds[1] and 4 in kinds[2]


def test_sizes(packing: PngPacker) -> None:
    """Runs vanish, pictures like renders take no more than with ISA-L, noise takes its own size."""
    white = flat(300, 400, 255)
    assert len(stream(packing, white)) < white.nbytes / 50
    pixels = scene(500, 800)
    made = stream(packing, pixels)
    filtered = lines(pixels, made)
    assert len(made) < 1.05 * len(isal_zlib.compress(filtered.tobytes(), 1)) < 0.6 * pixels.nbytes
    loud = noise(90, 500, 3)
    assert loud.nbytes < len(stream(packing, loud)) < loud.nbytes + 1000


def test_16_bits_are_deflated_where_it_pays(packing: PngPacker) -> None:
    smooth = np.tile(np.arange(0, 99 * 256, 256, dtype=np.uint16).reshape(1, 33, 3), (24, 1, 1))
    noisy = smooth + noise(24, 33, 3, dtype="uint16")
    pixels = np.concatenate([noisy, smooth, noise(24, 33, 3, most=65536, dtype="uint16"), smooth, noisy])
    kinds = lines(pixels, stream(packing, pixels, Effort.WHERE_IT_PAYS, 24 * 199))[:, 0].reshape(5, 24)
    assert [bool(band.any()) for band in kinds] == [False, True, False, True, False]
    assert kinds[1].all() and kinds[3].all()


def test_arrays_that_lie_otherwise(packing: PngPacker) -> None:
    pixels = scene(40, 66, "uint16")
    for other in (pixels.astype(">u2"), pixels[::-1, ::2], pixels.transpose(1, 0, 2)):
        assert np.array_equal(decode(encode_png(other, packer=packing)), other)


def test_threads_do_not_meet(packing: PngPacker) -> None:
    pictures = [scene(200, 300 + 7 * number) for number in range(6)]
    alone = [stream(packing, pixels) for pixels in pictures]
    wrong: list[int] = []

    def work(number: int) -> None:
        wrong.extend(number for _ in range(10) if stream(packing, pictures[number]) != alone[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(pictures))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_library_that_is_none_is_one_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "landmark_png.so").write_text("no library")
    assert packer(None) is None and packer(tmp_path / "landmark_png.so") is None
    libraries = [PngLibrary(prebuilt=tmp_path) for _ in range(8)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda library: library.path, libraries)) == [None] * 8
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert str(tmp_path / "landmark_png.so") in said and "kernels build --device png --force" in said


def test_a_library_that_was_cut_off_is_not_loaded(tmp_path: Path, png_library: Path) -> None:
    """The system would end the process."""
    kept = build.export(build.KernelStatus("png", False, True, "", png_library), tmp_path / "prebuilt")
    assert PngLibrary(prebuilt=kept.parent).path == kept
    os.truncate(kept, kept.stat().st_size // 3)
    assert PngLibrary(prebuilt=kept.parent).path is None
    assert "it is damaged" in build.status("png", prebuilt=kept.parent).reason
    built = build.build("png", cache_dir=tmp_path)
    assert built.path is not None
    os.truncate(built.path, 6000)
    assert "not built yet" in build.status("png", cache_dir=tmp_path).reason
    assert build.build("png", cache_dir=tmp_path).path == built.path and PngLibrary(tmp_path).path == built.path


def test_no_place_for_a_library_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, png_library: Path) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(Path, "home", fail)
    for place, said in ((tmp_path / "file", "nothing can be built in"), (None, "nothing can be built in the cache: this user has no home")):
        library = PngLibrary(place)
        assert library.path is None
        library.begin()
        assert library.wait(60) and library.path is None
        assert said in build.build("png", cache_dir=place).reason


def fail() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_library_is_built_beside_other_work(tmp_path: Path, png_library: Path) -> None:
    library = PngLibrary(tmp_path)
    assert library.path is None, "nothing is built before it is asked for"
    library.wait()
    library.begin()
    library.begin()
    library.wait()
    assert library.path is not None and library.path.parent.parent.parent == tmp_path
    found = packer(library.path)
    assert found is not None and np.array_equal(decode(encode_png(scene(20, 30), packer=found)), scene(20, 30))
    assert PngLibrary(tmp_path).path == library.path


def test_no_library_is_built_where_prebuilt_ones_are_named(tmp_path: Path, png_library: Path) -> None:
    empty = PngLibrary(tmp_path / "cache", prebuilt=tmp_path)
    empty.begin()
    empty.wait()
    assert empty.path is None and not (tmp_path / "cache").exists()
    assert PngLibrary(tmp_path / "cache", prebuilt=png_library.parent).path == png_library.parent / "landmark_png.so"


def test_a_failed_build_leaves_none(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    called = compiler("echo error: broken >&2; exit 1")
    library = PngLibrary(tmp_path / "cache")
    library.begin()
    assert library.wait(100) and library.path is None and called.exists()


def test_a_build_that_is_given_up_leaves_nothing(tmp_path: Path, compiler: Callable[[str], Path]) -> None:
    called = compiler("echo $$ >> " + shlex.quote(str(tmp_path / "pids")) + "; exec sleep 1000")
    library = PngLibrary(tmp_path / "cache")
    library.begin()
    while not (tmp_path / "pids").exists():
        assert not library.wait(0.05)
    library.end(0)
    assert library.wait(0) and library.path is None and called.exists()
    pids = [int(line) for line in (tmp_path / "pids").read_text().split()]
    assert pids
    for pid in pids:
        while is_running(pid):  # it was told to end: the test's time limit says when it does not
            time.sleep(0.01)
    assert not list((tmp_path / "cache" / "kernels").glob("building-*"))


def is_running(pid: int) -> bool:
    try:
        return bool(Path(f"/proc/{pid}/cmdline").read_bytes())  # a process that has ended, and nobody has asked for, has none
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_build_that_waits_for_anothers_is_given_up(tmp_path: Path, png_library: Path) -> None:
    library = PngLibrary(tmp_path)
    with build_lock(tmp_path / "kernels", "png", lambda: None):
        library.begin()
        assert not library.wait(0.5)
        library.end(0)
        assert library.wait(0)


def test_a_compiler_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str], Path]) -> None:
    compiler("exec sleep 1000")
    monkeypatch.setattr(ninja_run, "BUILD_SECONDS", 0.5)
    found = build.build("png", cache_dir=tmp_path / "cache")
    assert not found.usable and "the build took longer than 0.5 s" in found.reason


def test_a_compiler_that_does_not_tell_its_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: Callable[[str], Path]
) -> None:
    compiler("exit 1", "sleep 2")
    monkeypatch.setattr("landmark_batch.kernels.png.LOOK_SECONDS", 0.1)
    library = PngLibrary(tmp_path / "cache")
    assert library.path is None
    assert library._looking is not None and library._looking.is_alive(), "somebody waited for it"
    library._looking.join()


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a C++ compiler first on the PATH that does this; given is the file that it makes when it is called to compile."""

    def install(compile_: str, version: str = "echo a compiler 1.0") -> Path:
        program, called = tmp_path / "c++", tmp_path / "called"
        program.write_text(
            f'#!/bin/sh\nif [ "$1" = --version ]; then {version}; exit 0; fi\ntouch {shlex.quote(str(called))}\n{compile_}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
        return called

    return install
