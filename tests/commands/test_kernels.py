"""`landmark-batch kernels`: build, status, clean. No compiler runs here; tests/kernels builds for real."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from landmark_batch.cli import cli
from landmark_batch.commands import kernels as commands
from landmark_batch.kernels import build, cache, toolchain
from landmark_batch.kernels.build import KernelStatus
from landmark_batch.kernels.torch_build import torch_build


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(commands, "_cache", lambda: tmp_path / "cache")
    monkeypatch.delenv("LANDMARK_BATCH_KERNELS", raising=False)
    return tmp_path


def run(*words: str) -> Any:
    return CliRunner().invoke(cli, ["kernels", *words])


def fake_build(folder: Path, calls: list[dict[str, Any]]) -> Any:
    def compile_nothing(device: str, **options: Any) -> KernelStatus:
        calls.append({"device": device, **options})
        entry = folder / "cache" / "kernels" / f"{device}-0123456789abcdef"
        entry.mkdir(parents=True, exist_ok=True)
        library = entry / f"landmark_{device}.so"
        library.write_text("library")
        (entry / f"landmark_{device}.json").write_text('{"device": "cpu"}')
        return KernelStatus(device, False, True, f"built: {library}", library, 12.5, entry / "build.log")

    return compile_nothing


def test_build_says_what_it_took_and_where_it_lies(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(build, "build", fake_build(place, calls))
    done = run("build", "--device", "cpu")
    assert done.exit_code == 0 and "cpu: built in 0:12" in done.output and "landmark_cpu.so" in done.output
    assert calls[0]["cache_dir"] == place / "cache" and calls[0]["architectures"] is None and not calls[0]["force"]
    done = run(
        "build", "--device", "cpu", "--device", "cuda", "--arch", "80", "--arch", "90a", "--force", "-o", str(place / "out"), "--json"
    )
    assert done.exit_code == 0
    assert [call["device"] for call in calls[1:]] == ["cpu", "cuda"] and calls[2]["architectures"] == ("80", "90a") and calls[2]["force"]
    assert [Path(entry["copy"]).is_file() for entry in json.loads(done.output)] == [True, True]


def test_a_build_that_fails_is_exit_2_with_the_remedy(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "build", lambda device, **_: KernelStatus(device, False, False, "no nvcc here", remedy="buy one"))
    done = run("build", "--device", "cuda")
    assert done.exit_code == 2 and "cuda: no nvcc here" in done.output and "buy one" in done.output
    assert "--runtime torch" not in done.output, "who builds has not asked for a render"


def test_cuda_kernels_for_a_torch_without_cuda(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "torch_build", lambda: replace(torch_build(), version="2.13.0+cpu", cuda=None))
    done = run("build", "--device", "cuda")
    said = " ".join(done.output.split())
    assert done.exit_code == 2 and "torch 2.13.0+cpu was built without CUDA" in said
    assert "pip install --force-reinstall torch==2.13.0" in said and "landmark-batch[cuda]" not in said


def test_status_and_clean(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_build(place, [])("cpu")
    done = run("status")
    assert done.exit_code == 0 and "1 built" in done.output and str(place / "cache" / "kernels") in done.output
    found = json.loads(run("status", "--json").output)
    assert set(found["devices"]) == {"cpu", "cuda", "png"} and found["built"][0]["device"] == "cpu"
    done = run("clean")
    assert done.exit_code == 0 and "deleted 1 builds" in done.output
    assert cache.entries(place / "cache") == []
    assert json.loads(run("clean", "--json").output) == {"bytes": 0, "removed": []}


def test_prebuilt_libraries_are_named_by_the_environment(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", str(place / "libraries"))
    done = run("status")
    assert done.exit_code == 0 and f"prebuilt {place / 'libraries' / 'landmark_cpu.so'}: there is no such file" in " ".join(
        done.output.split()
    )
