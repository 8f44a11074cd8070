"""Frame stores in an object store whose writers are killed anywhere."""

from __future__ import annotations

import os

import numpy as np
import pytest

from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from tests.object_server import environment, every_service, on

from .processes import count_steps, die_at, run
from .store_kit import assert_is, make_flight, make_settings, make_spec, pick, pixels_of, render
from .test_object_store import place

FLIGHT, SETTINGS = make_flight(4), make_settings()


def _render_and_die(url: str, settings: dict[str, str], order: list[int], step: int) -> None:
    os.environ.update(settings)
    die_at(step)
    render(url, pick(FLIGHT, order), SETTINGS, update=True)  # type: ignore[arg-type]


def _steps(bucket: str, order: list[int] | None = None) -> list[str]:
    """Of a first render, or of the change of its flight to `order`."""
    path = f"{bucket}/count.zarr"
    steps = count_steps(lambda: render(path, FLIGHT, SETTINGS))  # type: ignore[arg-type]
    return steps if order is None else count_steps(lambda: render(path, pick(FLIGHT, order), SETTINGS, update=True))  # type: ignore[arg-type]


def _kill_a_first_render(bucket: str, steps: list[str], step: int) -> None:
    url = f"{bucket}/killed-{step}.zarr"
    assert run(_render_and_die, url, environment(), [0, 1, 2, 3], step) == -9
    recorded = steps[: step + 1].count("recorded") * 2
    assert len(FrameStore.open(url).finished()) == recorded
    assert len(render(url, FLIGHT, SETTINGS)) == 4 - recorded  # type: ignore[arg-type]
    assert_is(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    assert verify_store(url).ok


@on("s3", "gs")
def test_a_killed_writer_loses_no_frame_that_was_recorded(bucket: str) -> None:
    """Objects without a record; a commit that was recorded, and half of the next one."""
    steps = _steps(bucket)
    for step in (steps.index("renamed") + 1, steps.index("recorded") + 3):
        _kill_a_first_render(bucket, steps, step)


@every_service
@pytest.mark.chaos
@pytest.mark.timeout(1200)
def test_a_writer_killed_at_every_step(bucket: str) -> None:
    steps = _steps(bucket)
    for step in range(len(steps)):
        _kill_a_first_render(bucket, steps, step)


ORDER = [3, -1, 0, 1]  # two moves in a chain, one frame is new, one goes


def _kill_a_change(bucket: str, step: int) -> None:
    url, flight = f"{bucket}/killed-{step}.zarr", pick(FLIGHT, ORDER)
    render(url, FLIGHT, SETTINGS)  # type: ignore[arg-type]
    assert run(_render_and_die, url, environment(), ORDER, step) == -9
    store = FrameStore.open(url)
    for frame, record in store.finished().items():
        for output, expected in pixels_of(make_spec(), record.fingerprint).items():
            np.testing.assert_array_equal(store.read(output, frame), expected)
    assert render(url, flight, SETTINGS, update=True) in ([1], [])  # type: ignore[arg-type]
    assert_is(url, flight, SETTINGS)  # type: ignore[arg-type]
    assert verify_store(url).ok
    assert not list((place(url) / "done/.landmark/rebuilt").iterdir())


@on("s3", "az")
def test_a_change_of_flight_is_finished_by_the_next_job(bucket: str) -> None:
    steps = _steps(bucket, ORDER)
    assert {"journal", "out", "phase", "in", "installed", "described"} <= set(steps)
    for step in (steps.index("out"), steps.index("installed")):
        _kill_a_change(bucket, step)


@every_service
@pytest.mark.chaos
@pytest.mark.timeout(2400)
def test_a_change_of_flight_killed_at_every_step(bucket: str) -> None:
    for step in range(len(_steps(bucket, ORDER))):
        _kill_a_change(bucket, step)
