"""Run with the compiled kernels loaded: a frame of the demo city with them and with the torch reference, side by side, as JSON.

python -m tests.benchmarks.cpu_kernels DEMO_DIRECTORY LIBRARY_DIRECTORY [REPEATS [WIDTH HEIGHT]]
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from landmark_batch import kernels
from landmark_batch.cameras.formats import load_flight
from landmark_batch.job import job_from_dict
from landmark_batch.kernels import build, checked, reference, weighing
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.settings import resolve_settings
from landmark_batch.scene.checkpoint import load_scene


def gemm_rate(size: int = 1024) -> float:
    """GFLOP/s of torch's own matrix product on one thread: the ceiling that the decoder is held against."""
    a, b = torch.randn(size, size), torch.randn(size, size)

    def multiply() -> None:
        torch.mm(a, b)

    return 2 * size**3 / best(multiply, 5) * 1e-9


def best(function: Callable[[], None], repeats: int) -> float:
    """Seconds of this thread's CPU time, the least of some runs: waiting for others does not count."""
    seconds = []
    for _ in range(repeats):
        start = time.thread_time()
        function()
        seconds.append(time.thread_time() - start)
    return min(seconds)


def measure(demo: Path, repeats: int, width: int, height: int) -> dict[str, Any]:
    weights = load_scene(demo / "city-merged-stack.th", plane_division=(2, 2))
    flight = load_flight(demo / "transforms.json", width=width, height=height)
    settings = resolve_settings(job_from_dict({"sampling": {"samples": 192, "alpha_mask_threshold": 0.5}}), weights.config)
    compiled = checked._ops
    plain = SimpleNamespace(weigh=weighing.reference_weigh, **{op: getattr(reference, op) for op in kernels.SCHEMAS})
    frame = len(flight) // 2
    pictures, seconds, stages, counters = {}, {}, {}, {}
    for name, ops in (("torch", plain), ("fused", compiled)):
        checked._ops = weighing._ops = ops  # type: ignore[assignment]
        renderer = Renderer(weights, settings, threads=1)
        outputs = []
        seconds[name] = best(
            lambda to=outputs, by=renderer: to.append(by.render(flight.c2w[frame], flight.intrinsics[frame], width, height)), repeats
        )
        pictures[name] = outputs[0].rgb.numpy()
        stages[name] = {stage: min(output.stages[stage] for output in outputs) for stage in outputs[0].stages}
        counters = outputs[0].counters
    checked._ops = weighing._ops = compiled
    config = weights.config
    columns = config.app_dim * (1 + 2 * config.fea_pe) + 3 + 6 * config.view_pe
    flops = 2 * (columns * config.feature_width + config.feature_width**2 + 3 * config.feature_width) * counters["coloured"]
    error = np.abs(pictures["torch"] - pictures["fused"])
    return {
        "seconds": seconds,
        "ratio": seconds["torch"] / seconds["fused"],
        "stages": stages,
        "counters": counters,
        "decoder_gflops": flops / stages["fused"]["decode"] * 1e-9,
        "gemm_gflops": gemm_rate(),
        "worst": float(error.max()),
        "psnr": float(-10 * np.log10(max(float((error.astype(np.float64) ** 2).mean()), 1e-20))),
    }


def main(words: list[str]) -> None:
    torch.set_num_threads(1)
    build.require("cpu", prebuilt=Path(words[1]))
    repeats, width, height = (int(word) for word in (words[2:] + ["3", "384", "216"][len(words[2:]) :]))
    sys.stdout.write(json.dumps(measure(Path(words[0]), repeats, width, height)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
