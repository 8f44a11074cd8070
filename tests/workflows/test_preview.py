from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.cameras.formats import flight_of_job
from landmark_batch.errors import StoreError
from landmark_batch.frames.store import FrameStore
from landmark_batch.job import InlineFrame, RenderJob
from landmark_batch.workflows.preview import LARGEST, OVERHEAD_SECONDS, PreviewChoice, choose_preview, make_preview, preview_job
from landmark_batch.workflows.render import run_render
from landmark_batch.workflows.request import RenderRequest
from landmark_batch.workflows.simulated import simulated_job, simulated_request
from tests.workflows.conftest import FRAMES

MakeJob = Callable[..., RenderJob]


def flight_request(frames: int, width: int, height: int, fps: float = 24.0) -> RenderRequest:
    request = simulated_request(simulated_job(Path("/none/a.zarr"), chunk_frames=8, workers=2), frames, 0.0)
    return replace(request, flight=replace(request.flight, width=width, height=height, fps=fps))


@settings(max_examples=60)
@given(
    st.integers(1, 20_000),
    st.sampled_from([(1920, 1080), (3840, 2160), (384, 216), (33, 17), (512, 2048), (65536, 32768)]),
    st.floats(1e-9, 1e-2),
    st.integers(1, 64),
)
def test_a_preview_fits_its_time_and_lasts_as_long_as_the_flight(
    frames: int, size: tuple[int, int], per_pixel: float, workers: int
) -> None:
    request = flight_request(frames, *size)
    choice = choose_preview(request, per_pixel, 45.0, workers)
    assert choice.width % 2 == choice.height % 2 == 0
    assert choice.width <= max(LARGEST, 2)
    assert choice.frames == len(request.wanted[:: choice.every])
    assert choice.frames / choice.fps == pytest.approx(frames / 24.0)
    if choice.frames > 1:  # one frame is as few as there are
        assert choice.frames * choice.width * choice.height * per_pixel / workers <= 46.0 / (1.0 if workers == 1 else 0.8) + 1e-6


def test_size_goes_before_frames_and_frames_before_size() -> None:
    request = flight_request(240, 1920, 1080)  # ten seconds
    fast = choose_preview(request, 1e-8, 45.0, 1)
    assert (fast.width, fast.every, fast.fps) == (960, 1, 24.0)
    slow = choose_preview(request, 4e-5, 45.0, 1)  # 1.1 million pixels
    assert slow.frames >= 80
    assert slow.width < 200
    crawling = choose_preview(request, 1e-3, 45.0, 1)
    assert crawling.width <= 80
    assert 2 <= crawling.frames < 80
    assert "every 2nd frame" in replace(fast, every=2).describe()
    assert slow.seconds == pytest.approx(math.ceil(slow.frames) * slow.seconds_per_frame + OVERHEAD_SECONDS)


def test_the_smaller_job_looks_at_the_same_things(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("cameras.focal=40", "output.depth=true", "output.background=transparent")
    flight = flight_of_job(job)
    request = replace(flight_request(FRAMES, 32, 18), job=job, flight=flight)
    choice = PreviewChoice(16, 10, 3, 8, 8.0, 2, 0.1, 1.0)
    small = preview_job(request, choice)
    assert small.store_path == tmp_path / "tiny.preview.zarr"
    assert small.video_path == tmp_path / "tiny.preview.mp4"
    assert (small.output.depth, small.output.background) == (False, "white")
    assert small.cameras.frames == "0,3,6,9,12,15,18,21"
    seen = flight_of_job(small)
    assert seen.intrinsics[0, 0] / seen.width == pytest.approx(flight.intrinsics[0, 0] / flight.width)
    inline = job.model_copy(
        update={
            "cameras": job.cameras.model_copy(
                update={
                    "file": None,
                    "focal": None,
                    "width": 32,
                    "height": 18,
                    "frame": (InlineFrame(c2w=[list(row) for row in flight.c2w[0]], focal=40.0),),
                }
            )
        }
    )
    seen = flight_of_job(preview_job(replace(request, job=inline, wanted=(0,)), replace(choice, every=1)))
    assert seen.intrinsics[0, 0] == pytest.approx(20.0)


@pytest.mark.usefixtures("inline")
def test_a_preview_is_a_film_of_the_whole_flight(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    told: list[PreviewChoice] = []
    result = make_preview(job, seconds=20.0, chosen=told.append)
    assert told == [result.choice]
    assert result.render.state == "complete"
    assert result.store == tmp_path / "tiny.preview.zarr"
    assert result.film is not None
    with av.open(str(tmp_path / "tiny.preview.mp4")) as film:
        stream = film.streams.video[0]
        frames = sum(1 for _ in film.decode(stream))
        assert frames == result.choice.frames
        assert stream.average_rate is not None
        assert Fraction(frames) / stream.average_rate == Fraction(FRAMES, 24)
    assert not job.store_path.exists()
    first = FrameStore.open(result.store).finished()
    again = make_preview(make_job("sampling.samples=24"), seconds=20.0)  # the earlier one goes, whatever it was rendered with
    assert again.render.state == "complete"
    assert FrameStore.open(again.store).finished().keys() == first.keys()
    assert again.as_dict()["film"] == str(tmp_path / "tiny.preview.mp4")


@pytest.mark.usefixtures("inline")
def test_a_preview_touches_nothing_that_is_not_its_own(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job("cameras.frames=0-1")
    run_render(job)
    before = sorted(job.store_path.rglob("*"))
    foreign = tmp_path / "tiny.preview.zarr"
    foreign.mkdir()
    (foreign / "letter.txt").write_text("dear")
    with pytest.raises(StoreError, match="foreign"):
        make_preview(job, seconds=20.0)
    assert (foreign / "letter.txt").read_text() == "dear"
    assert sorted(job.store_path.rglob("*")) == before
