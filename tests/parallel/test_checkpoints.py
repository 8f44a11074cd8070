"""LandMark's own checkpoints, each rank reading its channels of the file, against one rank with all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from landmark_batch.parallel.shape import GroupShape
from tests.model.test_reference_frames import read_frames
from tests.parallel.conftest import Grouped
from tests.parallel.ranks import Ranks
from tests.parallel.tasks import render_checkpoint
from tests.parallel.test_parity import all_of

SIZE = (80, 60)


@pytest.mark.parametrize("name", ["bp0m_hull256_200x150", "bp0_dense_200x150", "seq1_hull256_200x150_code7"])
def test_a_checkpoint_in_groups(ranks: Ranks, group: Grouped, reference_dir: Path, name: str) -> None:
    """DP 2: the same bits. TP 2: 99.9 % of pixels within 1e-5, none past 2e-3."""
    meta, _ = read_frames(reference_dir, name)
    arguments = (reference_dir / "ckpt" / meta["ckpt"], name, reference_dir, *SIZE)
    want = ranks.call(0, render_checkpoint, 0, *arguments, None)
    for shape in (GroupShape(1, 2), GroupShape(2, 1)):
        with group(shape):
            got = all_of(ranks.all(range(2), render_checkpoint, *arguments, shape))
        if shape.tensor == 1:
            assert all(np.array_equal(got[key], want[key]) for key in want)
        else:
            difference = np.abs(got["rgb"].astype(np.float64) - want["rgb"]).reshape(-1, 3).max(axis=1)
            assert (difference > 1e-5).sum() <= difference.size // 1000, (difference > 1e-5).sum()
            assert difference.max() <= 2e-3
