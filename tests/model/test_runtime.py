"""Which implementation renders: what is asked for, what there is, and what is said when it is not there."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from landmark_batch.errors import ConfigError, KernelBuildError
from landmark_batch.job import job_from_dict
from landmark_batch.kernels import build, library, reference
from landmark_batch.kernels.build import KernelStatus
from landmark_batch.model import runtime
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.runtime import KernelSource, load_runtime, resolve_runtime
from landmark_batch.model.settings import resolve_settings
from tests.factories import make_config, make_scene
from tests.model.conftest import POSES, settings_for

GOOD = {device: KernelStatus(device, loaded=False, usable=True, reason="built: /x.so") for device in ("cpu", "cuda")}
NONE = {
    device: KernelStatus(device, loaded=False, usable=False, reason="no nvcc here", remedy=f"install a compiler for {device}")
    for device in ("cpu", "cuda")
}


@pytest.fixture
def unwarned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_warned", set())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_is_taken_where_asked_for(device: str) -> None:
    assert resolve_runtime("torch", device, kernels=GOOD[device]).runtime == "torch"


@pytest.mark.parametrize("requested", ["auto", "fused"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fused_is_taken_where_there_are_kernels(device: str, requested: str) -> None:
    choice = resolve_runtime(requested, device, kernels=GOOD[device])
    assert (choice.runtime, choice.reason) == ("fused", "built: /x.so")


def test_auto_on_a_cpu_without_kernels_is_torch_and_one_warning(unwarned: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            choice = resolve_runtime("auto", "cpu", kernels=NONE["cpu"])
    assert choice.runtime == "torch" and "no nvcc here" in choice.reason
    assert len(caplog.records) == 1 and "no nvcc here" in caplog.text


@pytest.mark.parametrize(("requested", "device"), [("auto", "cuda"), ("fused", "cuda"), ("fused", "cpu")])
def test_kernels_that_are_demanded_and_missing_stop_with_both_remedies(requested: str, device: str) -> None:
    with pytest.raises(KernelBuildError) as error:
        resolve_runtime(requested, device, kernels=NONE[device])
    assert f'model.runtime = "{requested}" on {device}: no nvcc here' in error.value.message
    assert error.value.remedy == f"install a compiler for {device}, or set --runtime torch"


def test_what_there_is_is_looked_at_but_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "status", lambda device, **_: GOOD[device])
    monkeypatch.setattr(build, "build", lambda *_, **__: pytest.fail("built"))
    assert resolve_runtime("fused").runtime == "fused"
    assert settings_for(make_config(), model__runtime="fused").runtime == "fused"
    monkeypatch.setattr(build, "status", lambda device, **_: NONE[device])
    with pytest.raises(KernelBuildError):
        settings_for(make_config(), model__runtime="fused")


def test_an_unknown_word() -> None:
    with pytest.raises(ConfigError, match=r"model\.runtime = 'turbo'"):
        resolve_runtime("turbo")


def test_loading(tmp_path: Path) -> None:
    """torch loads nothing; fused loads or says why not."""
    empty = KernelSource(prebuilt=tmp_path)
    assert load_runtime("torch", "cpu", source=empty) is None
    with pytest.raises(KernelBuildError, match="there is no such file") as error:
        load_runtime("fused", "cpu", source=empty)
    assert "--runtime torch" in str(error.value.remedy)
    assert not empty.prepare("cpu").usable


def test_sources_from_the_environment(tmp_path: Path) -> None:
    found = KernelSource.from_environment({"LANDMARK_BATCH_KERNELS": "/libraries", "CUDA_HOME": "/opt/cuda"}, tmp_path)
    assert found == KernelSource(tmp_path, Path("/libraries"), Path("/opt/cuda"))
    assert KernelSource.from_environment({"CUDA_HOME": ""}) == KernelSource()
    assert KernelSource.from_environment({"XDG_CACHE_HOME": "/cache"}) == KernelSource(Path("/cache/landmark-batch"))


def test_prebuilt_kernels_count_where_nothing_can_be_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.kernels.toolchain.shutil.which", lambda name: None)
    assert resolve_runtime("auto", "cpu", source=KernelSource(cache_dir=tmp_path)).runtime == "torch"
    (tmp_path / "landmark_cpu.so").write_text("library")
    source = KernelSource(cache_dir=tmp_path, prebuilt=tmp_path)
    for requested in ("auto", "fused"):
        assert resolve_runtime(requested, "cpu", source=source).runtime == "fused"
    job = job_from_dict({"model": {"runtime": "fused"}})
    assert resolve_settings(job, make_config(), kernels=source).runtime == "fused"


def test_a_renderer_of_torch_does_without_compiled_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = make_scene(mask=0.5)
    settings = replace(settings_for(weights.config, samples=8), runtime="torch")
    renderer, view = Renderer(weights, settings, threads=2), (POSES["above"], (20.0, 20.0, 8.0, 6.0), 16, 12)
    want = renderer.render(*view)
    monkeypatch.setattr(library.torch.ops, "landmark_batch", None)  # what a compiled library would override
    assert torch.equal(want.rgb, renderer.render(*view).rgb)


def test_plain_ops_are_of_one_thread() -> None:
    inside, outside = [], []
    with library.plain_ops():
        with library.plain_ops():
            pass
        inside.append(library.ops.march)
        thread = threading.Thread(target=lambda: outside.append(library.ops.march))
        thread.start()
        thread.join()
    assert inside == [reference.march] and outside == [torch.ops.landmark_batch.march] == [library.ops.march]
