"""Building: what is missing, what failed, one build at a time, nothing half finished. The compilers here are shell scripts."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from landmark_batch.kernels import build, cache, toolchain
from landmark_batch.kernels.recipe import SOURCES, source_files, write_recipe
from landmark_batch.kernels.torch_build import torch_build

ROOT = Path(__file__).resolve().parents[2]
GOOD = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi
while [ $# -gt 0 ]; do case "$1" in -o) shift; echo library > "$1"; echo "$1" >> "{log}";; esac; shift; done
sleep {seconds}
"""
BAD = """#!/bin/sh
if [ "$1" = --version ]; then echo "fake 1.0"; exit 0; fi
echo x >> "{log}"
echo "In file included from here:" >&2
echo "march.h:12:3: error: 'Survivors' was not declared in this scope" >&2
exit 1
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Puts a fake compiler first on the PATH; returns the file in which it counts its calls."""

    def install(script: str, seconds: float = 0.0) -> Path:
        folder, log = tmp_path / "bin", tmp_path / "calls"
        folder.mkdir(exist_ok=True)
        log.touch()
        program = folder / "c++"
        program.write_text(script.format(log=log, seconds=seconds))
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
        return log

    return install


def test_a_build_is_published_whole_and_found_again(compiler: Callable[..., Path], tmp_path: Path) -> None:
    calls = compiler(GOOD)
    where = tmp_path / "cache"
    before = build.status("cpu", cache_dir=where)
    assert before.usable and not before.loaded and before.path is None and "not built yet" in before.reason and "fake 1.0" in before.reason
    told: list[tuple[str, float]] = []
    found = build.build("cpu", cache_dir=where, progress=lambda label, share: told.append((label, share)))
    assert found.usable and found.path is not None and found.path.read_text() == "library\n", found.reason
    assert found.seconds > 0 and found.log is not None and "fake 1.0" in found.log.read_text()
    assert told[0] == ("compiling the cpu kernels", 0.0) and told[-1][1] == 1.0
    assert [share for _, share in told] == sorted(share for _, share in told)
    number = len(calls.read_text().splitlines())
    assert number == len([p for p in source_files("cpu") if p.suffix == ".cpp"]) + 1, "each object once, and the library"
    assert not list(where.rglob("building-*")) and not list(where.rglob(".*so*"))

    again = build.build("cpu", cache_dir=where)
    assert again.path == found.path and again.seconds < 5 and again.log is None
    assert len(calls.read_text().splitlines()) == number, "nothing is compiled twice"
    assert build.status("cpu", cache_dir=where).path == found.path
    assert build.build("cpu", cache_dir=where, force=True).path == found.path
    assert len(calls.read_text().splitlines()) == 2 * number


