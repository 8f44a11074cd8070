"""bench export: what PNGs and films cost at a size, alone and out of a store, beside a copy of the frame in the same run."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from landmark_batch.cameras.flight import Flight
from landmark_batch.errors import ConfigError
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.export_video import VideoExporter
from landmark_batch.frames.fingerprint import FrameSettings, flight_fingerprints
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.jpegxl import require_compressor
from landmark_batch.frames.png import encode_png
from landmark_batch.frames.spec import OutputSpec, StoreInfo, StoreSpec
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.store_source import open_source
from landmark_batch.frames.video_settings import VideoSettings
from landmark_batch.kernels.png import PngLibrary, packer
from landmark_batch.model.runtime import KernelSource
from landmark_batch.workflows.export import default_video_file
from landmark_batch.workflows.machine import describe_machine
from landmark_batch.workflows.saved_report import SavedReport

CORES = 4  # that the writers' bar is set for: their frames/s are reckoned from CPU time, whatever this machine has
COMPRESSORS = {"lz4": "lz4", "zstd": "zstd", "jpegxl": "JPEG XL"}  # of stores; exports read the first
CODECS = ("libx264", "libx265", "libsvtav1", "dnxhr", "prores_ks", "ffv1")
HEAD = ("what", "bits", "MB a frame", "frames/s", "CPU ms a frame", "frames/s a core", f"of {CORES}, reckoned", "copies")
_DEEP = ("prores_ks",)  # codecs of more than 8 bits by default
_COPIES = 5  # of a frame, before each row
_STEP = 4  # pixels that the picture moves from frame to frame
Pixels = NDArray[Any]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class ExportRow:
    """frames took `wall` seconds and `cpu` seconds of all cores together. bits: a component. bytes: written for a frame, 0 = none.
    copy: CPU seconds of copying such a frame in memory, the median over the run.
    """

    what: str
    bits: int
    frames: int
    wall: float
    cpu: float
    bytes: float
    copy: float

    @property
    def copies(self) -> float:
        """How many copies of the frame one frame costs, by CPU time: to compare with other machines."""
        return self.cpu / self.frames / self.copy

    @property
    def reckoned(self) -> float:
        """Frames/s of CORES cores that are never idle, as much work in parallel as there are: not measured."""
        return CORES * self.frames / self.cpu

    def cells(self) -> tuple[str, ...]:
        size = _short(self.bytes / 1e6) if self.bytes else ""
        rates = (self.frames / self.wall, 1e3 * self.cpu / self.frames, self.frames / self.cpu, self.reckoned, self.copies)
        return (self.what, str(self.bits), size, *map(_short, rates))


@dataclass(frozen=True)
class ExportBench(SavedReport):
    """rows in the order measured. threads: that images and films were given. notes: what was left out, and why."""

    width: int
    height: int
    frames: int
    threads: int
    rows: tuple[ExportRow, ...]
    notes: tuple[str, ...]
    machine: dict[str, Any]
    at: float = field(default_factory=time.time)

    def title(self) -> str:
        return f"{self.frames} pictures made up of {self.width}×{self.height}, {self.threads} thread{'s' * (self.threads > 1)}"

    def as_dict(self) -> dict[str, Any]:
        rows = [{**asdict(row), "copies": row.copies, f"reckoned_of_{CORES}_cores": row.reckoned} for row in self.rows]
        return {**asdict(self), "rows": rows}


def bench_export(
    folder: Path,
    *,
    width: int = 3840,
    height: int = 2160,
    frames: int = 8,
    threads: int | None = None,
    codecs: Sequence[str] = (),
    tell: Tell | None = None,
    kernels: KernelSource | None = None,
) -> ExportBench:
    """Measure the writers on made-up pictures. folder: for stores and exports, stays.

    frames: at least 2. threads: of image export and of the encoders; default a core each, at most 16, as image export takes them.
    codecs: of films; by default those of CODECS that this machine can run. kernels: where compiled code for PNGs is, or is built to.
    Raises ConfigError for a codec that was asked for and cannot run, DiskFullError.
    """
    tell = tell or (lambda line: None)
    bench = _Bench(folder, width, height, frames, threads or min(16, len(os.sched_getaffinity(0))), tell)
    folder.mkdir(parents=True, exist_ok=True)
    if kernels is not None:
        bench.build(kernels)
    stores = {bits: bench.stores(bits) for bits in (8, 16)}
    asked = tuple(codecs) or CODECS
    films = [film for codec in asked if (film := bench.film(stores, codec, required=bool(codecs))) is not None]
    for bits in (8, 16):
        bench.images(stores[bits], bits)
    for codec, bits, exporter in films:
        bench.encode(codec, bits, exporter)
    return ExportBench(width, height, frames, bench.threads, bench.measured(), tuple(bench.notes), describe_machine().as_dict())


class _Bench:
    def __init__(self, folder: Path, width: int, height: int, frames: int, threads: int, tell: Tell) -> None:
        self.folder, self.width, self.height, self.frames, self.threads, self.tell = folder, width, height, frames, threads, tell
        self.rows: list[ExportRow] = []
        self.notes: list[str] = []
        self.library: PngLibrary | None = None
        tell(f"making pictures of {width}×{height}")
        self._scenery = scenery(width + _STEP * frames, height)
        self._copies: dict[int, list[float]] = {8: [], 16: []}

    def build(self, kernels: KernelSource) -> None:
        """The compiled code for PNGs, before anything is measured."""
        self.library = kernels.png_library()
        self.library.begin()
        self.library.wait()
        compiled = packer(self.library.path)
        if compiled is None:
            self.notes.append("PNGs were made without compiled code: `landmark-batch kernels status` says why")
        else:
            self.notes.append(f"PNGs were made by compiled code for {compiled.variant()}")

    def picture(self, frame: int, bits: int) -> Pixels:
        """[H, W, 3] uint8 or uint16."""
        start = _STEP * frame
        part = self._scenery[:, start : start + self.width]
        whole: Pixels = np.rint(part * np.float32(2**bits - 1))
        return whole.astype(np.uint8 if bits == 8 else np.uint16)

    def stores(self, bits: int) -> Path:
        """Stores of the pictures, one a compressor; writing and reading each are rows. Returns the first."""
        paths = []
        for compressor in COMPRESSORS:
            try:
                require_compressor(compressor)
            except ConfigError as error:
                if error.message not in self.notes:
                    self.notes.append(error.message)
                continue
            paths.append(self.store(bits, compressor))
            source = open_source(paths[-1])
            with self._row(f"out of the store, {COMPRESSORS[compressor]}, one thread", bits):
                for frame in range(self.frames):
                    source.read("rgb", frame)
        return paths[0]

    def store(self, bits: int, compressor: str) -> Path:
        count, width, height = self.frames, self.width, self.height
        self.tell(f"store of {bits} bits, {COMPRESSORS[compressor]}")
        flight = Flight(
            c2w=np.tile(np.eye(3, 4), (count, 1, 1)),
            intrinsics=np.tile(np.array([width, width, width / 2, height / 2], np.float64), (count, 1)),
            width=width,
            height=height,
            time=np.arange(count) / 24.0,
            names=tuple(f"frame_{i:05d}" for i in range(count)),
            fps=24.0,
            source="bench",
        )
        settings = FrameSettings({"renderer": "bench"})
        prints = flight_fingerprints(settings, flight)
        spec = StoreSpec(count, height, width, (OutputSpec("rgb", f"uint{bits}", 3),), compressor)
        path = _fresh(self.folder / f"bench{bits}-{compressor}.zarr")
        store = FrameStore.create(path, spec, flight, settings, info=StoreInfo(path.stem, 24.0, None, "white"))
        size = 0
        with store.writer("bench") as writer:
            writer.commit([0], {"rgb": self.picture(0, bits)[None]}, [prints[0]], seconds=0.0)  # libraries load
            with self._row(f"into the store, {COMPRESSORS[compressor]}", bits, count - 1) as took:
                for frame in range(1, count):
                    with took.paused():
                        pixels = self.picture(frame, bits)[None]
                    size += writer.commit([frame], {"rgb": pixels}, [prints[frame]], seconds=0.0).bytes
                took.bytes = size / (count - 1)
        return path

    def images(self, store: Path, bits: int) -> None:
        self.tell(f"images of {bits} bits")
        source = open_source(store)
        pictures = [self.picture(frame, bits) for frame in range(min(self.frames, self.threads))]
        compiled = None if self.library is None else packer(self.library.path)
        for kind, compress in (("", True), (", not compressed", False)):
            with self._row(f"PNG{kind}, encoding", bits) as took, ThreadPoolExecutor(self.threads) as pool:
                again = (pictures[frame % len(pictures)] for frame in range(self.frames))
                jobs = [pool.submit(encode_png, pixels, compress=compress, packer=compiled) for pixels in again]
                took.bytes = sum(len(job.result()) for job in jobs) / self.frames
            settings = ImageSettings(bit_depth=bits, png_compression="deflate" if compress else "none")
            fresh = _fresh(self.folder / "images")
            with (
                self._row(f"PNG{kind}, store to files", bits) as took,
                ImageExporter(source, fresh, settings, workers=self.threads, library=self.library) as exporter,
            ):
                took.bytes = exporter.export().bytes / self.frames

    def film(self, stores: dict[int, Path], codec: str, *, required: bool) -> tuple[str, int, VideoExporter] | None:
        bits = 16 if codec in _DEEP else 8
        path = default_video_file(_fresh(self.folder / f"film-{codec}"), codec)
        try:
            return codec, bits, VideoExporter(open_source(stores[bits]), path, VideoSettings(codec=codec, threads=self.threads))
        except ConfigError as error:
            if required:
                raise
            self.notes.append(f"{codec} was left out: {error.message}")
            return None

    def encode(self, codec: str, bits: int, exporter: VideoExporter) -> None:
        self.tell(f"film, {codec}")
        with self._row(f"film, {codec} {exporter.plan.pix_fmt}, store to file", bits) as took:
            took.bytes = exporter.export().bytes / self.frames

    @contextmanager
    def _row(self, what: str, bits: int, frames: int = 0) -> Iterator[_Took]:
        self._copies[bits] += _copy_seconds(self.picture(0, bits))
        took = _Took()
        with took.running():
            yield took
        self.rows.append(ExportRow(what, bits, frames or self.frames, took.wall, took.cpu, took.bytes, 0.0))

    def measured(self) -> tuple[ExportRow, ...]:
        """The rows, beside what a copy took over the whole run."""
        copy = {bits: max(median(times), 1e-9) for bits, times in self._copies.items()}
        return tuple(replace(row, copy=copy[row.bits]) for row in self.rows)


def _cpu_seconds() -> float:
    """Of this process and, in steps of 10 ms, of those it started that have ended."""
    return time.process_time() + sum(os.times()[2:4])


class _Took:
    """Wall and CPU seconds of what runs; pauses do not count."""

    def __init__(self) -> None:
        self.wall = self.cpu = self.bytes = 0.0

    @contextmanager
    def running(self, sign: int = 1) -> Iterator[None]:
        wall, cpu = time.perf_counter(), _cpu_seconds()
        try:
            yield
        finally:
            self.wall += sign * (time.perf_counter() - wall)
            self.cpu += sign * (_cpu_seconds() - cpu)

    def paused(self) -> Any:
        return self.running(-1)


def scenery(width: int, height: int, seed: int = 1) -> NDArray[np.float32]:
    """[H, W, 3] 0 to 1: a smooth sky over ground of many scales with blocks on it. Made up, for benches: compresses about as a render."""
    from scipy.ndimage import zoom

    random = np.random.default_rng(seed)
    horizon = height * 2 // 5
    picture = np.empty((height, width, 3), np.float32)
    picture[:horizon] = np.linspace(0.45, 0.85, horizon, dtype=np.float32)[:, None, None] * np.array([0.75, 0.88, 1.0], np.float32)
    ground = np.zeros((height - horizon, width), np.float32)
    for scale in (256, 64, 16, 4):
        grid = random.random((-(-len(ground) // scale) + 2, -(-width // scale) + 2), np.float32)
        ground += (zoom(grid, scale, order=1)[: len(ground), :width] - 0.5) * np.float32(0.1 + 0.2 * scale / 256)
    picture[horizon:] = 0.42 + ground[..., None] * np.array([1.0, 0.9, 0.7], np.float32)
    for _ in range(60):
        wide, tall = (int(value) for value in random.integers(2, max(3, height // 8), 2))
        x, y = int(random.integers(0, width)), int(random.integers(horizon // 2, height))
        picture[y : y + tall, x : x + wide] = picture[y : y + tall, x : x + wide] * 0.3 + random.random(3, np.float32) * 0.5
    picture[horizon:] += random.normal(0.0, 0.008, (height - horizon, width, 1)).astype(np.float32)
    return np.clip(picture, 0.0, 1.0)


def _copy_seconds(pixels: Pixels) -> list[float]:
    """CPU seconds of several copies of a frame."""
    into = np.zeros_like(pixels)
    times = []
    for _ in range(_COPIES):
        before = time.thread_time()
        np.copyto(into, pixels)
        times.append(time.thread_time() - before)
    return times


def _fresh(path: Path) -> Path:
    """A path beside earlier ones where nothing is."""
    number = 0
    candidate = path
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.stem}-{number}{path.suffix}")
    return candidate


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"
