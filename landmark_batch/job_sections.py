"""Sections of a job file: every key with its type, unit, default and bounds. `landmark_batch.job` puts them together."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

from landmark_batch.object_path import is_url

LOOKS: dict[str, int] = {"default": 2930, "sunset": 2180, "sunshine": 1550, "cloudy": 2940, "fog": 1820}  # LandMark's renderer.py

Vector = tuple[float, float, float]
Dtype = Literal["uint8", "uint16", "float16", "float32"]
FloatDtype = Literal["float16", "float32"]
FrameOrder = Literal["auto", "time", "space", "coarse-to-fine"]

_MEMORY = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*([kKmMgGtT]?)(i?)([bB]?)\s*$")
_SWITCHES = ("rgb", "depth", "alpha")  # of outputs: a dtype, true or false
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


def parse_memory(text: str) -> int:
    """'8GiB', '8G', '500 MB', '1.5TiB', '4096' -> bytes. KiB, MiB... (and bare K, M...) are powers of 1024, KB, MB... of 1000.

    Raises ValueError for anything else and for zero.
    """
    match = _MEMORY.match(text)
    if match is None or (match[3] and not match[2]):
        raise ValueError(f"{text!r} is no amount of memory: write it as '8GiB', '500MB' or a number of bytes")
    base = 1000 if match[4] and match[2] and not match[3] else 1024
    size = int(float(match[1]) * base ** _POWERS[match[2].lower()])
    if size < 1:
        raise ValueError(f"{text!r} is no memory at all: write it as '8GiB'")
    return size


class Section(BaseModel):
    """Base of every section: unknown keys and infinities are errors, true and false are no numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_strip_whitespace=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switch(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and info.field_name not in (*_SWITCHES, "overlap"):
            raise ValueError("true and false are no value for this key")
        return value


class SceneSection(Section):
    """checkpoint: a .th file, a directory of -sub{b}.th files, or a block store's folder or URL. plane_division: blocks along x, y.

    appearance: row of embedding_app or a look's name. aabb: crop box, scene units. edit: LandMark's edit mode.
    edit_block: the block it exchanges; default the only one that has such a file. metres_per_unit: converts depth on export.
    """

    checkpoint: Path | str | None = None  # a str is a URL
    plane_division: tuple[int, int] | None = None
    appearance: int | str | None = None
    aabb: tuple[Vector, Vector] | None = None
    edit: Literal["reset", "new", "remove"] | None = None
    edit_block: int | None = Field(default=None, ge=0)
    metres_per_unit: float | None = Field(default=None, gt=0)

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _location(cls, value: Any) -> Any:
        return Path(value) if isinstance(value, str) and not is_url(value.strip()) else value

    @field_validator("plane_division", mode="before")
    @classmethod
    def _division(cls, value: Any) -> Any:
        match = re.fullmatch(r"\s*(\d+)\s*[x,]\s*(\d+)\s*", value) if isinstance(value, str) else None
        return (int(match[1]), int(match[2])) if match else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.aabb is not None and any(lo >= hi for lo, hi in zip(*self.aabb, strict=True)):
            raise ValueError(f"aabb = {[list(v) for v in self.aabb]}: its first corner must be below its second on every axis")
        if self.plane_division is not None and min(self.plane_division) < 1:
            raise ValueError(f"plane_division = {list(self.plane_division)}: at least 1 block on each axis")
        if isinstance(self.appearance, str) and self.appearance not in LOOKS:
            raise ValueError(f"appearance = {self.appearance!r}: a row of the embedding or one of {', '.join(LOOKS)}")
        if isinstance(self.appearance, int) and self.appearance < 0:
            raise ValueError(f"appearance = {self.appearance}: rows are counted from 0")
        if self.edit is None and self.edit_block is not None:
            raise ValueError(f"edit_block = {self.edit_block} without edit: set edit to reset, new or remove")
        return self

    @property
    def appearance_row(self) -> int | None:
        return LOOKS[self.appearance] if isinstance(self.appearance, str) else self.appearance


class InlineFrame(Section):
    """One camera written into the job. c2w: 3x4 or 4x4 rows, camera to world, OpenGL axes.

    focal: pixels at the job's width. time: seconds.
    """

    c2w: list[list[float]]
    focal: float | None = None
    name: str | None = None
    time: float | None = None


class CamerasSection(Section):
    """file: transforms.json or camera_path.json. transform: dataparser_transforms.json. width, height: pixels, scale the focal.

    dataset: the transforms.json nerfstudio was trained on, read beside `transform` for its applied_transform.
    focal: pixels, replaces the file's after scaling. frames: '0-239x10' etc. pixel_center: 0 (LandMark) or 0.5.
    """

    file: Path | None = None
    transform: Path | None = None
    dataset: Path | None = None
    width: int | None = Field(default=None, ge=1, le=65536)
    height: int | None = Field(default=None, ge=1, le=65536)
    focal: float | None = Field(default=None, gt=0)
    frames: str | None = None
    pixel_center: float = Field(default=0.0, ge=0, le=1)
    frame: tuple[InlineFrame, ...] = ()

    @field_validator("frames", mode="before")
    @classmethod
    def _frames(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.file is not None and self.frame:
            raise ValueError("file and [[cameras.frame]] are both given: a flight comes from one of them")
        return self


class SamplingSection(Section):
    """mode: 'hull' (LandMark's sampling_opt) or 'dense'. samples: a ray; dense default: as many as the step size gives.

    near, far: along the unnormalised ray, scene units; default the checkpoint's. rays_per_batch: 0 = chosen from memory.
    """

    mode: Literal["hull", "dense"] = "hull"
    samples: int | None = Field(default=None, ge=1, le=65536)
    near: float | None = Field(default=None, ge=0)
    far: float | None = Field(default=None, gt=0)
    alpha_mask_threshold: float = Field(default=0.0, ge=0, lt=1)
    rays_per_batch: int = Field(default=0, ge=0)
    distance_scale: float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.near is not None and self.far is not None and self.near >= self.far:
            raise ValueError(f"near = {self.near} must be below far = {self.far}")
        return self


class ModelSection(Section):
    """runtime: 'fused' kernels, plain 'torch', or 'auto'. precision: of planes and lines."""

    runtime: Literal["auto", "torch", "fused"] = "auto"
    precision: Literal["fp32", "fp16"] = "fp32"


class ParallelSection(Section):
    """workers: processes; 0 = one a visible GPU, or one a core. gpus: ordinals; None = all visible.

    tensor_parallel x data_parallel workers form a render group. render_timeout: seconds after which a silent group is replaced; 0 = 10
    times its slowest chunk, at least 30. priority: of this job on a scheduler that others use too; higher goes first. overlap: render,
    copy, encode and write at once (LandMark's use_multistream); without it one after the other, with the same pixels.
    """

    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpus: tuple[int, ...] | None = None
    workers: int = Field(default=0, ge=0, le=4096)
    tensor_parallel: int = Field(default=1, ge=1, le=4096)
    data_parallel: int = Field(default=1, ge=1, le=4096)
    render_timeout: float = Field(default=0.0, ge=0)
    priority: int = Field(default=0, ge=-1000, le=1000)
    overlap: bool = True

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.gpus is not None and (not self.gpus or min(self.gpus) < 0 or len(set(self.gpus)) < len(self.gpus)):
            raise ValueError(f"gpus = {list(self.gpus)}: distinct GPU numbers, counted from 0")
        if self.gpus is not None and self.device == "cpu":
            raise ValueError(f"gpus = {list(self.gpus)} and device = 'cpu' contradict each other")
        return self


class FetchingSection(Section):
    """mode: 'resident' (all blocks on the GPU), 'dynamic' or 'auto'. gpu_blocks: slots (LandMark's neighbour_size). memory as '8GiB'."""

    mode: Literal["auto", "resident", "dynamic"] = "auto"
    gpu_blocks: int | None = Field(default=None, ge=1)
    gpu_memory: str | None = None
    host_memory: str | None = None

    @field_validator("gpu_memory", "host_memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            value = str(value)
        if isinstance(value, str) and parse_memory(value) < 2**20:
            raise ValueError(f"{value!r} is less than 1 MiB: write it as '8GiB'")
        return value


class OutputSection(Section):
    """store: the Zarr store, a folder or a URL. rgb, depth, alpha: a dtype, false for none, true for uint8, float32, uint8.

    chunk_frames: frames a task; 'auto' is 8, on a GPU 4 to 32 by the bytes of a frame, fewer in a short job. frames_per_shard: fixed at
    the store's creation. order: in which frames come; 'auto' is 'space' where blocks are fetched, else 'time'. compressor: 'jpegxl' is
    lossless, for integers, and needs imagecodecs.
    """

    store: Path | str | None = None  # a str is a URL
    rgb: Dtype | Literal[False] = "uint8"
    depth: FloatDtype | Literal[False] = False
    alpha: Dtype | Literal[False] = False
    background: Literal["white", "black", "transparent"] = "white"
    chunk_frames: Annotated[int, Field(ge=1, le=100_000)] | Literal["auto"] = "auto"
    frames_per_shard: int = Field(default=1, ge=1, le=10_000)
    order: FrameOrder = "auto"
    compressor: Literal["auto", "none", "lz4", "zstd", "jpegxl"] = "auto"

    @field_validator("store", mode="before")
    @classmethod
    def _place(cls, value: Any) -> Any:
        return Path(value) if isinstance(value, str) and not is_url(value.strip()) else value

    @field_validator(*_SWITCHES, mode="before")
    @classmethod
    def _usual_dtype(cls, value: Any, info: ValidationInfo) -> Any:
        return ("float32" if info.field_name == "depth" else "uint8") if value is True else value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.rgb is False and self.depth is False and self.alpha is False:
            raise ValueError("rgb, depth and alpha are all false: nothing to render")
        return self


class ImagesSection(Section):
    """pattern: with {name}, {frame}, {output}, {ext}. start_number: added to the frame index in file names."""

    dir: Path | None = None
    format: Literal["png", "jpeg", "exr"] = "png"
    bit_depth: Literal[8, 16] = 8
    pattern: str = "{name}.{frame:05d}.{ext}"
    start_number: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            names = {self.pattern.format(name="n", frame=number, output="o", ext="e") for number in (1, 2)}
        except (LookupError, ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"pattern = {self.pattern!r}: {error}; it may hold {{name}}, {{frame:05d}}, {{output}} and {{ext}}") from None
        if len(names) == 1:
            raise ValueError(f"pattern = {self.pattern!r} gives every frame the same file name: it must hold {{frame}}")
        if self.format == "jpeg" and self.bit_depth == 16:
            raise ValueError("bit_depth = 16 and format = 'jpeg': JPEG holds 8 bits a channel; use png or exr")
        return self


class VideoSection(Section):
    """fps: frames a second; default the camera file's, else 24. crf: quality, lower is better. pix_fmt: e.g. yuv420p10le."""

    file: Path | None = None
    fps: float | None = Field(default=None, gt=0, le=1000)
    codec: str = "libx264"
    crf: int | None = Field(default=None, ge=0, le=63)
    preset: str | None = None
    pix_fmt: str | None = None
