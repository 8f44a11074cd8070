"""Every bench runs once, tiny: that it runs and adds up, not how fast it is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from landmark_batch.commands.bench import _launch
from landmark_batch.commands.job_source import parse_gpus
from landmark_batch.errors import ConfigError, GroupError
from landmark_batch.events import ChunkDone, ChunkStarted
from landmark_batch.frames.export_images import ImageExporter
from landmark_batch.frames.image_settings import ImageSettings
from landmark_batch.frames.store import FrameStore
from landmark_batch.frames.store_source import open_source
from landmark_batch.job import ImagesSection, RenderJob, load_job
from landmark_batch.workflows.bench import run_bench
from landmark_batch.workflows.bench_commands import TimedCommand, start_up, time_command
from landmark_batch.workflows.bench_job import _last_image, disk_rate
from landmark_batch.workflows.bench_report import BenchBar, BenchReport, Findings
from landmark_batch.workflows.bench_scale import LEFT_OUT, bench_scheduling
from landmark_batch.workflows.bench_start import StandingCluster
from landmark_batch.workflows.bench_usage import UsageWatch
from landmark_batch.workflows.export_session import ExportResult
from landmark_batch.workflows.machine import Placement, describe_machine, resident_memory
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.simulated import scheduling_cost
from tests.frames.export_sources import pictures, write_store
from tests.workflows.conftest import _own_cache, inline, make_job, scene_dir
from tests.workflows.processes import until

__all__ = ["_own_cache", "inline", "make_job", "scene_dir"]  # fixtures

MakeJob = Callable[..., RenderJob]


@pytest.fixture
def lines() -> Iterator[list[str]]:
    yield []


def run_python(program: str) -> Callable[[Sequence[str], Path], int]:
    """A launcher of a Python program in place of this one's commands; it gets their words and writes to the file."""

    said: list[Sequence[str]] = []

    def launch(words: Sequence[str], output: Path) -> int:
        said.append(words)
        opened = (os.POSIX_SPAWN_OPEN, 1, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        return os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", program, *words], os.environ, file_actions=[opened])

    return launch


@pytest.mark.usefixtures("inline")
def test_rendering_writing_and_exports_in_one_table(make_job: MakeJob, tmp_path: Path, lines: list[str]) -> None:
    folder = tmp_path / "bench"
    images = ImagesSection(dir=tmp_path / "mine", format="jpeg", pattern="{output}/{frame:05d}.{ext}")  # the bench makes plain PNGs
    job = make_job().model_copy(update={"images": images})
    report = run_bench(folder, job, frames=4, parts=("render", "write", "export"), tell=lines.append)
    figures = {row.what.strip(): row.value for row in report.rows}
    told = ("bare renderer", "job", "job with PNG export beside it", "job, overlap off", "overlap on / off", "the job wrote")
    for what in (*told, "store writing", "store reading", "images, png", "film, libx264"):
        assert figures[what] > 0
    assert figures["frames that overlap changes"] == 0
    assert len(list((tmp_path / "bench").glob("bench-images*/**/*.png"))) == 4
    assert not (tmp_path / "mine").exists() and report.job["frames"] == 4
    assert not [bar for bar in report.bars if "rendering" in bar.what]  # promised on GPUs
    assert lines[0] == "bare rendering, 2 frames" and "the job, overlap off, 4 frames" in lines
    assert "bare renderer" in report.describe()
    saved: dict[str, Any] = json.loads(report.save(tmp_path / "bench.json").read_text())
    assert len(saved["rows"]) == len(report.rows)
    assert saved["machine"]["cores"] >= 1
    again = run_bench(folder, make_job(), frames=2, parts=("write",))  # a second bench in the same folder
    assert again.job["frames"] == 2
    with pytest.raises(ConfigError, match="cannot write"):
        report.save(tmp_path)


def test_an_unknown_part_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="bench speed: no such part"):
        run_bench(tmp_path / "none", parts=("speed",))
    assert not (tmp_path / "none").exists()


