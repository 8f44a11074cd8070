"""FetchingRenderer: the bits of a frame do not depend on how many blocks are held, in which order frames come, or what was foreseen."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from landmark_batch.fetching import crowded, regions
from landmark_batch.fetching.flight_blocks import FlightBlocks
from landmark_batch.fetching.regions import Region
from landmark_batch.fetching.renderer import region_order
from landmark_batch.fetching.route import Route
from landmark_batch.fetching.visibility import FrustumBlocks
from landmark_batch.model import fused_passes, passes, tiles
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.fused_passes import RayPasses
from landmark_batch.model.passes import TilePasses
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.tiles import tile_order
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.store import BlockStore
from tests.parallel.test_fused_fetching import kernels_of_a_gpu, one_thread

from .flights import HEIGHT, KINDS, LENS, POSES, WIDTH, frame, make_settings, open_fetching, route_of, write_store
from .short_memory import room_for, room_for_tables

__all__ = ["kernels_of_a_gpu", "one_thread"]


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


CELL = 64  # rays of a tile, here: a frame of 31 x 17 has 4 x 3 of them


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiles, "CPU_SAMPLES", CELL * 40)
    monkeypatch.setattr(regions, "PASS_RAYS", CELL)


@pytest.fixture
def in_passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tiles that go through passes, call by call."""
    seen: list[int] = []
    render_tiles = TilePasses.render_tiles

    def counted(self: TilePasses, *arguments: Any) -> Iterator[Any]:
        seen.append(len(arguments[3]))
        return render_tiles(self, *arguments)

    monkeypatch.setattr(TilePasses, "render_tiles", counted)
    return seen


@pytest.mark.parametrize("slots", [1, 4])
@pytest.mark.usefixtures("small_tiles")
def test_regions_of_a_frame_have_its_bits(
    stored: tuple[str, Path, Path], opened: list[Any], tmp_path: Path, in_passes: list[int], slots: int
) -> None:
    """Frames that need more blocks than there are slots, forth and back, along a route and without one."""
    store = BlockStore.open(stored[2])
    settings = make_settings(store)
    whole = Renderer(load_scene(stored[2]), settings, "cpu", threads=1)
    expected = [frame(whole, index) for index in range(len(POSES))]
    order = [0, 2, 3, 2, 0]
    renderer = open_fetching(opened, store, settings, slots, route_of(store, settings, tmp_path, [0, 2, 3]))
    loads = []
    for place, index in enumerate(order):
        output = renderer.render(POSES[index], LENS, WIDTH, HEIGHT, frame=None if place == 3 else index)
        loads.append(output.counters["fetch_loads"])
        for name, values in output.numpy().items():
            np.testing.assert_array_equal(values, expected[index][name], err_msg=f"{name} of frame {index} with {slots} slots")
        assert output.counters["rays"] == WIDTH * HEIGHT
    assert max(loads) > slots  # none was held whole
    if slots == 4:
        assert sum(in_passes) < 12, "most of a frame's tiles needed no passes"