def test_a_failed_build_says_the_first_error_and_keeps_its_log(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler(BAD)
    found = build.build("cpu", cache_dir=tmp_path / "cache")
    assert not found.usable and not found.loaded and found.path is None
    assert found.log is not None and "Survivors" in found.log.read_text()
    assert found.reason == f"the build failed: march.h:12:3: error: 'Survivors' was not declared in this scope (log: {found.log})"
    loaded = build.load("cpu", cache_dir=tmp_path / "cache")
    assert not loaded.loaded and "Survivors" in loaded.reason
    with pytest.raises(build.KernelError, match="the cpu kernels cannot be used: the build failed"):
        build.require("cpu", cache_dir=tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_library_that_is_none_is_not_loaded(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler(GOOD)
    found = build.load("cpu", cache_dir=tmp_path / "cache")
    assert not found.loaded and not found.usable and "cannot be loaded" in found.reason
    assert torch.ops.landmark_batch.ray_hull(torch.zeros(1, 6), 1.0, 0.0).tolist() == [1.0], "the ops go on as they were"


CHILD = """
import os, sys, time
from pathlib import Path
from landmark_batch.kernels import build
root = Path(sys.argv[1])
(root / f"ready-{os.getpid()}").touch()
while len(list(root.glob("ready-*"))) < 2:  # torch's import takes seconds, which differ
    time.sleep(0.01)
waited = []
found = build.build("cpu", cache_dir=root / "cache", progress=lambda label, share: waited.append("waiting" in label))
sys.stdout.write(f"{found.usable} {any(waited)} {found.reason}")
"""


@pytest.mark.parametrize("script", [GOOD, BAD], ids=["succeeds", "fails"])
def test_one_build_a_host(script: str, compiler: Callable[..., Path], tmp_path: Path) -> None:
    """Of two processes that need the same build one compiles; the other waits and takes its result, good or bad."""
    calls = compiler(script.replace("echo x", "sleep 1; echo x"), seconds=0.2)
    command = [sys.executable, "-c", CHILD, str(tmp_path)]
    started = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    results = sorted(process.communicate(timeout=100)[0] for process in started)
    number = len([p for p in source_files("cpu") if p.suffix == ".cpp"])
    if script == GOOD:
        assert [result.split()[0] for result in results] == ["True", "True"]
        assert len(calls.read_text().splitlines()) == number + 1
    else:
        assert all("Survivors" in result for result in results), results
        assert len(calls.read_text().splitlines()) <= number
    assert any(result.split()[1] == "True" for result in results), "one of them waited"


def test_a_lock_of_a_dead_process_is_free(tmp_path: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from landmark_batch.kernels.cache import build_lock\n"
        "with build_lock(Path(sys.argv[1]), 'cpu', lambda: None):\n    os._exit(9)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, check=False, timeout=60)
    start = time.monotonic()
    with cache.build_lock(tmp_path, "cpu", lambda: pytest.fail("the lock is still held")):
        assert time.monotonic() - start < 5


def test_the_key_covers_all_that_a_library_depends_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tools = toolchain.Toolchain(Path("/usr/bin/c++"), Path("/usr/bin/ninja"))
    recipe = write_recipe("cpu", tools)
    facts = cache.build_facts("cpu", recipe, {"c++": "12"})
    keys = {cache.key_of(facts)}
    elsewhere = write_recipe("cpu", toolchain.Toolchain(Path("/opt/c++"), Path("/usr/bin/ninja")))
    assert cache.key_of(cache.build_facts("cpu", elsewhere, {"c++": "12"})) in keys, "where the compiler lies says nothing"
    keys.add(cache.key_of(cache.build_facts("cpu", recipe, {"c++": "13"})))
    keys.add(cache.key_of(cache.build_facts("cpu", recipe + " -g", {"c++": "12"})))
    for name, value in (("torch", "2.99"), ("machine", "arm"), ("torch_commit", "0")):
        keys.add(cache.key_of({**facts, name: value}))
    monkeypatch.setattr(cache, "source_files", lambda device: [SOURCES / device / "kernels.h"])
    keys.add(cache.key_of(cache.build_facts("cpu", recipe, {"c++": "12"})))
    assert len(keys) == 7


def test_what_torch_says_of_itself_is_read_from_its_files() -> None:
    found = torch_build()
    assert (found.version, found.commit, found.cuda) == (str(torch.__version__), torch.version.git_version, torch.version.cuda)
    assert found.hip == torch.version.hip and found.folder == Path(torch.__file__).parent


def test_recipes_name_every_source_and_no_machine(tmp_path: Path) -> None:
    tools = toolchain.Toolchain(Path("/usr/bin/c++"), Path("/usr/bin/ninja"), Path("/opt/my cuda/bin/nvcc"))
    cpu = write_recipe("cpu", tools)
    for path in source_files("cpu"):
        assert path.suffix != ".cpp" or path.name in cpu
    assert "-march=native" not in cpu and "fast-math" not in cpu and "-ffp-contract=off" in cpu
    cuda = write_recipe("cuda", tools, ("80", "90a"))
    assert "-gencode arch=compute_80,code=sm_80 -gencode arch=compute_90a,code=sm_90a" in cuda
    assert "nvcc = '/opt/my cuda/bin/nvcc'" in cuda
    for path in source_files("cuda"):
        assert path.suffix not in (".cu", ".cpp") or f"{path.stem}.o" in cuda


def test_the_library_of_pngs_does_without_torch(compiler: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("torch is looked at")

    for module in (cache, toolchain):
        monkeypatch.setattr(module, "torch_build", refuse)
    calls = compiler(GOOD)
    found = build.build("png", cache_dir=tmp_path / "cache")
    assert found.usable and found.path is not None and found.path.name == "landmark_png.so", found.reason
    assert len(calls.read_text().splitlines()) == len([p for p in source_files("png") if p.suffix == ".cpp"]) + 1
    assert [(entry.device, entry.library) for entry in cache.entries(tmp_path / "cache")] == [("png", found.path)]
    copy = build.export(found, tmp_path / "out")
    assert build.status("png", prebuilt=copy.parent).path == copy
    facts = copy.with_suffix(".json")
    facts.write_text(facts.read_text().replace('"machine": "', '"machine": "not '))
    assert "built for machine not" in build.status("png", prebuilt=copy.parent).reason
    with pytest.raises(ValueError, match="one of cpu, cuda"):
        build.load("png")


def test_what_a_build_that_died_has_left_goes_with_the_next(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler(GOOD)
    root = cache.kernels_dir(tmp_path)
    old, young, others = (root / name for name in ("building-png-a", "building-png-b", "building-cpu-a"))
    for folder in (old, young, others):
        folder.mkdir(parents=True)
        (folder / "half.o").touch()
    for folder in (old, others):
        os.utime(folder, (time.time() - 2 * cache.LEFT_SECONDS,) * 2)
    assert build.build("png", cache_dir=tmp_path).path is not None
    assert not old.exists() and young.exists() and others.exists()


@pytest.mark.parametrize("missing", ["compiler", "ninja", "headers"])
def test_a_missing_tool_is_named(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if missing == "compiler":
        monkeypatch.setattr(toolchain.shutil, "which", lambda name: None)
    elif missing == "ninja":
        monkeypatch.setattr(toolchain, "_find_ninja", lambda: None)
    else:
        monkeypatch.setattr(toolchain, "torch_include", lambda: tmp_path)
    for found in (build.status("cpu", cache_dir=tmp_path), build.build("cpu", cache_dir=tmp_path)):
        assert not found.usable and {"compiler": "no C++ compiler", "ninja": "no ninja", "headers": "no headers"}[missing] in found.reason
        assert {"compiler": "apt install g++", "ninja": "pip install ninja", "headers": "install torch from a wheel"}[
            missing
        ] in found.remedy
    assert found.as_dict()["loaded"] is False


def test_a_compiler_that_does_not_run(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler("#!/bin/sh\necho broken >&2; exit 3\n")
    found = build.build("cpu", cache_dir=tmp_path / "cache")
    assert not found.usable and "does not run: broken" in found.reason


def test_a_cache_that_cannot_be_written(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler(GOOD)
    (tmp_path / "file").write_text("")
    found = build.build("cpu", cache_dir=tmp_path / "file")
    assert not found.usable and f"nothing can be built in {tmp_path / 'file' / 'kernels'}: " in found.reason


def test_cuda_without_a_cuda_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(toolchain, "torch_build", lambda: replace(torch_build(), cuda=None))
    monkeypatch.setattr(toolchain, "find_nvcc", lambda home: Path("/usr/bin/nvcc"))
    found = build.status("cuda", cache_dir=tmp_path)
    assert "built without CUDA" in found.reason and "install torch with CUDA" in found.remedy
    monkeypatch.setattr(toolchain, "find_nvcc", lambda home: None)
    assert "built without CUDA" in build.load("cuda", cache_dir=tmp_path).reason, "a compiler alone would not help"
    monkeypatch.setattr(toolchain, "torch_build", lambda: replace(torch_build(), cuda="13.0"))
    found = build.load("cuda", cache_dir=tmp_path)
    assert "no nvcc" in found.reason and "landmark-batch[cuda]" in found.remedy


def test_nvcc_of_a_toolkit_comes_first(tmp_path: Path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.touch()
    assert toolchain.find_nvcc(tmp_path) == nvcc


def test_prebuilt(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler(GOOD)
    missing = build.load("cpu", prebuilt=tmp_path / "none")
    assert not missing.usable and "there is no such file" in missing.reason
    copy = build.export(build.build("cpu", cache_dir=tmp_path / "cache"), tmp_path / "out")
    assert sorted(path.name for path in copy.parent.iterdir()) == ["landmark_cpu.json", "landmark_cpu.so"]
    assert build.status("cpu", prebuilt=copy.parent).reason == f"prebuilt: {copy}"
    facts = copy.with_suffix(".json")
    text = facts.read_text()
    for change, said in (
        ((f'"torch": "{torch.__version__}"', '"torch": "2.0"'), "built for torch 2.0"),
        (('"machine": "', '"machine": "not '), "built for machine not"),
        (('"sources": "', '"sources": "0'), "another version of landmark-batch"),
        (('"sources"', '"source"'), "cannot be read"),
    ):
        facts.write_text(text.replace(*change))
        found = build.status("cpu", prebuilt=copy.parent)
        assert not found.usable and said in found.reason


def test_clean(compiler: Callable[..., Path], tmp_path: Path) -> None:
    compiler(GOOD)
    assert cache.clean(tmp_path / "cache") == ([], 0)
    found = build.build("cpu", cache_dir=tmp_path / "cache")
    assert found.path is not None
    entry = cache.entries(tmp_path / "cache")
    assert [e.library for e in entry] == [found.path] and entry[0].device == "cpu" and entry[0].size > 0
    removed, size = cache.clean(tmp_path / "cache")
    assert removed == [found.path.parent] and size == entry[0].size
    assert cache.entries(tmp_path / "cache") == [] and not found.path.exists()


def test_an_unknown_device_is_a_bug_of_the_caller() -> None:
    with pytest.raises(ValueError, match="device = 'tpu'"):
        build.load("tpu")


@pytest.mark.gpu
@pytest.mark.timeout(900)
def test_the_cuda_kernels_build_and_load(request: pytest.FixtureRequest) -> None:
    """Where there is a GPU there is a compiler, and the library serves the ops of its device."""
    assert request.config.cache is not None
    found = build.load("cuda", cache_dir=Path(request.config.cache.mkdir("landmark-kernels")))
    assert found.loaded, found.reason
    assert torch._C._dispatch_has_kernel_for_dispatch_key("landmark_batch::trace", "CUDA")
