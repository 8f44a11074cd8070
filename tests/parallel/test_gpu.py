"""Groups of GPUs over NCCL against one GPU. Needs two CUDA devices."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from landmark_batch.frames.pixels import quantise
from landmark_batch.parallel.shape import GroupShape
from tests.parallel import ahead_tasks, tasks
from tests.parallel.conftest import group_of
from tests.parallel.ranks import Ranks
from tests.parallel.tasks import Case, render, render_alone
from tests.parallel.test_flight import OPAQUE, WITH_ALPHA
from tests.parallel.test_parity import all_of

pytestmark = pytest.mark.gpu

USUAL: dict[str, Any] = {"resolutions": (1, 2, 4), "app_dim": 27, "density_channels": 16, "appearance_channels": 48, "feature_width": 128}
FRAMES = (("oblique", 333, 214), ("inside", 83, 61), ("above", 1, 1))
LARGE = (*(("oblique", 1280, 720), ("above", 1280, 720), ("inside", 1280, 720)) * 3, ("above", 1, 1), ("inside", 83, 61))
SCENES = (
    Case({**USUAL, "division": (2, 2), "mask": 0.5, "mask_size": (40, 36, 20)}, {"samples": 96, "alpha_mask_threshold": 0.4}, FRAMES),
    Case({"ndims": 3, "activation": "relu", "nonlinear_density": True}, {"mode": "dense", "samples": 64}, FRAMES),
    Case({"embedding_rows": 5, "mask": 0.3, "bias": False, "density_channels": 5, "appearance_channels": 7}, {"samples": 64}, FRAMES),
)


@pytest.fixture(autouse=True)
def needs_gpus() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("fewer than two CUDA devices")


@pytest.mark.parametrize("runtime", ["torch", "fused"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_two_gpus_against_one(own_ranks: Ranks, runtime: str, precision: str) -> None:
    """DP 2: the same bits. TP 2: 99.9 % of pixels within 1e-5, none past 2e-3, in fp32; 50 dB in fp16, whose fused kernels multiply
    the basis in half precision, a rank at a time.
    """
    cases = [replace(case, runtime=runtime, device="cuda", settings={**case.settings, "model__precision": precision}) for case in SCENES]
    wanted = own_ranks.call(0, render_alone, cases)
    for shape in (GroupShape(1, 2), GroupShape(2, 1)):
        with group_of(own_ranks, shape, device="cuda") as ranks:
            results = all_of(ranks.all(range(2), render, cases))
            again = all_of(ranks.all(range(2), render, cases))
        for frames, repeated, alone in zip(results, again, wanted, strict=True):
            for (got, counters), (same, _), (want, counted) in zip(frames, repeated, alone, strict=True):
                assert all(np.array_equal(got[key], same[key]) for key in got)
                if shape.tensor == 1:
                    assert all(np.array_equal(got[key], want[key]) for key in want)
                    assert counters == {**counted, "tensor_bytes": 0}
                    continue
                difference = np.abs(got["rgb"].astype(np.float64) - want["rgb"]).reshape(-1, 3).max(axis=1)
                if precision == "fp32":
                    limit = 1e-5 if runtime == "torch" else 1e-4  # the fused runtime's own bound against the plain one
                    assert (difference > limit).sum() <= 1 + difference.size // 1000 and difference.max() <= 2e-3
                else:
                    assert -10 * np.log10(max(float((difference**2).mean()), 1e-20)) >= 50


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ways_of_exchange_change_no_bit(own_ranks: Ranks, precision: str) -> None:
    """Lengths padded or counted, one batch or several, the first frame of a size or one after it."""
    ways = ((True, 1), (False, 1), (True, 4), (False, 3))
    for scene in SCENES:
        case = replace(scene, runtime="fused", device="cuda", settings={**scene.settings, "model__precision": precision})
        with group_of(own_ranks, GroupShape(2, 1), device="cuda") as ranks:
            for answer in ranks.all(range(2), tasks.render_batches, case, ways):
                frames = answer.get()
                count = len(case.frames)
                assert len(frames) == 2 * count * len(ways)
                for index, frame in enumerate(frames):
                    assert all(np.array_equal(got, want) for got, want in zip(frame, frames[index % count], strict=True)), index


@pytest.mark.parametrize("shape", [GroupShape(1, 2), GroupShape(2, 1)])
@pytest.mark.parametrize("runtime", ["torch", "fused"])
def test_frames_in_flight_on_gpus(own_ranks: Ranks, shape: GroupShape, runtime: str) -> None:
    """Rounded where they were rendered and gathered beside the next frame: the bytes of the whole frame's floats, rounded."""
    case = replace(SCENES[0], runtime=runtime, device="cuda", frames=(*FRAMES, *FRAMES))
    with group_of(own_ranks, shape, device="cuda") as ranks:
        whole = all_of(ranks.all(range(2), render, [case]))[0]
        answers = ranks.all(range(2), tasks.render_in_flight, case, OPAQUE)
    *frames, exact = all_of(answers)
    assert all(np.array_equal(exact[name], whole[0][0][name]) for name in exact)
    for index, ((got, counters), (floats, counted)) in enumerate(zip(frames, whole, strict=True)):
        assert {**counters, "tensor_bytes": 0} == {**counted, "tensor_bytes": 0}  # lists that grew were exchanged again
        for name, want in quantise(floats, OPAQUE, frame=index).items():
            assert np.array_equal(got[name], want), (name, index)


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_frames_begun_ahead_on_gpus(own_ranks: Ranks, precision: str, small: bool) -> None:
    """Two scenes in turn, each begun before the last is finished, written by the device itself into pinned arrays beside the next frames:
    the bytes of one GPU. small: buffers that have to grow while two frames are in flight.
    """
    settings = {**SCENES[0].settings, "model__precision": precision}
    large = replace(SCENES[0], runtime="fused", device="cuda", frames=LARGE, settings=settings)
    cases = [large, replace(SCENES[2], runtime="fused", device="cuda", frames=LARGE[:5])]
    wanted = own_ranks.call(0, render_alone, cases)
    for outputs in (OPAQUE, WITH_ALPHA):
        with group_of(own_ranks, GroupShape(1, 2), device="cuda") as ranks:
            answers = [answer.get() for answer in ranks.all(range(2), ahead_tasks.begin_ahead, cases, outputs, 1, small)]
        for number, whole in enumerate(wanted):
            for frames, *_ in answers[0][2 * number : 2 * number + 2]:  # one by one, and ahead
                assert len(frames) == len(whole)
                for index, ((got, counters), (floats, counted)) in enumerate(zip(frames, whole, strict=True)):
                    assert {**counters, "tensor_bytes": 0} == {**counted, "tensor_bytes": 0}
                    for name, want in quantise(floats, outputs, frame=index).items():
                        assert np.array_equal(got[name], want), (name, index)
            assert all(answer[2 * number + 1][2] == small for answer in answers)


def test_a_lost_gpu_rank_is_noticed_by_the_watch(own_ranks: Ranks) -> None:
    """NCCL itself would wait until its timeout."""
    with group_of(own_ranks, GroupShape(2, 1), whole=False, device="cuda") as ranks:
        ranks.send(0, tasks.watch_and_wait, 0)
        ranks.send(1, tasks.end, 1)
        assert "rank 1 has gone" in ranks.receive(0).get()