@pytest.mark.parametrize("stored", ["blocks"], indirect=True)
@pytest.mark.usefixtures("small_tiles")
def test_a_region_that_meets_a_block_that_was_not_foreseen(
    stored: tuple[str, Path, Path],
    opened: list[Any],
    tmp_path: Path,
    in_passes: list[int],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The frame goes through passes with what is really touched, now and when it comes again."""
    monkeypatch.setattr(crowded, "cell_blocks", lambda *_: np.zeros((3, 4, 6), dtype=np.bool_))
    store = BlockStore.open(stored[2])
    settings = make_settings(store)
    whole = frame(Renderer(load_scene(stored[2]), settings, "cpu", threads=1), 0)
    renderer = open_fetching(opened, store, settings, 4, route_of(store, settings, tmp_path, [0, 1]))
    with caplog.at_level("INFO"):
        for _ in range(2):
            np.testing.assert_array_equal(frame(renderer, 0, frame=0)["rgb"], whole["rgb"])
    assert in_passes == [12, 12]
    assert caplog.text.count("not foreseen") == 1


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


@pytest.mark.parametrize("slots", [6, 4])
@pytest.mark.usefixtures("small_tiles")
def test_out_of_memory_there_are_fewer_slots_and_the_same_bits(
    stored: tuple[str, Path, Path], opened: list[Any], tmp_path: Path, slots: int, caplog: pytest.LogCaptureFixture
) -> None:
    """In a frame whose blocks are all held, and in a region of one; nothing of the old tables is left when others are made."""
    store = BlockStore.open(stored[2])
    settings = make_settings(store)
    whole = Renderer(load_scene(stored[2]), settings, "cpu", threads=1)
    expected = {index: frame(whole, index) for index in (0, 2, 3)}
    renderer = open_fetching(opened, store, settings, slots, route_of(store, settings, tmp_path, [0, 2, 3]))
    with room_for(2) as kept:
        for index in (0, 2, 3, 0):
            found = frame(renderer, index, frame=index)
            for name, values in expected[index].items():
                np.testing.assert_array_equal(found[name], values, err_msg=f"{name} of frame {index} from {slots} slots")
    halvings = {6: ["6 slots: 3", "3 slots: 1"], 4: ["4 slots: 2"]}[slots]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == [f"out of GPU memory with {change} from here on, with the same pixels" for change in halvings]
    assert kept == [0] * len(halvings)
    with room_for(0), pytest.raises(torch.OutOfMemoryError):
        frame(renderer, 0, frame=0)
    assert renderer._fetcher.capacity == 1


def test_after_memory_for_not_one_slot_there_may_be_some_again(stored: tuple[str, Path, Path], opened: list[Any]) -> None:
    store = BlockStore.open(stored[2])
    settings = make_settings(store)
    renderer = open_fetching(opened, store, settings, 4, None)
    expected = frame(renderer, 2)
    with room_for(0), room_for_tables(0):
        for _ in range(2):
            with pytest.raises(torch.OutOfMemoryError):
                frame(renderer, 2)
    for name, values in frame(renderer, 2).items():
        np.testing.assert_array_equal(values, expected[name])
    renderer.close()
    with pytest.raises(RuntimeError, match="closed"):
        frame(renderer, 2)


def test_the_order_of_a_regions_pixels_is_the_frames() -> None:
    device = torch.device("cpu")
    region = Region(8, 4, 31, 16, ())
    order = tile_order(WIDTH, HEIGHT, device).tolist()
    inside = [pixel for pixel in order if 4 <= pixel // WIDTH < 16 and pixel % WIDTH >= 8]
    assert region_order(WIDTH, HEIGHT, region, device).tolist() == inside


@pytest.mark.parametrize("kind", ["blocks", "cut"])
@pytest.mark.usefixtures("one_thread", "kernels_of_a_gpu", "small_tiles")
def test_regions_by_the_fused_kernels_references(kind: str, opened: list[Any], tmp_path: Path) -> None:
    """The path of CUDA, its ops in plain torch: the bits of frames whose blocks are all there."""
    path = write_store(tmp_path, kind, density_channels=16, appearance_channels=16)[1]
    store = BlockStore.open(path)
    settings = make_settings(store, runtime="torch")
    expected = FusedRenderer(load_scene(path), settings, "cpu")
    renderer = open_fetching(opened, store, settings, 4, route_of(store, settings, tmp_path, [0, 2]))
    tables = renderer._fetcher.tables
    renderer._fused = FusedRenderer(renderer._fetcher.base, settings, "cpu", None, tables)
    renderer._ray_passes = RayPasses(renderer._fused, tables)
    for index in (0, 2):
        output, want = renderer.render(POSES[index], LENS, WIDTH, HEIGHT, frame=index), expected.render(POSES[index], LENS, WIDTH, HEIGHT)
        for name in ("rgb", "depth", "alpha"):
            assert torch.equal(getattr(output, name), getattr(want, name)), f"{name} of frame {index}"
        assert {name: output.counters[name] for name in want.counters} == want.counters
        assert output.counters["fetch_loads"] > 0


@pytest.mark.usefixtures("one_thread", "kernels_of_a_gpu")
def test_out_of_memory_passes_take_fewer_rays(
    opened: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The path of CUDA, its ops in plain torch: as many slots, the same bits, one warning."""
    path = write_store(tmp_path, "blocks", density_channels=16, appearance_channels=16)[1]
    store = BlockStore.open(path)
    settings = make_settings(store, runtime="torch")
    expected = FusedRenderer(load_scene(path), settings, "cpu").render(POSES[0], LENS, WIDTH, HEIGHT)
    renderer = open_fetching(opened, store, settings, 2, route_of(store, settings, tmp_path, [0]))
    renderer._fused = FusedRenderer(renderer._fetcher.base, settings, "cpu", None, renderer._fetcher.tables)
    renderer._ray_passes = RayPasses(renderer._fused, renderer._fetcher.tables)
    weigh, counts = RayPasses._weigh, list[int]()

    def short(self: RayPasses, density: Any, marched: Any) -> Any:
        counts.append(marched.found.shape[0])
        if counts[-1] > 140:
            raise torch.OutOfMemoryError("too many rays")
        return weigh(self, density, marched)

    monkeypatch.setattr(RayPasses, "_weigh", short)
    monkeypatch.setattr(fused_passes, "MIN_RAYS", 100)
    output = renderer.render(POSES[0], LENS, WIDTH, HEIGHT, frame=0)
    for name in ("rgb", "depth", "alpha"):
        assert torch.equal(getattr(output, name), getattr(expected, name)), name
    assert output.counters["rays"] == WIDTH * HEIGHT and renderer._fetcher.capacity == 2
    assert counts == [527, 263, 131, 131, 131, 131, 3]
    told = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert told == ["out of GPU memory with 527 rays at once: fewer are taken from here on, with the same pixels"]
