"""From rays to pixels: a LandMark scene, sampled, composited and coloured on any device, with the same bits whatever the way."""

from __future__ import annotations

from landmark_batch.model.memory import estimate_memory
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.renderer import Renderer
from landmark_batch.model.runtime import RuntimeChoice, resolve_runtime
from landmark_batch.model.settings import RenderSettings, resolve_settings

__all__ = ["RenderOutput", "RenderSettings", "Renderer", "RuntimeChoice", "estimate_memory", "resolve_runtime", "resolve_settings"]
