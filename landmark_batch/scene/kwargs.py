"""kwargs of a LandMark checkpoint and its training arguments, checked and turned into plain values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.stored import StoredArray, StoredConfig, TensorLike, is_device
from landmark_batch.scene.weights import Box, literal

ACTIVATIONS = ("softplus", "relu")
_REMEDY = "export the checkpoint again with LandMark's trainer, which writes every setting into kwargs"


@dataclass(frozen=True)
class CheckpointSettings:
    """What kwargs say. density_components, appearance_components: channels, one entry a dim. aabb, near_far: scene units."""

    aabb: Box
    grid_size: tuple[int, int, int]
    density_components: tuple[int, ...]
    appearance_components: tuple[int, ...]
    app_dim: int
    density_shift: float
    distance_scale: float
    weight_threshold: float
    activation: str
    near_far: tuple[float, float]
    step_ratio: float
    view_pe: int
    fea_pe: int
    feature_width: int
    training_args: tuple[tuple[str, str], ...]
    notes: tuple[str, ...]


def read_settings(content: Mapping[Any, Any], path: Path) -> CheckpointSettings:
    """Check kwargs. Raises CheckpointError naming the file, the key and its value."""
    kwargs = content.get("kwargs")
    if not isinstance(kwargs, Mapping):
        keys = ", ".join(repr(key) for key in list(content)[:6]) or "nothing"
        raise CheckpointError(f"{path}: no kwargs in it (it holds {keys})", remedy="name a .th file that LandMark wrote")
    read = _Reader(kwargs, path)
    box = read.box("aabb")
    near, far = read.numbers("near_far", 2)
    if near >= far:
        raise CheckpointError(f"{path}: kwargs.near_far = [{near}, {far}]: near must be below far", remedy=_REMEDY)
    activation = read.value("fea2denseAct")
    if activation not in ACTIVATIONS:
        raise CheckpointError(f"{path}: kwargs.fea2denseAct = {activation!r}: known are {', '.join(ACTIVATIONS)}", remedy=_REMEDY)
    grid = tuple(read.integer(f"gridSize[{axis}]", item, least=1) for axis, item in enumerate(read.sequence("gridSize", 3)))
    notes = ["kwargs.shadingMode is of an older LandMark and is not used"] if "shadingMode" in kwargs else []
    return CheckpointSettings(
        aabb=box,
        grid_size=(grid[0], grid[1], grid[2]),
        density_components=read.components("density_n_comp"),
        appearance_components=read.components("appearance_n_comp"),
        app_dim=read.integer("app_dim", least=1),
        density_shift=read.number("density_shift"),
        distance_scale=read.number("distance_scale", positive=True),
        weight_threshold=read.number("rayMarch_weight_thres"),
        activation=activation,
        near_far=(near, far),
        step_ratio=read.number("step_ratio", positive=True),
        view_pe=read.integer("view_pe", least=-1),
        fea_pe=read.integer("fea_pe", least=0),
        feature_width=read.integer("featureC", least=1),
        training_args=training_args(kwargs.get("args")),
        notes=tuple(notes),
    )


def training_args(args: object) -> tuple[tuple[str, str], ...]:
    """Settings of training as sorted (name, text) pairs: numbers, texts, and lists of them; objects are left out."""
    found: dict[str, object] = {}
    bag = _bag(args)
    for part in _as_list(bag.get("config_list")):
        found.update({str(key): value for key, value in _bag(part).items()})
    found.update({str(key): value for key, value in bag.items() if key != "config_list"})
    return tuple(sorted((key, str(plain)) for key, value in found.items() if (plain := _plain(value)) is not _NOT_PLAIN))


def argument(args: tuple[tuple[str, str], ...], name: str) -> Any:
    """A training argument as a Python value (text where it is no literal), None where it is absent."""
    return literal(dict(args).get(name))


def division_of_args(args: tuple[tuple[str, str], ...]) -> tuple[int, int] | None:
    """plane_division as training knew it: blocks along x and y, or None."""
    value = argument(args, "plane_division")
    if isinstance(value, list | tuple) and len(value) >= 2 and all(isinstance(item, int) and item >= 1 for item in value[:2]):
        return (value[0], value[1])
    return None


_NOT_PLAIN = object()


def _plain(value: object) -> object:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if is_device(value):
        return str(value)
    if isinstance(value, list | tuple) and len(value) <= 64:
        items = [_plain(item) for item in value]
        return _NOT_PLAIN if any(item is _NOT_PLAIN for item in items) else items
    return _NOT_PLAIN


def _bag(value: object) -> Mapping[object, object]:
    if isinstance(value, StoredConfig):
        return value.values
    return value if isinstance(value, Mapping) else {}


def _as_list(value: object) -> list[object]:
    return list(value) if isinstance(value, list | tuple) else []


class _Reader:
    """Typed access to kwargs with errors that name file, key and value."""

    def __init__(self, kwargs: Mapping[Any, Any], path: Path) -> None:
        self.kwargs = kwargs
        self.path = path

    def value(self, key: str) -> Any:
        if key not in self.kwargs:
            raise CheckpointError(f"{self.path}: kwargs.{key} is missing", remedy=_REMEDY)
        value = self.kwargs[key]
        if isinstance(value, TensorLike):
            if value.numel() > 64:
                raise CheckpointError(f"{self.path}: kwargs.{key} holds {value.numel()} numbers", remedy=_REMEDY)
            return value.tolist()
        return self._array(key, value) if isinstance(value, StoredArray) else value

    def _array(self, key: str, value: StoredArray) -> Any:
        try:
            return value.as_numpy().tolist()
        except (ValueError, TypeError) as error:
            raise CheckpointError(f"{self.path}: kwargs.{key}: {error}", remedy=_REMEDY) from None

    def number(self, key: str, value: Any = None, *, positive: bool = False) -> float:
        value = self.value(key) if value is None else value
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or (positive and value <= 0):
            expected = "a number above 0" if positive else "a finite number"
            raise CheckpointError(f"{self.path}: kwargs.{key} = {_short(value)}: expected {expected}", remedy=_REMEDY)
        return float(value)

    def integer(self, key: str, value: Any = None, *, least: int) -> int:
        value = self.value(key) if value is None else value
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 1 << 31:
            raise CheckpointError(
                f"{self.path}: kwargs.{key} = {_short(value)}: expected a whole number of at least {least}", remedy=_REMEDY
            )
        return value

    def sequence(self, key: str, length: int) -> list[Any]:
        value = self.value(key)
        if not isinstance(value, list | tuple) or len(value) != length:
            raise CheckpointError(f"{self.path}: kwargs.{key} = {_short(value)}: expected {length} numbers", remedy=_REMEDY)
        return list(value)

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        return tuple(self.number(key, item) for item in self.sequence(key, length))

    def components(self, key: str) -> tuple[int, ...]:
        value = self.value(key)
        items = list(value) if isinstance(value, list | tuple) else [value]
        if not 1 <= len(items) <= 3:
            raise CheckpointError(f"{self.path}: kwargs.{key} = {_short(value)}: expected 1 to 3 numbers of channels", remedy=_REMEDY)
        return tuple(self.integer(key, item, least=1) for item in items)

    def box(self, key: str) -> Box:
        return as_box(self.sequence(key, 2), f"{self.path}: kwargs.{key}")


def as_box(rows: object, place: str) -> Box:
    """((x, y, z), (x, y, z)) with min below max. Raises CheckpointError that begins with `place`."""
    corners = [tuple(row) for row in rows if isinstance(row, list | tuple)] if isinstance(rows, list | tuple) else []
    numbers = [value for corner in corners for value in corner]
    if [len(corner) for corner in corners] != [3, 3] or not all(
        isinstance(value, int | float) and math.isfinite(value) for value in numbers
    ):
        raise CheckpointError(f"{place} = {_short(rows)}: expected two corners of 3 finite numbers", remedy=_REMEDY)
    low, high = ((float(x), float(y), float(z)) for x, y, z in corners)
    if any(a >= b for a, b in zip(low, high, strict=True)):
        raise CheckpointError(f"{place} = {_short(rows)}: the first corner must be below the second on every axis", remedy=_REMEDY)
    return (low, high)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
