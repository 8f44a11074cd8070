"""bench kernels runs, tiny, in processes of its own; its arithmetic adds up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from landmark_batch.commands.bench import command
from landmark_batch.errors import ConfigError, KernelBuildError
from landmark_batch.kernels.toolchain import ToolchainError, find_toolchain
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.work import SampleCounts, Work, count_samples, frame_work, work_of_range
from landmark_batch.scene.demo import write_demo
from landmark_batch.workflows.bench_kernels import SMALL, UHD, bench_job, bench_kernels, highest, parse_size
from landmark_batch.workflows.bench_side import Ceilings, Side, SideSpec, flight_at, spread
from landmark_batch.workflows.kernel_report import HEAD, KernelReport
from tests.factories import make_config, make_scene, quick_demo
from tests.kernels.test_cpu_kernels import libraries
from tests.model.conftest import POSES, settings_for

__all__ = ["libraries"]
pytestmark = pytest.mark.timeout(600)  # two processes of torch, on a machine that may be busy
LENS, WIDTH, HEIGHT = (60.0, 60.0, 40.0, 30.0), 83, 61


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with quick_demo():
        return write_demo(tmp_path_factory.mktemp("demo"), frames=4, fine=32).job


def test_work_of_a_frame() -> None:
    config = make_config(resolutions=(1, 2), density_channels=4, appearance_channels=6, app_dim=9, feature_width=16, view_pe=2, fea_pe=2)
    counts = SampleCounts(rays=10, tested=640, survived=100, evaluated=60, coloured=20)
    work = frame_work(config, counts, element=2)
    assert work["density"].bytes == 60 * 2 * 4 * 6 * 2
    assert work["density"].flop == 60 * 2 * 4 * 14
    assert work["appearance"].flop == 20 * (2 * 6 * 13 + 2 * 9 * 12)
    assert work["decode"].flop == 20 * 2 * (60 * 16 + 16 * 16 + 16 * 3)
    assert frame_work(replace(config, view_pe=-1, embedding_channels=48), counts, element=2)["decode"].flop == 20 * 2 * 16 * (45 + 16 + 3)
    assert counts.a_ray() == {"tested": 64.0, "survived": 10.0, "evaluated": 6.0, "coloured": 2.0}
    both = work_of_range("appearance and decode", work)
    assert both == Work(work["appearance"].flop + work["decode"].flop, work["appearance"].bytes + work["decode"].bytes, "decode")
    assert work_of_range("march and density", work) == work["density"]
    assert work_of_range("march", work) is None
    assert work_of_range("copy", work) is None


@pytest.mark.parametrize("scene", [{"mask": 0.5}, {"activation": "relu", "nonlinear_density": True}])
def test_counted_samples(scene: dict[str, object]) -> None:
    weights = make_scene(**scene)
    renderer = Renderer(weights, settings_for(weights.config, samples=64))
    frame = renderer.render(POSES["oblique"], LENS, WIDTH, HEIGHT)
    every = count_samples(renderer, POSES["oblique"], LENS, WIDTH, HEIGHT, stop=0.0)
    assert every.rays == frame.counters["rays"] and every.tested == frame.counters["samples"]
    assert every.evaluated == every.survived == frame.counters["survived"] > 0
    assert abs(every.coloured - frame.counters["coloured"]) <= 1 + 1e-4 * every.coloured
    early = count_samples(renderer, POSES["oblique"], LENS, WIDTH, HEIGHT, stop=1e-2)
    assert early.coloured <= early.evaluated < every.evaluated
    assert replace(early, evaluated=0) == replace(every, evaluated=0)


def test_both_runtimes_side_by_side(demo: Path, libraries: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", str(libraries))
    lines: list[str] = []
    job = bench_job(demo, tmp_path, settings=["sampling.samples=48", "parallel.device=cpu"])
    report = bench_kernels(job, sizes=[(48, 27), (64, 36)], frames=2, tell=lines.append)
    assert (report.runtime, report.precision, report.samples, report.poses) == ("fused", "fp32", 48, 2)
    assert {row.name for row in report.rows} >= {"rays", "march", "density", "appearance", "decode", "accumulate", "quantise"}
    rows = {row.name: row for row in report.rows}
    assert all(row.seconds > 0 for row in report.rows)
    assert rows["decode"].flop_per_second and rows["density"].bytes_per_second and rows["march"].torch_seconds
    assert rows["march"].bytes_per_second is None
    assert report.ratio is not None and report.ratio > 0
    assert [(time.width, time.height, time.runtime) for time in report.times] == [(48, 27, "fused"), (64, 36, "fused"), (48, 27, "torch")]
    counts = report.counts
    assert 48 == counts["tested"] > counts["survived"] > counts["evaluated"] > counts["coloured"] > 0
    assert report.ceilings.copy > 1e8 and report.ceilings.fp32 > 1e8 and report.ceilings.fp16 is None
    table = report.table()
    assert {len(row) for row in table} == {len(HEAD)}
    assert [row[0] for row in table[-2:]] == ["the rest", "frame"]
    assert table[-1][-1] == f"{report.ratio:.1f}"
    assert "48×27, 48 samples a ray (hull), 2 poses" in report.title()
    assert any("ms at 64×36 with fused" in line for line in report.remarks())
    told = json.loads(report.save(tmp_path / "figures.json").read_text())
    assert [row["name"] for row in told["rows"]] == [row.name for row in report.rows]
    assert lines[-1] == "pose 2 of 2"
    with pytest.raises(ConfigError, match="cannot write"):
        report.save(tmp_path)


def test_the_command_measures_torch_alone_where_there_are_no_kernels(demo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LANDMARK_BATCH_KERNELS", str(tmp_path))  # a folder without libraries
    run = CliRunner()
    words = ["kernels", "--scene", str(demo), "--device", "cpu", "--width", "16", "--height", "9", "--frames", "1"]
    words += ["--set", "sampling.samples=16"]
    done = run.invoke(command, [*words, "--runtime", "auto", "-o", str(tmp_path / "figures.json")])
    assert done.exit_code == 0, done.output
    assert "city: torch, fp32, 16×9, 16 samples a ray (hull), 1 pose, medians" in done.output
    assert "ceilings of the same run: copy" in done.output
    report = json.loads((tmp_path / "figures.json").read_text())
    assert report["runtime"] == "torch" and report["ratio"] is None and report["poses"] == 1
    assert "no compiled kernels, torch alone is measured: prebuilt" in report["notes"][0]
    assert report["counts"]["evaluated"] == report["counts"]["survived"]
    assert [time["runtime"] for time in report["times"]] == ["torch"]
    assert [row["torch_seconds"] for row in report["rows"]] == [None] * len(report["rows"])
    refused = run.invoke(command, [*words, "--runtime", "fused"])
    assert isinstance(refused.exception, KernelBuildError) and "no such file" in str(refused.exception)


def test_other_words_of_the_command(tmp_path: Path) -> None:
    run = CliRunner()
    told = run.invoke(command, ["--help"])
    assert told.exit_code == 0 and "kernels" in told.output and "job" in told.output
    assert isinstance(run.invoke(command, [str(tmp_path / "none.toml")]).exception, ConfigError), "any other word is a job"
    assert isinstance(run.invoke(command, ["kernels", "--4k", "--width", "16"]).exception, ConfigError)


def test_a_checkpoint_is_seen_from_an_orbit(demo: Path, tmp_path: Path) -> None:
    job = bench_job(demo.with_name("city-merged-stack.th"), tmp_path, settings=["scene.plane_division=[2, 2]"])
    assert job.name == "city-merged-stack"
    box = ((-1.0, -1.0, 0.0), (1.0, 1.0, 0.5))
    flight = flight_at(job, box, 64, 36, 5)
    assert (len(flight), flight.width, flight.height) == (5, 64, 36)
    seen = bench_job(demo.with_name("city-merged-stack.th"), tmp_path, cameras=demo.with_name("transforms.json"))
    assert len(flight_at(seen, box, 64, 36, 5)) == 4
    fixed = seen.model_copy(update={"cameras": seen.cameras.model_copy(update={"width": 384, "focal": 300.0})})
    assert flight_at(fixed, box, 768, 432, 5).intrinsics[0, 0] == 600


def test_bad_input(demo: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such job file"):
        bench_job(tmp_path / "none.toml", tmp_path)
    for words in ((64, None, False), (None, 36, False), (64, 36, True)):
        with pytest.raises(ConfigError):
            parse_size(*words)
    assert parse_size(None, None, False) == ()
    assert parse_size(None, None, True) == (UHD,)
    assert parse_size(64, 36, False) == ((64, 36),)
    job = bench_job(demo, tmp_path, settings=["sampling.near=1000000", "parallel.device=cpu", "model.runtime=torch"])
    with pytest.raises(ConfigError, match="is not below"):
        bench_kernels(job, sizes=[SMALL], frames=1)


def test_a_process_that_dies_is_an_error(demo: Path, tmp_path: Path) -> None:
    job = bench_job(demo, tmp_path, settings=["sampling.samples=16", "model.runtime=torch"])
    with Side(SideSpec(job, "cpu", "torch", 1, ((16, 9),), 1)) as side:
        assert side.frame(0).counters["rays"] == 144
        side._process.kill()
        with pytest.raises(ConfigError, match="ended with exit code -9"):
            side.frame(0)


def test_small_helpers() -> None:
    assert list(spread(3, 5)) == [0, 1, 2]
    assert list(spread(10, 4)) == [0, 2, 5, 7]
    assert highest([Ceilings(1.0, 5.0), Ceilings(2.0, 4.0)]) == Ceilings(2.0, 5.0)
    assert highest([Ceilings(1.0, 5.0, 7.0), Ceilings(2.0, 4.0, 9.0)]) == Ceilings(2.0, 5.0, 9.0)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_on_a_gpu(demo: Path, tmp_path: Path, precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    try:
        find_toolchain("cuda")
    except ToolchainError as error:
        pytest.skip(str(error))
    job = bench_job(demo, tmp_path, settings=["sampling.samples=48", f"model.precision={precision}", "parallel.device=cuda"])
    report: KernelReport = bench_kernels(job, sizes=[(320, 180), (640, 360)], frames=2)
    assert report.runtime == "fused"
    names = {row.name for row in report.rows}
    assert {"march and density", "read back"} <= names
    assert all(row.seconds > 0 for row in report.rows)
    assert report.ceilings.fp16 is not None and report.ceilings.fp16 > report.ceilings.fp32
    assert report.ratio is not None
