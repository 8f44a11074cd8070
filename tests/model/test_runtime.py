"""Which implementation renders: what is asked for, what there is, and what is said when it is not there."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from landmark_batch.errors import ConfigError, KernelBuildError
from landmark_batch.kernels import build
from landmark_batch.kernels.build import KernelStatus
from landmark_batch.model import runtime
from landmark_batch.model.runtime import KernelSource, load_runtime, resolve_runtime
from tests.factories import make_config
from tests.model.conftest import settings_for

GOOD = {device: KernelStatus(device, loaded=False, usable=True, reason="built: /x.so") for device in ("cpu", "cuda")}
NONE = {device: KernelStatus(device, loaded=False, usable=False, reason="no nvcc here") for device in ("cpu", "cuda")}


@pytest.fixture
def fused_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "AUTO_USES_FUSED", {"cpu": True, "cuda": True})
    monkeypatch.setattr(runtime, "_warned", set())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_torch_is_taken_where_asked_for(device: str, fused_by_default: None) -> None:
    assert resolve_runtime("torch", device, kernels=GOOD[device]).runtime == "torch"


@pytest.mark.parametrize("requested", ["auto", "fused"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_fused_is_taken_where_there_are_kernels(device: str, requested: str, fused_by_default: None) -> None:
    choice = resolve_runtime(requested, device, kernels=GOOD[device])
    assert (choice.runtime, choice.reason) == ("fused", "built: /x.so")


def test_auto_on_a_cpu_without_kernels_is_torch_and_one_warning(fused_by_default: None, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            choice = resolve_runtime("auto", "cpu", kernels=NONE["cpu"])
    assert choice.runtime == "torch" and "no nvcc here" in choice.reason
    assert len(caplog.records) == 1 and "no nvcc here" in caplog.text


@pytest.mark.parametrize(("requested", "device"), [("auto", "cuda"), ("fused", "cuda"), ("fused", "cpu")])
def test_kernels_that_are_demanded_and_missing_stop_with_both_remedies(requested: str, device: str, fused_by_default: None) -> None:
    with pytest.raises(KernelBuildError) as error:
        resolve_runtime(requested, device, kernels=NONE[device])
    assert f'model.runtime = "{requested}" on {device}: no nvcc here' in error.value.message
    assert "install" in str(error.value.remedy) and "--runtime torch" in str(error.value.remedy)
    if device == "cuda":
        assert "landmark-batch[cuda]" in str(error.value.remedy)


def test_auto_follows_the_switch(monkeypatch: pytest.MonkeyPatch) -> None:
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(runtime, "AUTO_USES_FUSED", {"cpu": False, "cuda": False})
        assert resolve_runtime("auto", device, kernels=GOOD[device]).runtime == "torch"


def test_what_there_is_is_looked_at_but_not_built(fused_by_default: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "status", lambda device: GOOD[device])
    monkeypatch.setattr(build, "build", lambda *_, **__: pytest.fail("built"))
    assert resolve_runtime("fused").runtime == "fused"
    assert settings_for(make_config(), model__runtime="fused").runtime == "fused"
    monkeypatch.setattr(build, "status", lambda device: NONE[device])
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