def test_scheduling_cost_adds_up(tmp_path: Path) -> None:
    result = RenderResult(
        state="complete",
        wanted=80,
        rendered=80,
        skipped=0,
        missing=(),
        failures={},
        seconds=9.0,
        startup_seconds=4.0,
        render_seconds=4.3,
        workers=2,
        device="cpu",
        store=tmp_path,
        log=None,
        dashboard=None,
        stages={"render": 8.1, "idle": 0.09, "check": 0.01, "wait": 0.01, "quantise": 0.3, "write": 0.2},
    )
    cost = scheduling_cost(result, 10, 0.1)
    assert cost.rendering == 8.0
    assert cost.late == pytest.approx(0.1)
    assert cost.between == pytest.approx(0.1)
    assert cost.tail == pytest.approx(0.4)
    assert cost.share == pytest.approx(0.6 / 8.0)
    assert cost.scheduling_share == pytest.approx(0.1 / 8.0)
    assert cost.per_chunk() == pytest.approx(0.1 / 8)
    assert cost.share_of(10_000) == pytest.approx((0.2 * 125 + 0.4) / 1000)


def test_bars_say_whether_they_hold() -> None:
    bars = (BenchBar("slow", 1.2, 1.15), BenchBar("status", 2.5, 3.0, "s"))
    text = BenchReport((), bars, {}, {}).describe().splitlines()
    assert text[0].split() == ["bar", "slow", "1.2", "≤", "1.15", "NOT", "held"]
    assert text[1].split() == ["bar", "status", "2.5", "≤", "3", "s", "held"]


@pytest.mark.usefixtures("inline")
def test_scheduling_of_simulated_frames(tmp_path: Path) -> None:
    found = Findings()
    bench_scheduling(tmp_path, 64, 0.0002, 8, found, machine=describe_machine())
    figures = {row.what.strip(): row.value for row in found.rows}
    assert figures["CPU of client, scheduler and driver"] > 0
    memory = next(row for row in found.rows if row.what == "memory of client, scheduler and driver")
    assert [part.split(":")[0] for part in memory.note.removeprefix("when so many frames stood: ").split(", ")] == [
        "0",
        "16",
        "32",
        "48",
        "64",
    ]
    assert [bar.limit for bar in found.bars] == [0.01, 0.01, 1.1]


@pytest.mark.usefixtures("inline")
def test_going_on_with_a_long_flight(tmp_path: Path, make_job: MakeJob) -> None:
    """The store is the one that the scene's own `render` would make; its last frames are given up for the last measurement."""
    tiny = make_job()
    job = tmp_path / "tiny.toml"
    job.write_text(
        f'version = 1\nname = "tiny"\n[scene]\ncheckpoint = "{tiny.scene.checkpoint}"\n[cameras]\nfile = "{tiny.cameras.file}"\n',
        encoding="utf-8",
    )
    found, frames = Findings(), LEFT_OUT + 24
    bench_scheduling(tmp_path, frames, 1e-6, 128, found, machine=describe_machine(), demo=job, launch=run_python("pass"))
    store = FrameStore.open(tmp_path / "simulated.zarr")
    assert store.spec.frames == frames and sorted(store.standing()) == list(range(24))
    assert {bar.what: bar.limit for bar in found.bars if bar.unit == "s"} == {
        f"resume of {frames:,} frames that stand": 10.0,
        f"status of {frames:,} frames": 3.0,
    }


def test_a_run_with_images_lasts_until_the_last_has_its_name(tmp_path: Path) -> None:
    store = write_store(tmp_path / "city.zarr", {"rgb": pictures(3)})
    settings = ImageSettings(pattern="{output}/{frame:03d}.{ext}")
    with ImageExporter(open_source(store.path), tmp_path / "png", settings) as exporter:
        report = exporter.export()
    first, middle, last = (exporter.path(frame) for frame in range(3))
    before = last.stat().st_ctime
    until(lambda: time.time() > before + 0.05)
    middle.rename(middle.with_suffix(".partial"))
    middle.with_suffix(".partial").rename(middle)
    found = _last_image(ExportResult((report,), None))
    assert found == middle.stat().st_ctime > before >= first.stat().st_ctime


