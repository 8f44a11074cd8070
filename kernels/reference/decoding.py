"""The colour decoder: positional encoding and a three-layer perceptron."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .products import row_tiles


def decode(
    features: Tensor,
    rays: Tensor,
    ray: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    fea_pe: int,
    view_pe: int,
) -> Tensor:
    """Colours [C, 3] in 0..1 of samples.

    features [C, F]; rays [R, 6]; ray [C] int32. Input columns: features, view direction (unnormalised; absent for view_pe < 0),
    PE(features, fea_pe), PE(direction, view_pe). weights: three [out, in]; biases: three [out], or none. A scene's appearance
    row, being the same for all samples, is folded into the first bias by the caller.
    """
    view = rays[:, 3:] if view_pe >= 0 else rays[:, :0]
    columns = torch.cat([view, positional_encoding(view, view_pe)], dim=1)
    first = _columns_by_source(weights[0], features.shape[1], view.shape[1], fea_pe)
    bias = [*biases] if biases else [None, None, None]
    out = features.new_empty(features.shape[0], 3)
    start = 0
    for tile in row_tiles(features):
        stop = min(start + tile.shape[0], features.shape[0])
        chosen = F.pad(ray[start:stop], (0, tile.shape[0] - (stop - start)))
        joined = torch.cat([tile, positional_encoding(tile, fea_pe), columns.index_select(0, chosen)], dim=1)
        hidden = F.linear(joined, first, bias[0]).relu_()
        hidden = F.linear(hidden, weights[1], bias[1]).relu_()
        out[start:stop] = F.linear(hidden, weights[2], bias[2]).sigmoid_()[: stop - start]
        start = stop
    return out


def positional_encoding(x: Tensor, octaves: int) -> Tensor:
    """x [M, D] -> [M, 2 * D * octaves]: sin of x_d * 2^f, f fastest, then cos. No columns for octaves <= 0."""
    if octaves <= 0:
        return x.new_empty(x.shape[0], 0)
    bands = 2.0 ** torch.arange(octaves, dtype=x.dtype, device=x.device)
    angles = (x[:, :, None] * bands).view(x.shape[0], -1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def _columns_by_source(weight: Tensor, features: int, view: int, fea_pe: int) -> Tensor:
    """Columns features, view, PE(features), PE(view) -> features, PE(features), view, PE(view): what belongs to a ray together."""
    plain, encoded = features + view, 2 * features * max(fea_pe, 0)
    own = [weight[:, :features], weight[:, plain : plain + encoded]]
    return torch.cat([*own, weight[:, features:plain], weight[:, plain + encoded :]], dim=1)
