"""The colour decoder of the demo city: what a point of the city looks like, and the network that is fitted to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from landmark_batch.scene.city_field import (
    APP_DIM,
    BELOW_SHADE,
    BELOW_TOP,
    CEILING,
    FLOOR,
    GAIN,
    GLASS,
    GLOSS,
    HEIGHT,
    HEIGHT_UNIT,
    TOP,
    WALL,
    WINDOW,
    CityField,
)

CORNICE = 1.8  # metres below a roof's edge that still look like roof: samples lie inside the surface
SKY = (0.78, 0.86, 0.94)


@dataclass(frozen=True)
class Decoder:
    """weights: three [out, in]; biases: three [out]. psnr: of the fit on points it has not seen, dB."""

    weights: tuple[Tensor, Tensor, Tensor]
    biases: tuple[Tensor, Tensor, Tensor]
    psnr: float


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order whatever the machine's number of cores: the same seed gives the same bytes."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def appearance(features: Tensor, view: Tensor) -> Tensor:
    """What the city looks like: features [P, 27], view direction [P, 3] (camera to point, any length) -> display colour [P, 3]."""
    top, wall, glass = (torch.sigmoid(2 * features[:, part]) for part in (TOP, WALL, GLASS))
    below, lit = features[:, BELOW_TOP] * HEIGHT_UNIT, -features[:, BELOW_SHADE] * HEIGHT_UNIT
    grazing = (1 - (view[:, 2] / view.norm(dim=1)).abs())[:, None]
    sky = torch.tensor(SKY)
    water = features[:, GLOSS, None].clamp(0, 1) * 0.55 * grazing**2
    top = top + water * (sky - top)
    window = features[:, WINDOW, None].clamp(0, 1)
    metres = features[:, HEIGHT, None] * HEIGHT_UNIT
    wall = wall * (0.62 + 0.20 * (metres / 2.5).clamp(0, 1) + 0.18 * (metres / 16).clamp(0, 1))
    gain = 1 + 2 * features[:, GAIN] * (lit / 1.2 + 0.5).clamp(0, 1)
    glass = glass * (0.75 + 0.25 * gain[:, None])
    glass = glass + (0.10 + 0.30 * grazing) * (sky - glass)
    facade = wall * gain[:, None] + window * (glass - wall * gain[:, None])
    share = ((below - CORNICE) / 0.7 + 0.5).clamp(0, 1)[:, None]
    return torch.lerp(top, facade, share).clamp(0.01, 0.99)


def encode(features: Tensor, view: Tensor, fea_pe: int, view_pe: int) -> Tensor:
    """The decoder's input, in LandMark's order: features, view, then sines and cosines of each."""
    parts = [features, view]
    for values, octaves in ((features, fea_pe), (view, view_pe)):
        if octaves:
            phases = (values[..., None] * 2.0 ** torch.arange(octaves)).flatten(1)
            parts += [torch.sin(phases), torch.cos(phases)]
    return torch.cat(parts, dim=1)


def sample_points(terms: Tensor, field: CityField, count: int, generator: torch.Generator) -> Tensor:
    """Features of random points where rays meet one block: roofs and ground, facades, and some inside. -> [count, 27]."""
    n = terms.shape[1]
    height = (terms[0] + 1) / 2 * (CEILING - FLOOR) + FLOOR
    high = F.max_pool2d(height[None, None], 3, 1, 1)[0, 0]
    low = -F.max_pool2d(-height[None, None], 3, 1, 1)[0, 0]
    walls = torch.nonzero((high - low > 3.0).flatten())[:, 0]
    tops, sides = count * 45 // 100, count * 40 // 100 if len(walls) else 0
    nodes = torch.randint(n * n, (count,), generator=generator)
    if sides:
        nodes[tops : tops + sides] = walls[torch.randint(len(walls), (sides,), generator=generator)]
    jitter = (torch.rand(count, 2, generator=generator) - 0.5) * torch.where(torch.arange(count)[:, None] < tops, 1.0, 2.4)
    at = (torch.stack([nodes % n, nodes // n], dim=1) + jitter).clamp(0, n - 1)
    uv = at / (n - 1) * 2 - 1
    surface = F.grid_sample(height[None, None], uv[None, None], align_corners=True)[0, 0, 0]
    draw = torch.rand(count, generator=generator)
    z = surface - 1.6 * draw**2
    z[tops : tops + sides] = (low.flatten()[nodes] + draw * (high - low).flatten()[nodes])[tops : tops + sides]
    z[tops + sides :] = (draw * surface)[tops + sides :]
    return field.features(terms, uv, z.clamp(FLOOR, CEILING))


def sample_views(count: int, generator: torch.Generator) -> Tensor:
    """[count, 3] view directions of an aerial camera, of the length unnormalised pixel directions have."""
    azimuth = torch.rand(count, generator=generator) * 2 * torch.pi
    pitch = torch.deg2rad(2 + 88 * torch.rand(count, generator=generator))
    length = 1 + 0.25 * torch.rand(count, generator=generator)
    flat = torch.cos(pitch) * length
    return torch.stack([flat * torch.cos(azimuth), flat * torch.sin(azimuth), -torch.sin(pitch) * length], dim=1)


def fit_decoder(features: Tensor, *, width: int, fea_pe: int, view_pe: int, seed: int, steps: int, batch: int = 1024) -> Decoder:
    """Fit the network to `appearance` on features [P, 27] by Adam, on one thread. Deterministic for a seed."""
    generator = torch.Generator().manual_seed(seed)
    views = sample_views(len(features), generator)
    with one_thread(), torch.enable_grad():
        inputs, targets = encode(features, views, fea_pe, view_pe), appearance(features, views)
        held = len(features) // 16
        weights, biases = _start(inputs.shape[1], width, generator)
        parameters = [p.requires_grad_() for p in (*weights, *biases)]
        optimiser = torch.optim.Adam(parameters, lr=7e-3, betas=(0.9, 0.99), foreach=True)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = (
                    7e-3 * min(1.0, (step + 1) / 20) * (0.5 + 0.5 * float(torch.cos(torch.tensor(torch.pi * step / steps)))) + 1e-5
                )
            rows = torch.randint(held, len(features), (batch,), generator=generator)
            loss = F.mse_loss(_decode(inputs[rows], weights, biases), targets[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
    with one_thread(), torch.no_grad():
        error = F.mse_loss(_decode(inputs[:held], weights, biases), targets[:held])
    first, second, last = (w.detach() for w in weights)
    return Decoder((first, second, last), (biases[0].detach(), biases[1].detach(), biases[2].detach()), float(-10 * torch.log10(error)))


def _decode(inputs: Tensor, weights: list[Tensor], biases: list[Tensor]) -> Tensor:
    hidden = F.relu(F.linear(inputs, weights[0], biases[0]))
    hidden = F.relu(F.linear(hidden, weights[1], biases[1]))
    return torch.sigmoid(F.linear(hidden, weights[2], biases[2]))


def _start(inputs: int, width: int, generator: torch.Generator) -> tuple[list[Tensor], list[Tensor]]:
    """Random weights, and a few hidden units that begin at the steps the picture has: roof edge, shadow line, ground."""
    sizes = ((width, inputs), (width, width), (3, width))
    weights = [torch.randn(shape, generator=generator) * (1.6 / shape[1]) ** 0.5 for shape in sizes]
    biases = [torch.zeros(shape[0]) for shape in sizes]
    weights[0][:, APP_DIM + 3 :] *= 0.2
    steps = [(BELOW_TOP, e) for e in (CORNICE - 0.35, CORNICE + 0.35, CORNICE - 0.35, CORNICE + 0.35)]
    steps += [(BELOW_SHADE, e) for e in (-0.6, 0.6)] + [(HEIGHT, 0.0), (HEIGHT, 2.5), (HEIGHT, 16.0)]
    for unit, (feature, edge) in enumerate(steps):
        scale = 1.0 if feature != HEIGHT else 0.1
        weights[0][unit] = 0
        weights[0][unit, feature] = HEIGHT_UNIT * scale
        biases[0][unit] = -edge * scale
        weights[1][:, unit] *= 0.2
    return weights, biases
