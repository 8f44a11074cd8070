"""Companions of a merged file (-wo_plane, -wo_state_dict) that lie alone: what they say about the scene they were cut from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.configure import CheckpointHead, tensor_shapes
from landmark_batch.scene.geometry import BASIS, BASIS_DENSITY, Shape, clean_keys, mlp_width, read_geometry
from landmark_batch.scene.kwargs import CheckpointSettings, argument, read_settings
from landmark_batch.scene.torch_head import read_torch_head


def open_companion(path: Path) -> tuple[CheckpointHead, list[str]]:
    """The companion, with the shapes that it records for the grids it does not hold, and what it lacks to be rendered.

    Raises CheckpointError for a damaged or foreign file, or one without gridShape.
    """
    content = read_torch_head(path)
    settings = read_settings(content, path)
    recorded = _recorded_shapes(content, path)
    names, held = tensor_shapes(content.get("state_dict", {}), path)
    shapes: dict[str, Shape] = recorded | held
    absent = sorted({key.split(".")[0] for key in recorded if key not in held})
    lacks = [f"{', '.join(absent)}: they are in the -merged-stack.th this file was cut from; put it beside it"] if absent else []
    if "state_dict" not in content:
        shapes |= _decoder_shapes(settings, shapes)
        lacks.append("basis_mat, renderModule.mlp and embedding_app: this file holds settings only")
    return CheckpointHead(path, content, settings, names, read_geometry(shapes, settings, path)), lacks


def _recorded_shapes(content: Mapping[Any, Any], path: Path) -> dict[str, Shape]:
    recorded = content.get("gridShape")
    if not isinstance(recorded, Mapping):
        raise CheckpointError(f"{path}: no gridShape in it, which a companion has", remedy="name the -merged-stack.th itself")
    shapes: dict[str, Shape] = {}
    for name, key in clean_keys(recorded, path).items():
        value = recorded[key]
        if not isinstance(value, tuple | list) or not all(isinstance(size, int) for size in value):
            raise CheckpointError(f"{path}: gridShape.{key} = {value!r:.80}: expected a shape", remedy="export the checkpoint again")
        shapes[name] = tuple(value)
    return shapes


def _decoder_shapes(settings: CheckpointSettings, shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    """What the decoder's shapes must be, from kwargs and args; the embedding, whose rows are not recorded, is left out."""

    def columns(kind: str) -> int:
        return sum(shape[1] for key, shape in shapes.items() if key.startswith(f"{kind}_plane.") and len(shape) > 1)

    hidden = settings.feature_width
    found: dict[str, Shape] = {
        BASIS: (settings.app_dim, columns("app")),
        "renderModule.mlp.0.weight": (hidden, mlp_width(settings.app_dim, settings.view_pe, settings.fea_pe, 0)),
        "renderModule.mlp.2.weight": (hidden, hidden),
        "renderModule.mlp.4.weight": (3, hidden),
    }
    if argument(settings.training_args, "bias_enable"):
        found |= {f"renderModule.mlp.{layer}.bias": (size,) for layer, size in ((0, hidden), (2, hidden), (4, 3))}
    if argument(settings.training_args, "nonlinear_density"):
        found[BASIS_DENSITY] = (1, columns("density"))
    return found
