"""Rendered frames against photographs: PSNR, SSIM, LPIPS, per frame and mean."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark_batch.chunks import format_frame_ranges, parse_frame_ranges
from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.frames.picture import opaque, to_float
from landmark_batch.frames.quality import SSIM_NOTE, Lpips, lpips_is_installed, psnr, ssim
from landmark_batch.frames.source import FrameSource, check_frames, output_of
from landmark_batch.frames.store_source import open_source
from landmark_batch.object_path import StorePath
from landmark_batch.workflows.photographs import PhotographIndex, load_photograph, same_size

_log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class FrameScore:
    """psnr: dB, infinite for equal pictures. ssim, lpips: None where they could not be taken. note: what was resized."""

    frame: int
    name: str
    photograph: Path
    psnr: float
    ssim: float | None
    lpips: float | None
    note: str = ""


@dataclass(frozen=True)
class Evaluation:
    """scores: ascending by frame. unmatched: frames without a photograph. unfinished: matched, but not rendered.

    psnr, ssim, lpips: means over the frames (of the per-frame values). notes: how it was measured.
    """

    store: str
    dataset: str
    scores: tuple[FrameScore, ...]
    unmatched: tuple[int, ...]
    unfinished: tuple[int, ...]
    psnr: float
    ssim: float | None
    lpips: float | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; an infinite PSNR is null beside "identical": true."""
        return {
            "store": self.store,
            "dataset": self.dataset,
            "frames": [
                {
                    "frame": score.frame,
                    "name": score.name,
                    "photograph": str(score.photograph),
                    "psnr": _number(score.psnr),
                    "identical": score.psnr == math.inf,
                    "ssim": score.ssim,
                    "lpips": score.lpips,
                    "note": score.note,
                }
                for score in self.scores
            ],
            "mean": {"psnr": _number(self.psnr), "ssim": self.ssim, "lpips": self.lpips, "frames": len(self.scores)},
            "unmatched": list(self.unmatched),
            "unfinished": list(self.unfinished),
            "notes": list(self.notes),
        }

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """(headings, rows of text), one row a frame and the mean last. LPIPS is left out where nothing has it."""
        with_lpips = any(score.lpips is not None for score in self.scores)
        headings = ("frame", "photograph", "PSNR dB", "SSIM", *(("LPIPS",) if with_lpips else ()))
        lines = [(str(score.frame), score.photograph.name, score.psnr, score.ssim, score.lpips) for score in self.scores]
        lines.append(("mean", f"{len(self.scores)} frames", self.psnr, self.ssim, self.lpips))
        rows = [(first, second, f"{a:.2f}", _text(b), *((_text(c),) if with_lpips else ())) for first, second, a, b, c in lines]
        return headings, rows


def evaluate(
    store: StorePath,
    dataset: Path,
    *,
    frames: str | Iterable[int] | None = None,
    lpips: bool | None = None,
    matte: str = "white",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Compare the finished frames of a store with the photographs below `dataset`, matched by the camera file's file_path.

    frames: '0-9' or indices; None = all. lpips: None = where its package and network are there, True = must be, False = not.
    matte: under a transparent store's frames and transparent photographs. progress: called with (done, all).
    Raises ConfigError if nothing matches, sizes have different aspects, or a photograph cannot be read; StoreError for the store,
    or if no matched frame is finished. All are exit code 2.
    """
    source = open_source(store)
    wanted = parse_frame_ranges(frames, source.frames) if isinstance(frames, str) else frames
    return evaluate_source(source, dataset, frames=wanted, lpips=lpips, matte=matte, workers=workers, progress=progress)


def evaluate_source(
    source: FrameSource,
    dataset: Path,
    *,
    frames: Iterable[int] | None = None,
    lpips: bool | None = None,
    matte: str = "white",
    workers: int | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """`evaluate` for any source."""
    output_of(source, "rgb")
    wanted = check_frames(source, range(source.frames) if frames is None else frames)
    index = PhotographIndex(dataset)
    pairs = index.match({frame: source.names[frame] for frame in wanted})
    if not pairs:
        raise ConfigError(
            f"{source.path}: none of its {len(wanted)} frames has a photograph below {index.root}:"
            f" the frames are called {_list([source.names[frame] for frame in wanted[:3]])},"
            f" the photographs {_list(index.examples()) or 'nothing, there are none'}",
            remedy="--dataset is the folder that file_path in the camera file is relative to",
        )
    finished = source.finished()
    ready = [frame for frame in pairs if frame in finished]
    unfinished = tuple(frame for frame in pairs if frame not in finished)
    if not ready:
        raise StoreError(
            f"{source.path}: {len(pairs)} frames have a photograph, but none of them is rendered: {format_frame_ranges(unfinished)}",
            remedy=f"render them first, for example with --frames {format_frame_ranges(unfinished)}",
        )
    metric, notes = _lpips(lpips)
    scores = _scores(source, {frame: pairs[frame] for frame in ready}, matte, metric, workers, progress)
    return Evaluation(
        store=source.path,
        dataset=str(index.root),
        scores=tuple(scores),
        unmatched=tuple(frame for frame in wanted if frame not in pairs),
        unfinished=unfinished,
        psnr=sum(score.psnr for score in scores) / len(scores),
        ssim=_mean([score.ssim for score in scores]),
        lpips=_mean([score.lpips for score in scores]),
        notes=("PSNR: over the three channels, peak 1; means are of the per-frame values", SSIM_NOTE, *notes),
    )


def _lpips(wanted: bool | None) -> tuple[Lpips | None, list[str]]:
    if wanted is False:
        return None, []
    if wanted is None and not lpips_is_installed():
        return None, ["LPIPS: not measured, the package lpips is not installed"]
    try:
        metric = Lpips()
    except ConfigError as error:
        if wanted:
            raise
        return None, [f"not measured: {error.message}"]
    return metric, [f"LPIPS: network {metric.net}"]


def _scores(
    source: FrameSource, pairs: dict[int, Path], matte: str, metric: Lpips | None, workers: int | None, progress: Progress | None
) -> list[FrameScore]:
    def one(item: tuple[int, Path]) -> FrameScore:
        frame, path = item
        picture = to_float(opaque(source.read("rgb", frame), matte))
        picture, photograph, note = same_size(picture, load_photograph(path, matte), path)
        distance = None if metric is None else metric(picture, photograph)
        return FrameScore(frame, source.names[frame], path, psnr(picture, photograph), ssim(picture, photograph), distance, note)

    count = max(1, workers if workers is not None else min(8, len(os.sched_getaffinity(0))))
    scores: list[FrameScore] = []
    items = sorted(pairs.items())
    with ThreadPoolExecutor(count, thread_name_prefix="evaluate") as pool:
        for start in range(0, len(items), 2 * count):  # few pictures in memory at a time
            for score in pool.map(one, items[start : start + 2 * count]):
                scores.append(score)
                _log.info("frame %d (%s): %.2f dB", score.frame, score.name, score.psnr)
                if progress is not None:
                    progress(len(scores), len(items))
    return scores


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _list(names: list[str]) -> str:
    return ", ".join(names) + (", ..." if len(names) == 3 else "")
