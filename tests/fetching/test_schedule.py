from __future__ import annotations

import math
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.cameras.flight import Flight
from landmark_batch.cameras.lenses import make_lens
from landmark_batch.cameras.survey import footprint, survey_flight
from landmark_batch.fetching.belady import belady, lru
from landmark_batch.fetching.block_sets import block_sets
from landmark_batch.fetching.ranges import balanced_cuts
from landmark_batch.fetching.schedule import FLIGHT, order_chunks
from landmark_batch.fetching.tour import hilbert_order, spatial_orders
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.fetching.window import window_traffic
from landmark_batch.model.settings import RenderSettings
from tests.factories import make_config

DIVISION = (8, 6)
CONFIG = make_config(division=DIVISION, aabb=((0.0, 0.0, 0.0), (8.0, 6.0, 0.05)), near_far=(0.1, 3.0))
SETTINGS = RenderSettings("hull", 64, 0.1, 3.0, 0.0, 0, 25.0, "white", None, 0.0, CONFIG.aabb, "fp32", "torch")


def survey(pitch: float, wide: float) -> Flight:
    """12 lines over 8 x 6 blocks of side 1; `wide`: what a frame shows of the ground across its line."""
    unit = footprint(make_lens(64, 36, None, 50.0), 64, 36, 1.0, math.radians(pitch))
    altitude = wide / unit.width
    return survey_flight(
        CONFIG.aabb,
        width=64,
        height=36,
        fov=50.0,
        altitude=altitude,
        pitch=pitch,
        sidelap=max(0.0, 1 - (6 - wide) / 11 / wide),
        overlap=1 - 0.08 / (altitude * unit.length),
    )


@pytest.mark.parametrize(("pitch", "wide"), [(-90.0, 0.8), (-75.0, 0.8)])
def test_a_survey_moves_at_most_half_of_what_landmarks_window_moves(pitch: float, wide: float) -> None:
    flight = survey(pitch, wide)
    lines = np.unique(np.round(flight.c2w[:, 1, 3], 6), return_counts=True)[1]
    assert (lines > 50).sum() == 12
    assert len(flight) >= 1200
    visible = FrustumBlocks(CONFIG, SETTINGS, None, DIVISION)
    lens = flight.intrinsics[0].tolist()
    needs = block_sets([visible.blocks(c2w, lens, flight.width, flight.height).tolist() for c2w in flight.c2w])
    assert needs.counts.max() <= 4
    chunks = [range(start, min(start + 8, len(flight))) for start in range(0, len(flight), 8)]
    places = flight.c2w[:, :2, 3]
    centres = np.array([places[list(chunk)].mean(axis=0) for chunk in chunks])
    landmark = window_traffic(needs, places, DIVISION, 3)
    for groups in (1, 2):
        order = order_chunks(needs, chunks, centres, [1.0] * len(chunks), 9, groups)
        assert 2 * order.loads <= landmark.loads
        assert 2 * order.loads <= landmark.fresh  # even a window that kept what it has would move twice as much
        assert order.loads <= order.demand
        assert order.name != FLIGHT


@st.composite
def jobs(draw: st.DrawFn) -> tuple[list[list[int]], list[range], np.ndarray, list[int], int, int]:
    frames = draw(st.lists(st.lists(st.integers(0, 11), max_size=5), max_size=24))
    size = draw(st.integers(1, 4))
    chunks = [range(start, min(start + size, len(frames))) for start in range(0, len(frames), size)]
    coordinates = st.floats(-5, 5, allow_nan=False)
    centres = np.array([draw(st.tuples(coordinates, coordinates)) for _ in chunks]).reshape(-1, 2)
    costs = [draw(st.integers(0, 9)) for _ in chunks]
    return frames, chunks, centres, costs, draw(st.integers(1, 7)), draw(st.integers(1, 4))