def test_usage_is_kept_at_every_quarter() -> None:
    with UsageWatch(8, every=0.01) as watch:
        assert watch.client_cpu == 0.0
        for first in (0, 2, 4, 6):
            watch(ChunkStarted(f"{first}", "w0"))
            watch(ChunkDone(f"{first}", (first, first + 1), "w0", 0, 0.1, {}, {}))
    assert [usage.done for usage in watch.at] == [0, 2, 4, 6, 8]
    assert all(usage.memory[0] > 2**20 for usage in watch.at)
    assert watch.chunks == 4 and watch.client_cpu >= 0


READER = """
import mmap, sys
with open(sys.argv[1], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
    assert sum(held[:: mmap.PAGESIZE]) > 0  # every page is in this process now
    print("there", flush=True)
    sys.stdin.read()
"""


def test_memory_that_processes_share_counts_once(tmp_path: Path) -> None:
    size, file = 64 * 2**20, tmp_path / "shared"
    file.write_bytes(b"x" * size)
    command = [sys.executable, "-c", READER, str(file)]
    if not hasattr(psutil.Process().memory_full_info(), "pss"):
        pytest.skip("this system does not say what processes share")
    with ExitStack() as stack:
        others = [stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)) for _ in range(3)]
        for other in others:
            assert other.stdout is not None and other.stdout.readline() == b"there\n"
        held = [psutil.Process(other.pid) for other in others]
        assert sum(process.memory_info().rss for process in held) > 3 * size
        assert size < sum(map(resident_memory, held)) < 2 * size
        for other in others:
            other.communicate()


def test_a_command_is_timed_with_its_log(tmp_path: Path) -> None:
    log = tmp_path / "job.log"
    log.write_text("2026-01-01 00:00:00,000 INFO    an older run: ChunkDone\n", encoding="utf-8")
    program = (
        "import datetime, sys\n"
        "stamp = datetime.datetime.now().strftime('%Y-%m-%d %H:%M:%S,%f')[:-3]\n"
        "open(sys.argv[1], 'a').write(f'{stamp} INFO    job: ChunkDone\\n  a line without a time\\n')\n"
        "print('done', sys.argv[2])\n"
    )
    run = time_command(run_python(program), [str(log), "it"], tmp_path / "out.txt", log=log)
    assert run.said == "done it\n" and run.seconds > 0 and run.cpu > 0
    assert len(run.lines) == 1
    first = run.first("ChunkDone")
    assert first is not None and -0.01 <= first <= run.seconds + 0.01
    assert run.first("JobDone") is None
    with pytest.raises(GroupError, match="landmark-batch status x: exit code 3: why"):
        time_command(run_python("print('why'); raise SystemExit(3)"), ["status", "x"], tmp_path / "out.txt")


def test_a_command_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("landmark_batch.workflows.bench_commands.LIMIT_SECONDS", 0.05)
    with pytest.raises(GroupError, match="not over after"):
        time_command(run_python("import time; time.sleep(600)"), ["render"], tmp_path / "out.txt")


def test_stages_of_a_start_add_up() -> None:
    said = "INFO landmark_batch.workflows.render: start-up: command 1.50 s, plan 0.25 s, kernels 0.00 s, store 0.10 s, workers 1.15 s"
    log = (
        (3.0, said),
        (3.2, "JobStarted {}"),
        (4.2, "[w0] opened"),
        (4.4, "ChunkStarted {}"),
        (4.5, "ChunkStarted {}"),
        (4.9, "ChunkDone {}"),
    )
    start = start_up(TimedCommand(6.0, 9.0, "", log))
    assert list(start.seconds) == ["command", "plan", "kernels", "store", "workers", "driver", "scene and kernels", "first chunk"]
    assert start.total == pytest.approx(4.9)
    assert start.seconds["scene and kernels"] == pytest.approx(1.2)
    assert start_up(TimedCommand(1.0, 1.0, "")).total == 0.0


