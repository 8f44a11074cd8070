"""Runtime 'auto' on a CPU: planned without building, built once before the job, torch where the build fails."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from landmark_batch.errors import KernelBuildError
from landmark_batch.events import Event, JobStarted, Preparing
from landmark_batch.job import RenderJob
from landmark_batch.model import runtime
from landmark_batch.workflows.builds import read_builds
from landmark_batch.workflows.plan import make_plan
from landmark_batch.workflows.render import run_render

Make = Callable[..., RenderJob]

COMPILER = """\
#!/bin/sh
[ "$1" = --version ] && echo fake 1.0 && exit 0
echo 'march.h:1:1: error: no such thing' >&2
exit 1
"""


@pytest.fixture
def compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only C++ compiler here knows its version and fails at everything else; the cache is empty."""
    program = tmp_path / "bin" / "c++"
    program.parent.mkdir()
    program.write_text(COMPILER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("LANDMARK_BATCH_KERNELS", raising=False)
    monkeypatch.setattr(runtime, "_warned", set())
    return program


def test_a_plan_says_what_a_render_would_do_and_builds_nothing(make_job: Make, compiler: Path, tmp_path: Path) -> None:
    plan = make_plan(make_job("model.runtime=auto"))
    assert plan.request.runtime == "fused"
    assert "fused (not built yet: the first use compiles it with fake 1.0)" in plan.describe()
    assert not (tmp_path / "cache" / "landmark-batch" / "kernels").exists()


def test_a_plan_without_a_compiler_is_of_torch(make_job: Make, compiler: Path, caplog: pytest.LogCaptureFixture) -> None:
    compiler.unlink()
    with caplog.at_level(logging.WARNING):
        plan = make_plan(make_job("model.runtime=auto"))
    assert plan.request.runtime == "torch"
    assert "torch (no compiled kernels: no C++ compiler" in plan.describe()
    assert len([record for record in caplog.records if "no C++ compiler" in record.getMessage()]) == 1


@pytest.mark.usefixtures("inline")
def test_a_failed_build_is_one_warning_and_torch(make_job: Make, compiler: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Event] = []
    job = make_job("model.runtime=auto", "cameras.frames=0-3")
    with caplog.at_level(logging.WARNING):
        result = run_render(job, sinks=[seen.append])
    assert result.rendered == 4
    assert [event.runtime for event in seen if isinstance(event, JobStarted)] == ["torch"]
    assert any("compiling the cpu kernels" in event.what for event in seen if isinstance(event, Preparing))
    assert [found.runtime for found in read_builds(job.store_path)] == ["torch"]
    assert len([record for record in caplog.records if "no such thing" in record.getMessage()]) == 1


@pytest.mark.usefixtures("inline")
def test_kernels_that_are_demanded_stop_before_the_first_frame(make_job: Make, compiler: Path) -> None:
    job = make_job("model.runtime=fused")
    with pytest.raises(KernelBuildError, match="no such thing") as error:
        run_render(job)
    assert str(error.value.remedy).endswith("or set --runtime torch")
    assert not job.store_path.exists()


@pytest.mark.timeout(600)
@pytest.mark.usefixtures("libraries")
def test_workers_render_with_the_compiled_kernels_by_default(make_job: Make) -> None:
    """Real worker processes, which load what this one only looked at."""
    job = make_job("model.runtime=auto", "cameras.frames=0-7")
    assert "fused (built: " in make_plan(job).describe()
    result = run_render(job, dashboard=False)
    assert result.rendered == 8
    assert [found.runtime for found in read_builds(job.store_path)] == ["fused"]