@given(jobs())
@settings(max_examples=60, deadline=None)
def test_every_chunk_is_rendered_once_and_never_more_is_moved_than_by_demand_fetching(
    job: tuple[list[list[int]], list[range], np.ndarray, list[int], int, int],
) -> None:
    frames, chunks, centres, costs, slots, groups = job
    order = order_chunks(frames, chunks, centres, costs, slots, groups)
    assert sorted(order.order.tolist()) == list(range(len(chunks)))
    assert len(order.plans) == groups == len(order.cuts) - 1
    assert order.cuts[0] == 0 and order.cuts[-1] == len(chunks)
    for (low, high), plan in zip(pairwise(order.cuts), order.plans, strict=True):
        mine = [frames[row] for number in order.order[low:high].tolist() for row in chunks[number]]
        assert plan.loads == belady(mine, slots).loads
    flight = balanced_cuts(costs, groups)
    demand = [lru([frames[row] for chunk in chunks[low:high] for row in chunk], slots).loads for low, high in pairwise(flight)]
    assert order.demand == sum(demand) >= order.loads == min(order.candidates.values())
    assert order.passes == sum(len(set(frame)) > slots for frame in frames)
    if order.candidates[FLIGHT] == order.loads:
        assert order.name == FLIGHT
        assert order.order.tolist() == list(range(len(chunks)))


def test_chunks_of_one_place_are_brought_together() -> None:
    """A flight to and fro between two places loads each block once."""
    frames = [[0, 1], [5, 6]] * 10
    chunks = [[i] for i in range(20)]
    centres = np.array([[0.0, 0.0], [3.0, 3.0]] * 10)
    order = order_chunks(frames, chunks, centres, [1.0] * 20, 2)
    assert order.loads == 4
    assert order.demand == 40
    assert order.order.tolist() == [*range(0, 20, 2), *range(1, 20, 2)]


def test_flight_order_stays_where_everything_fits() -> None:
    order = order_chunks([[0], [3], [0], [3]], [[0], [1], [2], [3]], np.zeros((4, 2)), [1.0] * 4, 2)
    assert (order.name, order.loads, order.candidates) == (FLIGHT, 2, {FLIGHT: 2})


def test_numbers_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(ValueError, match="1 chunks, 2 centres, 1 costs"):
        order_chunks([[0]], [[0]], np.zeros((2, 2)), [1.0], 1)


def test_a_hilbert_curve_goes_from_neighbour_to_neighbour() -> None:
    points = np.array([(x, y) for x in range(16) for y in range(16)], dtype=np.float64)
    walk = points[hilbert_order(points)]
    assert (np.abs(np.diff(walk, axis=0)).sum(axis=1) == 1).all()
    assert hilbert_order(np.full((3, 2), 7.0)).tolist() == [0, 1, 2]
    assert hilbert_order(np.zeros((0, 2))).tolist() == []


def test_two_opt_shortens_a_tour_and_keeps_its_sets() -> None:
    generator = np.random.default_rng(3)
    sets = block_sets([generator.choice(30, 4, replace=False).tolist() for _ in range(200)])

    def length(order: np.ndarray) -> int:
        return sum(len(set(sets[a].tolist()) ^ set(sets[b].tolist())) for a, b in pairwise(order.tolist()))

    orders = [order for _, order in spatial_orders(sets, generator.uniform(size=(200, 2)), slots=6)]
    assert all(sorted(order.tolist()) == list(range(200)) for order in orders)
    _, curve, nearest, shortened, shortened_curve = map(length, orders)
    assert shortened < nearest < length(np.arange(200))
    assert shortened_curve < curve


@given(st.lists(st.integers(0, 20), max_size=10), st.integers(1, 5))
@settings(max_examples=80, deadline=None)
def test_the_dearest_range_is_as_cheap_as_can_be(costs: list[int], parts: int) -> None:
    cuts = balanced_cuts(costs, parts)
    assert len(cuts) == parts + 1 and cuts[0] == 0 and cuts[-1] == len(costs) and cuts == sorted(cuts)
    if len(costs) >= parts:
        assert all(low < high for low, high in pairwise(cuts))
    alike = costs if any(costs) else [1] * len(costs)
    ways = combinations(sorted([*range(len(costs) + 1)] * (parts - 1)), parts - 1)
    least = min(max(sum(alike[low:high]) for low, high in pairwise((0, *way, len(costs)))) for way in set(ways))
    assert max(sum(alike[low:high]) for low, high in pairwise(cuts)) == least


@pytest.mark.parametrize(("costs", "parts"), [([1.0], 0), ([-1.0], 1), ([math.nan], 1), ([math.inf], 2)])
def test_impossible_ranges_are_refused(costs: list[float], parts: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        balanced_cuts(costs, parts)
