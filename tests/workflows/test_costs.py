from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from landmark_batch.chunks import split_frames
from landmark_batch.job import RenderJob
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.workflows import costs as costs_module
from landmark_batch.workflows.costs import FrameCosts, cut_chunks, fit_costs, frame_costs
from landmark_batch.workflows.itinerary import RAY_COST
from landmark_batch.workflows.predicted import compare_prediction, keep_prediction, read_prediction
from landmark_batch.workflows.request import scene_request
from landmark_batch.workflows.simulated import simulated_job, simulated_request
from tests.workflows.block_jobs import block_job, request_of, write_flight, write_town
from tests.workflows.conftest import FRAMES

MakeJob = Callable[..., RenderJob]


def test_samples_are_those_that_rendering_meets(make_job: MakeJob, tmp_path: Path) -> None:
    from landmark_batch.model.renderer import Renderer
    from landmark_batch.model.settings import resolve_settings

    request = scene_request(make_job("cameras.width=96", "cameras.height=54"), "cpu")
    costs = frame_costs(request, request.wanted, cache_dir=tmp_path)
    assert costs is not None
    weights = load_scene(request.job.scene.checkpoint or "")
    renderer = Renderer(weights, resolve_settings(request.job, weights.config))
    for frame in (0, 7, 17):
        told = renderer.render(request.flight.c2w[frame], tuple(request.flight.intrinsics[frame]), 96, 54).counters["survived"]
        assert costs.samples[frame] == pytest.approx(told, rel=0.15)
    assert costs.of([0, 7]) == pytest.approx(costs.samples[0] + costs.samples[7] + 2 * RAY_COST * 96 * 54)


