"""Where two processes of a GPU test work: on two GPUs, seen by both or each by one, and on a single one."""

from __future__ import annotations

import pytest
import torch

WAYS = {"two GPUs": ((0, 1), False), "two GPUs, each sees its own": ((0, 1), True), "one GPU": ((0, 0), False)}


def gpus_of(way: str) -> tuple[tuple[int, int], bool]:
    """The devices of the two, and whether each sees its own alone. Skips the test where they are not there."""
    devices, hide = WAYS[way]
    if torch.cuda.device_count() <= max(devices):
        pytest.skip("fewer than two CUDA devices")
    if devices[0] != devices[1] and not torch.cuda.can_device_access_peer(*devices):
        pytest.skip("GPUs that do not reach each other")
    return devices, hide
