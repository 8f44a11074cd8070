"""FetchingRenderer: the bits of a frame do not depend on how many blocks are held, in which order frames come, or what was foreseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from landmark_batch.fetching.flight_blocks import FlightBlocks
from landmark_batch.fetching.route import Route
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.model import passes
from landmark_batch.model.renderer import Renderer
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.store import BlockStore

from .flights import HEIGHT, KINDS, LENS, POSES, WIDTH, frame, make_settings, open_fetching, route_of, write_store


@pytest.fixture(scope="module", params=KINDS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    return request.param, *write_store(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close()


@pytest.fixture(scope="module")
def resident(stored: tuple[str, Path, Path]) -> list[dict[str, NDArray[np.float32]]]:
    """Frames of the checkpoint (of the store, where that has rounded it), held whole."""
    kind, checkpoint, path = stored
    weights = load_scene(path if kind == "half" else checkpoint)
    renderer = Renderer(weights, make_settings(BlockStore.open(path)), "cpu", threads=1)
    return [frame(renderer, index) for index in range(len(POSES))]


@pytest.mark.parametrize(("slots", "order"), [(1, [0, 1, 2, 3, 4]), (2, [4, 2, 0, 3, 1]), (4, [2, 1, 0]), (6, [1, 0, 4, 3, 2])])
def test_any_budget_and_order_gives_the_same_bits(
    stored: tuple[str, Path, Path],
    resident: list[dict[str, NDArray[np.float32]]],
    opened: list[Any],
    tmp_path: Path,
    slots: int,
    order: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(passes, "BAND_SAMPLES", 3000)  # several bands a frame
    store = BlockStore.open(stored[2])
    settings = make_settings(store)
    renderer = open_fetching(opened, store, settings, slots, route_of(store, settings, tmp_path, order))
    for index in order:
        found = frame(renderer, index, frame=index)
        for name, values in resident[index].items():
            np.testing.assert_array_equal(found[name], values, err_msg=f"{name} of frame {index} with {slots} slots")
    assert resident[0]["alpha"].max() > 0.5


def test_the_wanted_loads_are_counted(stored: tuple[str, Path, Path], opened: list[Any]) -> None:
    store = BlockStore.open(stored[2])
    renderer = open_fetching(opened, store, make_settings(store), store.blocks, None)
    first = renderer.render(POSES[0], LENS, WIDTH, HEIGHT).counters
    again = renderer.render(POSES[0], LENS, WIDTH, HEIGHT).counters
    assert first["fetch_loads"] == len(
        FrustumBlocks(store.config, make_settings(store), store.mask(), store.division).blocks(POSES[0], LENS, WIDTH, HEIGHT)
    )
    assert again["fetch_loads"] == 0 and first["survived"] == again["survived"] > 0


def test_a_block_that_was_not_foreseen_is_fetched_and_the_frame_rendered_again(
    stored: tuple[str, Path, Path], resident: list[dict[str, NDArray[np.float32]]], opened: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    store = BlockStore.open(stored[2])
    counts = np.arange(len(POSES) + 1, dtype=np.int64)
    short = FlightBlocks(counts, np.zeros(len(POSES), np.int32), np.ones(len(POSES), np.int64), np.arange(len(POSES)))
    for slots in (store.blocks, 2):
        renderer = open_fetching(opened, store, make_settings(store), slots, Route(short))
        with caplog.at_level("INFO"):
            found = frame(renderer, 2, frame=2)
        np.testing.assert_array_equal(found["rgb"], resident[2]["rgb"])
    assert "not foreseen" in caplog.text