def test_a_long_flight_is_looked_at_in_places_and_once(make_job: MakeJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    request = scene_request(make_job(), "cpu")
    every = frame_costs(request, request.wanted, cache_dir=tmp_path)
    monkeypatch.setattr(costs_module, "LOOKED_AT", 4)
    some = frame_costs(request, request.wanted, cache_dir=tmp_path)
    assert every is not None
    assert some is not None
    places = np.array([0, 8, 15, 23])
    np.testing.assert_array_equal(some.samples[places], every.samples[places])
    np.testing.assert_allclose(some.samples[4], (every.samples[0] + every.samples[8]) / 2)
    monkeypatch.setattr(costs_module, "_count", lambda *_: pytest.fail("it was counted before"))
    again = frame_costs(request, request.wanted, cache_dir=tmp_path)
    assert again is not None
    np.testing.assert_array_equal(again.samples, some.samples)


def test_what_has_no_scene_has_no_costs_and_blocks_have_their_own(tmp_path: Path) -> None:
    simulated = simulated_request(simulated_job(tmp_path / "a.zarr", chunk_frames=8, workers=2), 12, 0.0)
    assert frame_costs(simulated, simulated.wanted) is None
    _, store = write_town(tmp_path)
    request = request_of(block_job(store, write_flight(tmp_path), tmp_path / "town.zarr"))
    found = frame_costs(request, request.wanted)
    assert found is not None
    assert request.blocks is not None
    np.testing.assert_array_equal(found.samples, request.blocks.seen.samples)
    assert frame_costs(request, ()) is None


@given(
    st.lists(st.integers(0, 300), min_size=1, max_size=200, unique=True),
    st.sampled_from([(8, 1), (8, 4), (6, 2), (12, 3), (1, 1), (5, 5)]),
    st.integers(0, 2**32 - 1),
)
def test_cut_chunks_hold_every_frame_once_and_whole_files(frames: list[int], sizes: tuple[int, int], seed: int) -> None:
    size, unit = sizes
    samples = np.random.default_rng(seed).pareto(1.0, 301) * 1000
    costs = FrameCosts(samples, 10)
    chunks = cut_chunks(frames, size, unit, costs)
    assert [frame for chunk in chunks for frame in chunk.frames] == sorted(frames)
    whole = {frame: chunk for chunk in split_frames(frames, size) for frame in chunk.frames}
    limit = costs_module.DEAR * size * costs.of(frames) / len(frames)
    owner = {frame // unit: chunk.frames for chunk in chunks for frame in chunk.frames}
    for chunk in chunks:
        assert set(chunk.frames) <= set(whole[chunk.frames[0]].frames)
        assert {owner[frame // unit] for frame in chunk.frames} == {chunk.frames}  # no file in two chunks
        if len({frame // unit for frame in chunk.frames}) > 1 and size == 8:
            assert costs.of(chunk.frames) <= limit
    assert cut_chunks(frames, size, unit, None) == split_frames(frames, size)


def test_dear_chunks_are_halved_and_cheap_ones_are_not() -> None:
    samples = np.full(64, 100.0)
    samples[16:24] = 1000.0
    sizes = [len(chunk.frames) for chunk in cut_chunks(range(64), 8, 1, FrameCosts(samples, 0))]
    assert sizes == [8, 8, 2, 2, 2, 2, 8, 8, 8, 8, 8]


def test_a_fit_finds_what_was_put_in() -> None:
    samples = [1e5, 3e5, 2e5, 8e5]
    model = fit_costs([0, 10, 20, 30], samples, [0.5 + 2e-6 * value for value in samples])
    assert (model.base, model.per_sample) == (pytest.approx(0.5), pytest.approx(2e-6))
    np.testing.assert_allclose(model.corrections, 1.0)
    np.testing.assert_allclose(model.seconds([5, 29], np.array([4e5, 6e5])), [1.3, 1.7])


@pytest.mark.parametrize(
    ("samples", "seconds", "base", "slope"),
    [
        ([1.0, 2.0], [4.0, 2.0], 3.0, 0.0),  # dearer with fewer samples: only their mean is believed
        ([1.0, 2.0], [0.5, 2.0], 0.0, 0.9),  # through the origin: (0.5 + 4) / (1 + 4)
        ([5.0, 5.0], [1.0, 3.0], 2.0, 0.0),
        ([7.0], [1.5], 1.5, 0.0),
        ([0.0, 0.0], [0.0, 0.0], 0.0, 0.0),
    ],
)
def test_no_term_of_a_fit_is_negative(samples: list[float], seconds: list[float], base: float, slope: float) -> None:
    model = fit_costs(range(len(samples)), samples, seconds)
    assert (model.base, model.per_sample) == (pytest.approx(base), pytest.approx(slope))
    found = model.seconds(range(len(samples)), np.array(samples))
    assert (found >= 0).all()
    if len(samples) > 1 and seconds[0] and slope:
        np.testing.assert_allclose(found, [max(0.45, 0.5), 2.0])  # the corrections lead back to what was measured


def test_a_fit_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        fit_costs([], [], [])
    with pytest.raises(ValueError, match="one each"):
        fit_costs([0, 1], [1.0], [1.0, 2.0])


def test_between_measured_frames_the_correction_is_between_theirs() -> None:
    model = replace(fit_costs([0, 10], [5.0, 5.0], [1.0, 1.0]), corrections=(0.8, 1.2))
    np.testing.assert_allclose(model.seconds([0, 5, 10, 20], np.full(4, 5.0)), [0.8, 1.0, 1.2, 1.2])


def test_predictions_of_two_runs_lie_side_by_side(make_job: MakeJob, tmp_path: Path) -> None:
    from landmark_batch.frames.store import FrameStore

    request = scene_request(make_job(), "cpu")
    path = request.job.store_path
    FrameStore.create(path, request.spec, request.flight, request.settings)
    assert read_prediction(path, FRAMES) is None
    assert compare_prediction(path, FRAMES, {}) is None
    keep_prediction(path, FRAMES, [0, 1, 2], np.full(FRAMES, 0.5))
    keep_prediction(path, FRAMES, [2, 3], np.full(FRAMES, 2.0))
    kept = read_prediction(path, FRAMES)
    assert kept is not None
    np.testing.assert_array_equal(kept[:5], [0.5, 0.5, 2.0, 2.0, np.nan])
    assert read_prediction(path, 2) is not None  # a flight that became shorter
    assert compare_prediction(path, FRAMES, {}) == {"frames": 0, "predicted": 0.0, "actual": 0.0, "to_come": 5.0}
    (path / "done/.landmark/predicted.npy").write_bytes(b"no array")
    assert read_prediction(path, FRAMES) is None
