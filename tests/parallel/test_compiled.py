"""Groups over the compiled CPU kernels, in processes of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np

from landmark_batch.parallel.shape import GroupShape
from tests.parallel.conftest import group_of
from tests.parallel.ranks import Ranks
from tests.parallel.tasks import load_kernels, render, render_alone
from tests.parallel.test_parity import CASES, all_of, assert_close

NAMES = ("blocks", "three dims", "three dims, dense", "usual sizes", "fewer channels than ranks", "fp16", "empty mask", "odd sizes")


def test_the_compiled_runtime_in_groups(own_ranks: Ranks, libraries: Path) -> None:
    """Data ranks change no bit, also where `weigh` stops early; tensor ranks, which do not stop, stay close."""
    cases = [replace(CASES[name], runtime="fused") for name in NAMES]
    for answer in own_ranks.all(range(4), load_kernels, str(libraries)):
        answer.get()
    wanted = own_ranks.call(0, render_alone, cases)
    by_tensor = []
    for shape in (GroupShape(1, 2), GroupShape(2, 1), GroupShape(2, 2)):
        with group_of(own_ranks, shape) as ranks:
            results = all_of(ranks.all(range(shape.size), render, cases))
        for name, frames, alone in zip(NAMES, results, wanted, strict=True):
            for (got, counters), (want, counted) in zip(frames, alone, strict=True):
                if shape.tensor == 1:
                    assert all(np.array_equal(got[key], want[key]) for key in want), name
                    assert {**counted, "tensor_bytes": 0} == counters
                else:
                    assert_close(name, got, want)
        if shape.tensor == 2:
            by_tensor.append(results)
    for one, other in zip(*by_tensor, strict=True):
        for (got, counters), (want, counted) in zip(one, other, strict=True):
            assert all(np.array_equal(got[key], want[key]) for key in want) and counters == counted
