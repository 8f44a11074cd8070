"""The colour decoder of a scene on its device, for one appearance."""

from __future__ import annotations

import torch
from torch import Tensor

from landmark_batch import kernels
from landmark_batch.model.sampling import Samples
from landmark_batch.scene.weights import SceneWeights


class Decoder:
    """LandMark's MLPRender_Fea. The appearance row is the same for every sample of a render: its share of the first layer is
    added to that layer's bias once (in float64).
    """

    def __init__(self, weights: SceneWeights, appearance: int | None, device: torch.device) -> None:
        config = weights.config
        self._fea_pe, self._view_pe = config.fea_pe, config.view_pe
        first = weights.mlp_weights[0]
        biases = [
            bias if bias is not None else first.new_zeros(w.shape[0])
            for w, bias in zip(weights.mlp_weights, weights.mlp_biases, strict=True)
        ]
        if weights.embedding is not None:
            start, stop = config.app_dim, config.app_dim + config.embedding_channels
            latent = weights.embedding[appearance or 0].to(torch.float64)
            biases[0] = (biases[0].to(torch.float64) + first[:, start:stop].to(torch.float64) @ latent).to(torch.float32)
            first = torch.cat([first[:, :start], first[:, stop:]], dim=1)
        matrices = (first, *weights.mlp_weights[1:])
        self.weights = [matrix.to(device, torch.float32).contiguous() for matrix in matrices]
        self.biases = [bias.to(device, torch.float32).contiguous() for bias in biases]

    def colours(self, features: Tensor, rays: Tensor, samples: Samples) -> Tensor:
        """Colours [C, 3] in 0..1 of samples of rays [R, 6] with features [C, app_dim]."""
        return kernels.decode(features, rays, samples.ray, self.weights, self.biases, fea_pe=self._fea_pe, view_pe=self._view_pe)