CLUSTER = """
import datetime, json, pathlib, signal, sys
words = sys.argv[1:]
def after(word):
    return words[words.index(word) + 1]
if words[0] == "scheduler":
    pathlib.Path(after("--scheduler-file")).write_text(json.dumps({"address": "tcp://here:1"}))
    signal.pause()
elif words[0] == "worker":
    for number in range(int(after("--workers"))):
        print(f"w{number} is at {words[1]} as tcp://here:2", flush=True)
    signal.pause()
stands = "--scheduler" in words
assert not stands or (after("--scheduler"), after("--runtime")) == ("tcp://here:1", "torch")
said = f"start-up: command {0.5 if stands else 1.5:.2f} s, workers 0.10 s", "JobStarted", "ChunkStarted", "ChunkDone"
with open(after("-o").replace(".zarr", ".log"), "a") as log:
    for line in said:
        moment = datetime.datetime.now() + datetime.timedelta(seconds=0.75 if stands else 1.75)
        log.write(f"{moment:%Y-%m-%d %H:%M:%S},{moment.microsecond // 1000:03d} INFO x: {line}\\n")
"""


def test_the_start_is_measured_with_own_workers_and_with_standing_ones(scene_dir: Path, tmp_path: Path) -> None:
    job, folder = tmp_path / "job.toml", tmp_path / "bench"
    job.write_text(
        f'[scene]\ncheckpoint = "{scene_dir / "scene.th"}"\n[cameras]\nfile = "{scene_dir / "path.json"}"\n'
        '[model]\nruntime = "torch"\n[parallel]\ndevice = "cpu"\nworkers = 2\n'
    )
    started: list[int] = []

    def launch(words: Sequence[str], output: Path) -> int:
        started.append(run_python(CLUSTER)(words, output))
        return started[-1]

    report = run_bench(folder, load_job(job), parts=("start",), launch=launch)
    totals = [row.value for row in report.rows if not row.what.startswith((" ", "modules"))]
    assert len(totals) == 3 and totals[0] > 1.7 and 0.7 < totals[1] < totals[0]
    link = report.rows[-1]
    assert (link.what, link.unit) == ("link that the scene comes over", "GB/s") and link.value > 0
    assert link.note.startswith(f"reading: {(scene_dir / 'scene.th').stat().st_size / 1e9:.2f} GB take ")
    stages = [row.what.strip() for row in report.rows if row.what.startswith(" ")]
    assert stages == ["command", "workers", "driver", "scene and kernels", "first chunk"] * 2
    assert not report.bars, "the bar is a GPU's"
    assert len(started) == 6 and not [pid for pid in started if Path(f"/proc/{pid}").exists()]


@pytest.mark.parametrize("gpus", [(), (0,), (1, 3)])
def test_a_cluster_that_does_not_come_up_is_told_and_ended(tmp_path: Path, gpus: tuple[int, ...]) -> None:
    """Its worker was asked for the devices of the job: --gpus 1 would be one, whichever."""
    place = Placement("cuda" if gpus else "cpu", 1, gpus, "some device")
    program = CLUSTER.replace('"worker":', '"worker":\n    raise SystemExit("no GPU to be had")\nelif words[0] == "none":')
    started: list[int] = []

    said: list[Sequence[str]] = []

    def launch(words: Sequence[str], output: Path) -> int:
        said.append(words)
        opened = (os.POSIX_SPAWN_OPEN, 2, str(output), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        started.append(os.posix_spawn(sys.executable, [sys.executable, "-S", "-c", program, *words], os.environ, file_actions=[opened]))
        return started[-1]

    with pytest.raises(GroupError, match="worker did not come up: no GPU to be had"), StandingCluster(launch, tmp_path, place):
        pytest.fail("it came up")
    asked = said[1][said[1].index("--device") + 1 :]
    assert asked == (["cuda", "--gpus", asked[2]] if gpus else ["cpu", "--workers", "1"])
    assert not gpus or tuple(parse_gpus(asked[2])) == gpus
    assert len(started) == 2 and not [pid for pid in started if Path(f"/proc/{pid}").exists()]


def test_commands_run_in_a_process_of_their_own(tmp_path: Path) -> None:
    assert time_command(_launch, ["--version"], tmp_path / "out.txt").said.startswith("landmark-batch")
    with pytest.raises(GroupError, match="exit code 2: landmark-batch bench job --help says more"):
        time_command(_launch, ["bench", "job", "--part", "speed"], tmp_path / "out.txt")


def test_the_disk_is_measured_and_left_clean(tmp_path: Path) -> None:
    assert disk_rate(tmp_path, size=2**16, files=4) > 0
    assert not list(tmp_path.iterdir())
