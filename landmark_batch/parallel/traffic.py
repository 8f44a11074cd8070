"""Bytes that the tensor ranks of a group exchange for a sample, beside what LandMark's modes exchange.

LandMark's torch mode gathers the products of all channels on every rank and sums them there; its fused kernels sum first and gather
one number a rank for density, a feature vector a rank for appearance. Here the owner of a ray alone gets the partial sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from landmark_batch.scene.weights import SceneConfig

from .shape import GroupShape

FLOAT = 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that a tensor rank receives on average. density: for a sample; appearance: for a coloured sample."""

    density: float
    appearance: float


@dataclass(frozen=True)
class SumTraffic:
    """ours, and what LandMark's two modes take for the same group."""

    ours: Traffic
    landmark_torch: Traffic
    landmark_fused: Traffic


def sum_traffic(config: SceneConfig, shape: GroupShape) -> SumTraffic:
    """Bytes a sample and a coloured sample for a scene on groups of a shape; all 0 without tensor ranks.

    Lists of coloured samples are not counted (with plain ops one bit a sample; with fused ones 8 bytes a coloured sample, of which a
    rank receives what others own), nor the room that exchanges of fixed length leave.
    """
    others = shape.tensor - 1
    part = others / shape.tensor
    levels = config.ndims * len(config.resolutions)
    return SumTraffic(
        ours=Traffic(FLOAT * part, FLOAT * config.app_dim * part),
        landmark_torch=Traffic(FLOAT * config.density_channels * levels * part, FLOAT * config.appearance_channels * levels * part),
        landmark_fused=Traffic(FLOAT * others, FLOAT * config.app_dim * others),
    )


def describe_traffic(config: SceneConfig, shape: GroupShape, counters: Mapping[str, int] | None = None, frames: int = 1) -> str:
    """One line for people, '' without tensor ranks. counters: of `frames` frames, to say what was sent a frame."""
    if shape.tensor == 1:
        return ""
    traffic = sum_traffic(config, shape)
    ours, plain, fused = traffic.ours, traffic.landmark_torch, traffic.landmark_fused
    text = (
        f"a rank of {shape.tensor} receives {ours.density:.3g} B a sample and {ours.appearance:.3g} B a coloured sample"
        f" (LandMark's torch mode {plain.density:.3g} and {plain.appearance:.3g}: {plain.density / ours.density:.3g} x and"
        f" {plain.appearance / ours.appearance:.3g} x; its fused mode {fused.density:.3g} and {fused.appearance:.3g})"
    )
    sent = (counters or {}).get("tensor_bytes", 0)
    return f"{text}; {sent / max(frames, 1) / 1e6:.1f} MB exchanged a frame" if sent else text
