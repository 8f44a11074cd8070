"""Whole jobs with output.compressor = "jpegxl": planned, rendered, exported."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from landmark_batch.errors import ConfigError, DiskFullError
from landmark_batch.frames.jpegxl import require_compressor
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.verify import verify_store
from landmark_batch.job import RenderJob
from landmark_batch.workflows import plan as plan_module
from landmark_batch.workflows.export import export_images
from landmark_batch.workflows.machine import Machine
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.render import run_render
from tests.frames.store_kit import with_jpegxl

MakeJob = Callable[..., RenderJob]
MACHINE = Machine("here", "a CPU", 4, 16 * 2**30, (), 0, None, "2.13.0+cpu", None)


@with_jpegxl
@pytest.mark.usefixtures("inline")
def test_rendered_verified_and_exported(make_job: MakeJob, tmp_path: Path) -> None:
    options = ("cameras.frames=0-3", "output.depth=true", "output.alpha=uint16")
    run_render(make_job("output.compressor=jpegxl", *options), machine=MACHINE)
    usual = tmp_path / "usual.zarr"
    run_render(make_job(f"output.store={usual}", *options), machine=MACHINE)
    store, other = FrameStore.open(tmp_path / "tiny.zarr"), FrameStore.open(usual)
    report = verify_store(store.path)
    assert (store.spec.compressor, report.ok, report.checked) == ("jpegxl", True, 4)
    for name in ("rgb", "depth", "alpha"):
        assert all(np.array_equal(store.read(name, frame), other.read(name, frame)) for frame in range(4))
    pictures = sorted(export_images(store.path, allow_missing=True).folder.glob("*.png"))
    for frame, picture in enumerate(pictures):
        with Image.open(picture) as image:
            assert np.array_equal(np.asarray(image), other.read("rgb", frame))
    assert len(pictures) == 4
    assert run_render(make_job(*options), machine=MACHINE).rendered == 0, "any job goes on with it"


def test_refused_before_anything_is_made(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("output.compressor=jpegxl", "output.rgb=float32", "output.depth=float16")
    with pytest.raises(ConfigError, match=r"no output is uint8 or uint16, but rgb float32, depth float16\n.*zstd"):
        make_plan(job, machine=MACHINE)
    monkeypatch.setitem(sys.modules, "imagecodecs", None)
    job = make_job("output.compressor=jpegxl")
    with pytest.raises(ConfigError, match=r"\n.*pip install 'landmark-batch\[jpegxl\]'"):
        make_plan(job, machine=MACHINE)
    with pytest.raises(ConfigError, match="imagecodecs"):
        run_render(job, machine=MACHINE)
    assert not job.store_path.exists()


@with_jpegxl
@pytest.mark.usefixtures("inline")
def test_a_worker_that_lacks_the_library_ends_the_job_with_the_remedy(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    def checked(compressor: str) -> None:
        require_compressor(compressor)
        monkeypatch.setitem(sys.modules, "imagecodecs", None)  # from here on, as on another host

    monkeypatch.setattr(plan_module, "require_compressor", checked)
    job = make_job("output.compressor=jpegxl", "cameras.frames=0-3")
    with pytest.raises(ConfigError, match=r"imagecodecs\n.*on every worker host"):
        run_render(job, machine=MACHINE)


@with_jpegxl
def test_it_may_need_a_third_of_the_disk_that_others_need(make_job: MakeJob, monkeypatch: pytest.MonkeyPatch) -> None:
    size = ("cameras.width=1920", "cameras.height=1080")
    monkeypatch.setattr(plan_module.shutil, "disk_usage", lambda path: SimpleNamespace(free=50 * 2**20))  # for 24 × 5.9 MiB
    with pytest.raises(DiskFullError):
        make_plan(make_job(*size), machine=MACHINE)
    assert any("should it get full" in text for text in make_plan(make_job("output.compressor=jpegxl", *size), machine=MACHINE).warnings)
