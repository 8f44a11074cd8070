"""Launch shapes: measured once, kept for later processes, and harmless where the cache is not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from landmark_batch.kernels.tuning import LAUNCHES, ROUNDS, Launches, Shape

SHAPE = Shape("shade", "NVIDIA H100 80GB HBM3", 48, 3, "float16")


class Op:
    """An op whose launches take the given times; the calls that were made of it."""

    def __init__(self, seconds: dict[int, float], broken: tuple[int, ...] = ()) -> None:
        self.seconds, self.broken = seconds, broken
        self.calls: list[int] = []

    def run(self, launch: int) -> None:
        if launch in self.broken:
            raise RuntimeError("too many resources requested for launch")
        self.calls.append(launch)

    def timer(self, run: Callable[[], object]) -> float:
        run()
        return self.seconds[self.calls[-1]]


def test_the_fastest_is_chosen_and_kept(tmp_path: Path) -> None:
    op = Op({0: 3.0, 1: 2.0, 2: 2.5})
    assert Launches(tmp_path, op.timer).choose(SHAPE, op.run) == 1
    assert len(op.calls) == (1 + ROUNDS) * len(LAUNCHES["shade"])
    later = Op({0: 1.0, 1: 9.0, 2: 9.0})
    launches = Launches(tmp_path, later.timer)
    assert launches.known(SHAPE) == 1
    assert launches.choose(SHAPE, later.run) == 1
    assert not later.calls  # of another process' measurement
    (file,) = tmp_path.rglob("*.json")
    record = json.loads(file.read_text())
    assert (record["gpu"], record["launch"], record["seconds"]["1"]) == (SHAPE.gpu, 1, 2.0)
    assert [path.name for path in file.parent.iterdir()] == [file.name]  # no partial files


def test_each_shape_has_a_choice_of_its_own(tmp_path: Path) -> None:
    op = Op({0: 3.0, 1: 2.0, 2: 1.0})
    launches = Launches(tmp_path, op.timer)
    launches.choose(SHAPE, op.run)
    for other in (
        Shape("shade", "NVIDIA A100", 48, 3, "float16"),
        Shape("shade", SHAPE.gpu, 48, 2, "float16"),
        Shape("trace", SHAPE.gpu, 48, 3, "float16"),
    ):
        assert launches.known(other) is None


def test_a_gain_within_noise_keeps_the_default(tmp_path: Path) -> None:
    op = Op({0: 1.0, 1: 0.99, 2: 1.2})
    assert Launches(tmp_path, op.timer).choose(SHAPE, op.run) == 0


def test_launches_that_fail_are_left_out(tmp_path: Path) -> None:
    op = Op({0: 3.0, 1: 2.0, 2: 1.0}, broken=(2,))
    assert Launches(tmp_path, op.timer).choose(SHAPE, op.run) == 1
    op = Op({}, broken=(0,))
    with pytest.raises(RuntimeError, match="too many resources"):
        Launches(tmp_path / "other", op.timer).choose(SHAPE, op.run)


@pytest.mark.parametrize("content", ["{", '{"launch": 99}', '{"launch": "1"}', "[]", "{}"])
def test_files_that_make_no_sense_are_measured_again(tmp_path: Path, content: str) -> None:
    op = Op({0: 3.0, 1: 2.0, 2: 2.5})
    Launches(tmp_path, op.timer).choose(SHAPE, op.run)
    (file,) = tmp_path.rglob("*.json")
    file.write_text(content)
    again = Op({0: 3.0, 1: 4.0, 2: 2.5})
    launches = Launches(tmp_path, again.timer)
    assert launches.known(SHAPE) is None
    assert launches.choose(SHAPE, again.run) == 2
    assert Launches(tmp_path, again.timer).known(SHAPE) == 2


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    op = Op({0: 3.0, 1: 2.0, 2: 2.5})
    launches = Launches(tmp_path / "file", op.timer)
    assert launches.choose(SHAPE, op.run) == 1
    assert launches.choose(SHAPE, op.run) == 1
    assert len(op.calls) == (1 + ROUNDS) * 3


def test_shape_of_planes() -> None:
    planes = [torch.zeros(1, 4, 4, 16, dtype=torch.float16)] * 3
    assert Shape.of("trace", planes) == Shape("trace", "cpu", 16, 3, "float16")
