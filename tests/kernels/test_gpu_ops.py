"""On a CUDA device: schema, fake kernel and tracing of every op; those of the mixed mode are in test_gpu_mixed.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from landmark_batch.kernels import fused
from landmark_batch.kernels.library import PLAIN
from tests.kernels.test_gpu_mixed import decoder
from tests.kernels.test_mixed import COMPOSITE, SAMPLES, setting
from tests.kernels.test_ops import arguments

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"),
]


def moved(value: Any, device: str) -> Any:
    if isinstance(value, list) and value and isinstance(value[0], Tensor):
        return [one.to(device) for one in value]
    return value.to(device) if isinstance(value, Tensor) else value


@pytest.mark.parametrize("name", list(PLAIN))
def test_opcheck_of_a_plain_op(device: str, name: str) -> None:
    torch.library.opcheck(getattr(torch.ops.landmark_batch, name).default, tuple(moved(value, device) for value in arguments()[name]))


@pytest.mark.parametrize("name", ["shade", "shade_pass", "shade_features", "features", "resolve"])
def test_opcheck_of_what_colours_a_list(device: str, name: str) -> None:
    """On a list that is just as long as its samples: what lies behind the last one is not written."""
    if name.startswith("shade") and not torch.ops.landmark_batch.shade_fits(3):
        pytest.skip("this GPU's blocks have too little shared memory")
    case = setting(channels=48, dtype=torch.float16, rays=300).to(device)
    count = int(fused.trace(case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, 20000)[5][0])
    traced = fused.Traced(*fused.trace(case.rays, *case.march, *case.field, None, *COMPOSITE, SAMPLES, count))
    basis = torch.randn(27, 144, generator=torch.Generator().manual_seed(1)) / 12
    lists = (case.rays, traced.list, traced.status, traced.found, traced.offset)
    features = fused.features(case.rays, traced.list, count, *case.field, basis.to(device))
    shade = tuple(tensor.to(device) for tensor in fused.pack_shade(basis, *decoder()))
    after = tuple(tensor.to(device) for tensor in fused.pack_decoder(*decoder()))
    taken: dict[str, tuple[Any, ...]] = {
        "shade": (*lists, *case.field, *shade),
        "shade_pass": (*lists[:3], *case.field, *shade, torch.zeros(count, 4, device=device)),
        "shade_features": (*lists, features, *after),
        "features": (case.rays, traced.list, count, *case.field, basis.to(device)),
        "resolve": (torch.rand(count, 4, device=device), traced.offset, traced.found),
    }
    assert count > 100
    torch.library.opcheck(getattr(torch.ops.landmark_batch, name).default, taken[name])
