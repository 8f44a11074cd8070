"""What the shapes of a state_dict say about a scene, and whether they agree with each other and with kwargs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from landmark_batch.errors import CheckpointError
from landmark_batch.scene.kwargs import CheckpointSettings, argument

Shape = tuple[int, ...]

GRID_KINDS = ("density_plane", "density_line", "app_plane", "app_line")
_GRID_KEY = re.compile(rf"(?P<kind>{'|'.join(GRID_KINDS)})\.(?P<index>\d+)")
_WRAPPERS = {"module", "params", "_orig_mod"}  # DistributedDataParallel, LandMark's WrapParam, torch.compile
MLP_LAYERS = (0, 2, 4)
BASIS, BASIS_DENSITY, EMBEDDING = "basis_mat.weight", "basis_den.weight", "embedding_app.weight"


@dataclass(frozen=True)
class Geometry:
    """blocks: in this file. planes: (h, w) and lines: n of every level, i = dim * R + res. channels: one entry a dim."""

    stacked: bool
    blocks: int
    ndims: int
    resolutions: tuple[int, ...]
    planes: tuple[tuple[int, int], ...]
    lines: tuple[int, ...]
    density_channels: tuple[int, ...]
    appearance_channels: tuple[int, ...]
    nonlinear_density: bool
    bias: bool
    embedding_rows: int
    embedding_channels: int

    @property
    def block_grid(self) -> tuple[int, int, int]:
        """gridSize as LandMark's merge writes it: sizes (x, y, z) of one block's first level."""
        return (self.planes[0][1], self.planes[0][0], self.lines[0])


def clean_key(key: str) -> str:
    """A state_dict key without the wrappers of parallel training: basis_mat.module.weight is basis_mat.weight."""
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def clean_keys(keys: Iterable[object], path: Path) -> dict[str, str]:
    """{clean key: key}. Raises CheckpointError where two keys mean the same tensor."""
    cleaned: dict[str, str] = {}
    for key in keys:
        if not isinstance(key, str):
            raise CheckpointError(f"{path}: state_dict has a key {key!r} that is no text", remedy="name a .th file that LandMark wrote")
        name = clean_key(key)
        if name in cleaned:
            raise CheckpointError(f"{path}: {cleaned[name]} and {key} are the same tensor", remedy="keep one of them")
        cleaned[name] = key
    return cleaned


def unused_keys(keys: Iterable[str]) -> list[str]:
    """Clean keys that no renderer of the grid branch reads, e.g. nerf.*."""
    used = {BASIS, BASIS_DENSITY, EMBEDDING} | {f"renderModule.mlp.{layer}.{part}" for layer in MLP_LAYERS for part in ("weight", "bias")}
    return [key for key in keys if key not in used and not _GRID_KEY.fullmatch(key)]


def mlp_width(app_dim: int, view_pe: int, fea_pe: int, embedding_channels: int) -> int:
    """Columns of mlp.0: features, embedding, view direction (none for view_pe = -1), PE(features), PE(view direction)."""
    return app_dim * (1 + 2 * fea_pe) + embedding_channels + (3 + 6 * view_pe if view_pe >= 0 else 0)


def read_geometry(shapes: Mapping[str, Shape], settings: CheckpointSettings, path: Path) -> Geometry:
    """Check all shapes (clean keys) against each other. Raises CheckpointError naming file, key and both shapes."""
    return _Shapes(shapes, settings, path).read()


class _Shapes:
    def __init__(self, shapes: Mapping[str, Shape], settings: CheckpointSettings, path: Path) -> None:
        self.shapes = shapes
        self.settings = settings
        self.path = path

    def read(self) -> Geometry:
        stacked, blocks = self._stack()
        levels = self._levels()
        ndims, resolutions = self._resolutions(levels)
        density = self._channels("density", self.settings.density_components, ndims, len(resolutions))
        appearance = self._channels("app", self.settings.appearance_components, ndims, len(resolutions))
        planes, lines = self._sizes(levels, stacked, blocks)
        self._expect(BASIS, (self.settings.app_dim, sum(appearance) * len(resolutions)), "kwargs.app_dim and the app planes ask for")
        nonlinear = BASIS_DENSITY in self.shapes
        if nonlinear:
            self._expect(BASIS_DENSITY, (1, sum(density) * len(resolutions)), "the density planes ask for")
        rows, columns = self._embedding()
        return Geometry(
            stacked=stacked,
            blocks=blocks,
            ndims=ndims,
            resolutions=resolutions,
            planes=planes,
            lines=lines,
            density_channels=density,
            appearance_channels=appearance,
            nonlinear_density=nonlinear,
            bias=self._decoder(columns),
            embedding_rows=rows,
            embedding_channels=columns,
        )

    def shape(self, key: str) -> Shape:
        if key not in self.shapes:
            raise CheckpointError(f"{self.path}: {key} is missing in state_dict", remedy="name a complete checkpoint of LandMark")
        return self.shapes[key]

    def wrong(self, key: str, expected: object, why: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path}: {key} has shape {_text(self.shape(key))}, {why} {expected if isinstance(expected, str) else _text(expected)}",
            remedy="the file is damaged or put together from different trainings: export it again",
        )

    def _expect(self, key: str, expected: Shape, why: str) -> None:
        if self.shape(key) != expected:
            raise self.wrong(key, expected, why)

    def _stack(self) -> tuple[bool, int]:
        first = self.shape("density_plane.0")
        if len(first) not in (4, 5) or first[0] != 1 or min(first) < 1:
            raise self.wrong("density_plane.0", "(1, C, h, w) or (1, C, B, h, w)", "LandMark writes")
        return len(first) == 5, first[2] if len(first) == 5 else 1

    def _levels(self) -> int:
        indices: dict[str, set[int]] = {kind: set() for kind in GRID_KINDS}
        for key in self.shapes:
            match = _GRID_KEY.fullmatch(key)
            if match:
                indices[match["kind"]].add(int(match["index"]))
        count = max(max(found, default=-1) for found in indices.values()) + 1
        for kind, found in indices.items():
            for index in range(count):
                if index not in found:
                    raise CheckpointError(
                        f"{self.path}: {kind}.{index} is missing, other grids go up to .{count - 1}",
                        remedy="name a complete checkpoint of LandMark",
                    )
        return count

    def _resolutions(self, levels: int) -> tuple[int, tuple[int, ...]]:
        settings = self.settings
        ndims = argument(settings.training_args, "ndims")
        if not isinstance(ndims, int) or ndims not in (1, 2, 3) or levels % ndims:
            ndims = len(settings.density_components)
        if levels % ndims:
            raise CheckpointError(
                f"{self.path}: {levels} density planes do not divide into the {ndims} dims of kwargs.density_n_comp = "
                f"{list(settings.density_components)}",
                remedy="the file is damaged or put together from different trainings: export it again",
            )
        count = levels // ndims
        known = argument(settings.training_args, "resMode")
        if isinstance(known, list | tuple) and len(known) == count and all(isinstance(item, int) and item >= 1 for item in known):
            return ndims, tuple(known)
        lines = [self.shape(f"density_line.{level}")[-2] for level in range(count)]
        base = settings.grid_size[2] if all(line % settings.grid_size[2] == 0 for line in lines) else min(lines)
        return ndims, tuple(max(1, round(line / base)) for line in lines)

    def _channels(self, kind: str, components: tuple[int, ...], ndims: int, resolutions: int) -> tuple[int, ...]:
        name = "density_n_comp" if kind == "density" else "appearance_n_comp"
        expected = components[:ndims] if len(components) >= ndims else components[:1] * ndims
        for index in range(ndims * resolutions):
            for part in ("plane", "line"):
                key = f"{kind}_{part}.{index}"
                shape = self.shape(key)
                if len(shape) < 2 or shape[1] != expected[index // resolutions]:
                    error = self.wrong(key, str(list(components)), f"kwargs.{name} says")
                    if len(shape) >= 2 and expected[index // resolutions] % max(shape[1], 1) == 0:
                        error.remedy = "channel-parallel training splits channels over its -sub files: name the -merged.th it also writes"
                    raise error
        return expected

    def _sizes(self, levels: int, stacked: bool, blocks: int) -> tuple[tuple[tuple[int, int], ...], tuple[int, ...]]:
        planes, lines = [], []
        for index in range(levels):
            plane, line = self.shape(f"density_plane.{index}"), self.shape(f"density_line.{index}")
            rank = 5 if stacked else 4
            if len(plane) != rank or min(plane) < 1 or plane[0] != 1 or (stacked and plane[2] != blocks):
                wanted = f"(1, C, {blocks}, h, w)" if stacked else "(1, C, h, w)"
                raise self.wrong(f"density_plane.{index}", wanted, f"density_plane.0 {_text(self.shape('density_plane.0'))} asks for")
            if len(line) != 4 or min(line) < 1 or line[0] != 1 or line[3] != blocks:
                raise self.wrong(f"density_line.{index}", f"(1, C, n, {blocks})", f"density_plane.{index} {_text(plane)} asks for")
            for kind, base in (("plane", plane), ("line", line)):
                key = f"app_{kind}.{index}"
                other = self.shape(key)
                if len(other) != len(base) or other[:1] != base[:1] or other[2:] != base[2:]:
                    raise self.wrong(key, base, f"all but the channels must be as in density_{kind}.{index}")
            planes.append((plane[-2], plane[-1]))
            lines.append(line[-2])
        return tuple(planes), tuple(lines)

    def _embedding(self) -> tuple[int, int]:
        if EMBEDDING not in self.shapes:
            return 0, 0
        shape = self.shape(EMBEDDING)
        if len(shape) != 2 or min(shape) < 1:
            raise self.wrong(EMBEDDING, "(rows, channels)", "LandMark writes")
        return shape[0], shape[1]

    def _decoder(self, embedding_channels: int) -> bool:
        settings = self.settings
        first = self.shape("renderModule.mlp.0.weight")
        width = mlp_width(settings.app_dim, settings.view_pe, settings.fea_pe, embedding_channels)
        hidden = settings.feature_width
        if first != (hidden, width):
            error = self.wrong(
                "renderModule.mlp.0.weight",
                (hidden, width),
                f"featureC = {hidden}, app_dim = {settings.app_dim}, view_pe = {settings.view_pe}, fea_pe = {settings.fea_pe} and "
                f"{f'an embedding of {embedding_channels}' if embedding_channels else 'no embedding'} ask for",
            )
            if not embedding_channels and len(first) == 2 and first[1] - width == 48:
                error.remedy = f"{EMBEDDING} is missing: it was trained with encode_app; name a complete checkpoint"
            raise error
        self._expect("renderModule.mlp.2.weight", (hidden, hidden), "kwargs.featureC asks for")
        self._expect("renderModule.mlp.4.weight", (3, hidden), "kwargs.featureC asks for")
        biases = [f"renderModule.mlp.{layer}.bias" for layer in MLP_LAYERS]
        if not any(key in self.shapes for key in biases):
            return False
        for key, size in zip(biases, (hidden, hidden, 3), strict=True):
            self._expect(key, (size,), "its weight asks for")
        return True


def _text(shape: object) -> str:
    return f"({', '.join(str(size) for size in shape)})" if isinstance(shape, tuple) else str(shape)
