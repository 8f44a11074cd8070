"""How many frames a chunk has, and how many threads write images beside it."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from landmark_batch.job import RenderJob
from landmark_batch.workflows import export_session
from landmark_batch.workflows.export_session import image_threads
from landmark_batch.workflows.in_hand import usual_chunk
from landmark_batch.workflows.plan import make_plan

HD, UHD = 1920 * 1080 * 3, 3840 * 2160 * 3


@pytest.mark.parametrize(
    ("device", "frame_bytes", "frames"),
    [("cpu", HD, 8), ("cpu", 1, 8), ("cuda", HD, 16), ("cuda", UHD, 4), ("cuda", 4 * UHD, 4), ("cuda", 320 * 180 * 3, 32), ("cuda", 0, 32)],
)
def test_frames_of_a_chunk(device: str, frame_bytes: int, frames: int) -> None:
    assert usual_chunk(device, frame_bytes) == frames


def test_a_job_says_how_many_or_leaves_it(make_job: Callable[..., RenderJob]) -> None:
    said, left = (make_plan(make_job(f"output.chunk_frames={value}", "parallel.workers=1")) for value in ("2", "'auto'"))
    assert said.chunk_frames == 2
    assert 0 < left.chunk_frames <= 8
    assert left.chunk_frames == max(len(chunk.frames) for chunk in left.chunks)


@pytest.mark.parametrize(("device", "gpus", "most"), [("cpu", 1, False), ("auto", 0, False), ("auto", 1, True), ("cuda", 0, True)])
def test_images_get_the_cores_that_gpus_leave(
    device: str, gpus: int, most: bool, make_job: Callable[..., RenderJob], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_session, "gpus_present", lambda _: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert image_threads(make_job(f"parallel.device={device!r}")) == (12 if most else 2)
