"""Overlapped stages on a GPU: the same pixels, and NaN found in the frame that holds it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from landmark_batch.errors import PixelError
from landmark_batch.frames.encoding_processes import encoding_processes
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.image_files import KEY, read_label
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.pictures import order_pictures, withdraw
from landmark_batch.frames.png import encode_png
from landmark_batch.frames.staged_frames import StagedFrames
from landmark_batch.frames.store_source import open_source
from landmark_batch.kernels.png import PngLibrary, packer
from landmark_batch.workflows import picture_makers
from tests.workflows.processes import until
from tests.workflows.test_pipeline import FRAMES, chunk, render_all, session_of


@pytest.fixture(scope="module")
def gpu_renderer() -> Any:
    """Fused kernels, of a scene that the colours' kernel is compiled for."""
    import torch

    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    from landmark_batch.job import job_from_dict
    from landmark_batch.model.fused import FusedRenderer
    from landmark_batch.model.settings import resolve_settings
    from landmark_batch.workflows.renderers import ResidentRenderer
    from tests.factories import make_scene

    usual = {"density_channels": 16, "appearance_channels": 48, "app_dim": 27, "feature_width": 128, "resolutions": (1, 2, 4)}
    weights = make_scene(**usual)  # type: ignore[arg-type]
    job = job_from_dict({"scene": {"checkpoint": "a.th"}, "model": {"runtime": "fused", "precision": "fp16"}, "sampling": {"samples": 16}})
    settings = resolve_settings(job, weights.config, device="cuda")
    return ResidentRenderer(FusedRenderer(weights, settings, torch.device("cuda")))


def with_nan(rgb: Any) -> Any:
    wrong = rgb.clone()
    wrong.view(-1)[(3 * 32 + 4) * 3 + 1] = float("nan")
    return wrong


class WithNaN:
    """A renderer whose frames hold a NaN where they are said to."""

    def __init__(self, renderer: Any, bad: tuple[int, ...] = ()) -> None:
        self.renderer, self.bad = renderer, bad

    def render(self, c2w: Any, intrinsics: Any, width: int, height: int, *, frame: int) -> Any:
        pose = np.eye(3, 4)
        pose[:, 3] = (frame * 0.01, 0.0, 1.5)
        output = self.renderer.render(pose, (30.0, 30.0, 16.0, 9.0), width, height, frame=frame)
        return replace(output, rgb=with_nan(output.rgb)) if frame in self.bad else output


@pytest.mark.gpu
def test_overlap_changes_no_pixel_on_a_gpu(tmp_path: Path, gpu_renderer: Any) -> None:
    renderer = WithNaN(gpu_renderer)
    found = {}
    for overlap in (True, False):
        place = tmp_path / str(overlap)
        with session_of(place, renderer, overlap=overlap, device="cuda") as (session, store):
            receipts, threads = render_all(session, [chunk(first) for first in range(0, FRAMES, 4)])
            for thread in threads:
                thread.join()
            assert "copy" in receipts[0]["stages"]
            found[overlap] = [store.read("rgb", frame) for frame in range(FRAMES)]
    for frame in range(FRAMES):
        output = renderer.render(None, None, 32, 18, frame=frame)
        alone = output.quantised(store.spec.outputs, frame=frame)["rgb"]
        assert len(np.unique(alone)) > 8
        np.testing.assert_array_equal(found[True][frame], alone)
        np.testing.assert_array_equal(found[False][frame], alone)


@pytest.mark.gpu
def test_processes_encode_what_the_device_writes(tmp_path: Path, gpu_renderer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Into memory that they see, chunk after chunk; none is left to the threads of this process."""

    def refuse(*_: Any) -> Any:
        raise AssertionError("encoded here")

    until(lambda: encoding_processes().ready)
    monkeypatch.setattr(StagedFrames, "_here", refuse)
    renderer = WithNaN(gpu_renderer)
    with session_of(tmp_path, renderer, overlap=True, device="cuda") as (session, store):
        _, threads = render_all(session, [chunk(first) for first in range(0, FRAMES, 4)])
        for thread in threads:
            thread.join()
        for frame in range(FRAMES):
            alone = renderer.render(None, None, 32, 18, frame=frame).quantised(store.spec.outputs, frame=frame)["rgb"]
            np.testing.assert_array_equal(store.read("rgb", frame), alone)


@pytest.mark.gpu
@pytest.mark.parametrize("maker", ["host", "device"])
@pytest.mark.parametrize("processes", [True, False])
def test_pngs_stand_with_their_frames(
    tmp_path: Path, gpu_renderer: Any, processes: bool, maker: str, png_library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made by the device or the host, written by whoever writes the frame."""
    monkeypatch.setattr(picture_makers, "LEISURE", 1e9 if maker == "host" else 0.0)
    monkeypatch.setattr(picture_makers, "PngLibrary", lambda: PngLibrary(prebuilt=png_library.parent))
    if processes:
        until(lambda: encoding_processes().ready)
        monkeypatch.delattr(StagedFrames, "_here")
    else:
        monkeypatch.setattr(StagedFrames, "_elsewhere", lambda *_: None)
    order = order_pictures(tmp_path / "png", "city", ImageSettings())
    assert order is not None
    with session_of(tmp_path, WithNaN(gpu_renderer), device="cuda", pictures=order) as (session, store):
        makers = session._pipeline._makers
        assert makers is not None
        until(lambda: makers.streams(np.zeros((1, 64), np.uint8)).compiled is not None)
        _, threads = render_all(session, [chunk(first) for first in range(0, FRAMES, 4)])
        for thread in threads:
            thread.join()
    withdraw(order)
    shown = [np.asarray(Image.open(order.path(frame))) for frame in range(FRAMES)]
    for frame in range(FRAMES):
        pixels = store.read("rgb", frame)
        np.testing.assert_array_equal(shown[frame], pixels)
        text = read_label(order.path(frame), "png")
        by_host = encode_png(pixels, text, packer=packer(png_library))
        assert (order.path(frame).read_bytes() == by_host) == (maker == "host")
    with ImageExporter(open_source(store.path), tmp_path / "png") as exporter:
        keys = {read_label(order.path(frame), "png")[KEY] for frame in range(FRAMES)}
        digests = [found["rgb"] for found in exporter.source.finished().values()]
        assert keys == {exporter.settings.key(digest, None, None, None) for digest in digests}


@pytest.mark.gpu
@pytest.mark.parametrize("overlap", [True, False])
def test_nan_is_found_in_the_frame_that_holds_it_on_a_gpu(tmp_path: Path, gpu_renderer: Any, overlap: bool) -> None:
    with session_of(tmp_path, WithNaN(gpu_renderer, bad=(6,)), overlap=overlap, device="cuda") as (session, store):
        session.render("a", chunk(0), 0)
        with pytest.raises(PixelError, match=r"frame 6: rgb holds 1 values that are NaN or infinite, the first at \(3, 4, 1\)"):
            session.render("b", chunk(4), 0)
        session.render("c", chunk(8), 0)
        assert sorted(store.finished()) == [0, 1, 2, 3, 8, 9, 10, 11]
