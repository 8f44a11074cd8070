"""FetchingRenderer on a GPU: the bits of resident rendering there, with fused kernels and with plain torch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.fetching import regions
from landmark_batch.model import tiles
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.fused_passes import RayPasses
from landmark_batch.model.renderer import Renderer
from landmark_batch.scene.checkpoint import load_scene
from landmark_batch.scene.store import BlockStore

from .flights import HEIGHT, LENS, POSES, WIDTH, frame, make_settings, open_fetching, route_of, write_store

pytestmark = pytest.mark.gpu

USUAL = {  # the shape that `shade` is compiled for
    "density_channels": 16,
    "appearance_channels": 48,
    "app_dim": 27,
    "feature_width": 128,
    "resolutions": (1, 2, 4),
}


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, BlockStore]:
    folder = tmp_path_factory.mktemp("stores")
    found = {}
    for kind in ("blocks", "cut", "cut3", "masked"):
        for name, shape in (("", {}), (" usual", USUAL)):
            if kind == "cut3" and name:
                continue
            place = folder / f"{kind}{name}"
            place.mkdir()
            found[f"{kind}{name}"] = BlockStore.open(write_store(place, kind, **shape)[1])
    return found


@pytest.fixture
def opened() -> Iterator[list[Any]]:
    things: list[Any] = []
    yield things
    for thing in reversed(things):
        thing.close()


@pytest.mark.parametrize("kind", ["blocks", "blocks usual", "cut", "cut usual", "cut3", "masked", "masked usual"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("runtime", ["fused", "torch"])
def test_any_budget_gives_the_bits_of_the_whole_scene(
    stores: dict[str, BlockStore], opened: list[Any], tmp_path: Path, kind: str, precision: str, runtime: str
) -> None:
    store = stores[kind]
    settings = make_settings(store, runtime=runtime, precision=precision)
    weights = load_scene(Path(store.location))
    device = torch.device("cuda")
    resident: Any = FusedRenderer(weights, settings, device) if runtime == "fused" else Renderer(weights, settings, device)
    expected = [frame(resident, index) for index in range(len(POSES))]
    assert expected[0]["alpha"].max() > 0.5
    for slots in (1, 2, 4, 6):
        order = [3, 0, 2, 4, 1]
        renderer = open_fetching(opened, store, settings, slots, route_of(store, settings, tmp_path, order), "cuda")
        for index in [*order, 0, 0, 0]:  # the last ones from a graph, where there is one
            found = frame(renderer, index, frame=index)
            for name, values in expected[index].items():
                np.testing.assert_array_equal(found[name], values, err_msg=f"{name} of frame {index}, {slots} slots")


@pytest.mark.parametrize("kind", ["blocks usual", "cut", "cut usual", "masked"])
@pytest.mark.parametrize("runtime", ["fused", "torch"])
def test_regions_of_a_frame_have_its_bits(
    stores: dict[str, BlockStore], opened: list[Any], tmp_path: Path, kind: str, runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames that need more blocks than there are slots, in regions of 8 x 4 pixels (fused) or 8 x 8 (torch) and more."""
    monkeypatch.setattr(tiles, "CUDA_SAMPLES", 64 * 40)
    monkeypatch.setattr(regions, "PASS_RAYS", 64)  # passes are dear: nothing but a smallest region goes through them
    in_passes: list[int] = []
    render_pixels = RayPasses.render_pixels

    def counted(self: RayPasses, *arguments: Any) -> Any:
        in_passes.append(arguments[3].shape[0])
        return render_pixels(self, *arguments)

    monkeypatch.setattr(RayPasses, "render_pixels", counted)
    store = stores[kind]
    settings = make_settings(store, runtime=runtime, precision="fp16")
    weights, device = load_scene(Path(store.location)), torch.device("cuda")
    resident: Any = FusedRenderer(weights, settings, device) if runtime == "fused" else Renderer(weights, settings, device)
    expected = [frame(resident, index) for index in range(len(POSES))]
    for slots in (1, 2, 4):
        renderer = open_fetching(opened, store, settings, slots, route_of(store, settings, tmp_path, [0, 2, 3]), "cuda")
        for index in (0, 2, 3, 0, 0):
            found = frame(renderer, index, frame=index)
            for name, values in expected[index].items():
                np.testing.assert_array_equal(found[name], values, err_msg=f"{name} of frame {index}, {slots} slots")
    assert max(in_passes, default=0) < WIDTH * HEIGHT / 2


def test_out_of_memory_shrinks_the_batch_and_then_the_slots(
    stores: dict[str, BlockStore], opened: list[Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = stores["blocks usual"]
    settings = make_settings(store, runtime="fused", precision="fp16")
    width, height, lens = 40 * WIDTH, 40 * HEIGHT, tuple(40 * value for value in LENS)
    expected = FusedRenderer(load_scene(Path(store.location)), settings, "cuda").render(POSES[0], lens, width, height).numpy()
    renderer = open_fetching(opened, store, settings, 6, None, "cuda")
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 96 * 2**20) / total)
    try:
        found = renderer.render(POSES[0], lens, width, height).numpy()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    np.testing.assert_array_equal(found["rgb"], expected["rgb"])
    assert "out of GPU memory" in caplog.text
