"""The photographs of a dataset: found by the names a camera file gives, loaded as floats, brought to a rendering's size."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from landmark_batch.errors import ConfigError
from landmark_batch.frames.picture import MATTES

SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".webp", ".bmp")
Float32 = NDArray[np.float32]


class PhotographIndex:
    """Photographs below `dataset` (a folder, or a file in it such as transforms.json).

    Raises ConfigError if there is no such folder.
    """

    def __init__(self, dataset: Path) -> None:
        root = Path(dataset)
        self.root = root.parent if root.is_file() else root
        if not self.root.is_dir():
            raise ConfigError(f"{root}: no such dataset folder", remedy="name the folder that the camera file's file_path are relative to")
        self._stems: dict[str, list[Path]] | None = None

    def match(self, names: Mapping[int, str]) -> dict[int, Path]:
        """{frame: photograph} for the names that have one.

        A name is looked for as a path below the folder, then with its leading folders taken off one by one, with or without a
        suffix; then by its stem anywhere below. Names made up for frames without a file_path ('frame_00012') match nothing.
        Raises ConfigError if a stem is found more than once.
        """
        found = {frame: self._find(name) for frame, name in names.items() if not _is_made_up(name, frame)}
        return {frame: path for frame, path in found.items() if path is not None}

    def examples(self, count: int = 3) -> list[str]:
        """A few photographs, relative to the folder, in order."""
        return [str(path.relative_to(self.root)) for path in sorted(path for paths in self._by_stem().values() for path in paths)[:count]]

    def _find(self, name: str) -> Path | None:
        parts = [part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in (".", "..", "/")]
        if not parts:
            return None
        for start in range(len(parts)):
            path = self.root.joinpath(*parts[start:])
            if path.suffix.lower() in SUFFIXES and path.is_file():
                return path
            for suffix in (*SUFFIXES, *(item.upper() for item in SUFFIXES)):
                candidate = path.with_name(path.name + suffix)
                if candidate.is_file():
                    return candidate
        last = parts[-1]
        stem = last[: -len(Path(last).suffix)] if Path(last).suffix.lower() in SUFFIXES else last
        same = self._by_stem().get(stem, [])
        if len(same) > 1:
            shown = ", ".join(str(path.relative_to(self.root)) for path in same[:3])
            raise ConfigError(f"{self.root}: {name!r} could be any of {shown}", remedy="name the folder that holds the right ones")
        return same[0] if same else None

    def _by_stem(self) -> dict[str, list[Path]]:
        if self._stems is None:
            self._stems = {}
            for path in sorted(_image_files(self.root)):
                self._stems.setdefault(path.stem, []).append(path)
        return self._stems


def _is_made_up(name: str, frame: int) -> bool:
    return bool(re.fullmatch(r"frame_\d+", name)) and name == f"frame_{frame:05d}"


def _image_files(root: Path) -> Iterable[Path]:
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".") and not name.endswith(".zarr")]
        yield from (Path(folder, name) for name in files if not name.startswith(".") and Path(name).suffix.lower() in SUFFIXES)


def load_photograph(path: Path, matte: str = "white") -> Float32:
    """[H, W, 3] in [0, 1], display-referred as it is in the file; a transparent one is laid over 'white' or 'black'.

    Pixels come as they lie in the file: an EXIF rotation is not applied, as structure from motion does not either.
    Raises ConfigError naming a file that cannot be read.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith("I") or image.mode == "F":
                grey = np.asarray(image).astype(np.float32)
                return np.repeat(np.clip(grey / np.float32(65535.0 if image.mode.startswith("I") else 1.0), 0, 1)[..., None], 3, axis=2)
            if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
                rgba = np.asarray(image.convert("RGBA"), np.float32) / np.float32(255.0)
                laid: Float32 = rgba[..., :3] * rgba[..., 3:] + (1 - rgba[..., 3:]) * np.float32(MATTES[matte])
                return laid
            return np.asarray(image.convert("RGB"), np.float32) / np.float32(255.0)
    except UnidentifiedImageError:
        raise ConfigError(f"{path}: not an image that can be read", remedy=f"photographs end in {', '.join(SUFFIXES)}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"{path}: cannot read it ({error})", remedy="replace the file, or leave its frame out") from None


def same_size(picture: Float32, photograph: Float32, path: Path) -> tuple[Float32, Float32, str]:
    """Both at one size, and what was done to get there ('' = nothing): the larger is area-averaged down to the smaller.

    Raises ConfigError if their aspects differ by more than one pixel.
    """
    (tall, wide), (high, broad) = picture.shape[:2], photograph.shape[:2]
    if (tall, wide) == (high, broad):
        return picture, photograph, ""
    small, large = sorted(((wide, tall), (broad, high)))
    if abs(large[0] * small[1] / large[1] - small[0]) > 1 and abs(large[1] * small[0] / large[0] - small[1]) > 1:
        raise ConfigError(
            f"{path}: the photograph is {broad}×{high}, the rendering {wide}×{tall}: not the same aspect",
            remedy="render at the photographs' size, or at one of the same aspect, with --width and --height",
        )
    if (wide, tall) == large:
        return area_resize(picture, *small), photograph, f"rendering averaged down to the photograph's {broad}×{high}"
    return picture, area_resize(photograph, *small), f"photograph of {broad}×{high} averaged down to {wide}×{tall}"


def area_resize(picture: Float32, width: int, height: int) -> Float32:
    """[H, W, 3] to [height, width, 3]; each pixel is the mean of the area it covers."""
    planes: list[Any] = [
        np.asarray(Image.fromarray(np.ascontiguousarray(picture[..., channel])).resize((width, height), Image.Resampling.BOX))
        for channel in range(picture.shape[2])
    ]
    return np.stack(planes, axis=2)
