"""RenderJob: the validated job file. One place knows every key, its unit, its default and its nearest neighbour.

A job is parsed once into frozen objects and handed down. `load_job` reads TOML, `job_from_dict` anything already parsed.
Paths inside a job file are relative to it; `--set` values and flags are relative to the working directory: both are
resolved here, so that a RenderJob holds absolute paths only.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, field_validator
from pydantic_core import ErrorDetails

from landmark_batch.errors import ConfigError
from landmark_batch.job_overrides import Override, Overrides, read_overrides
from landmark_batch.job_sections import (
    LOOKS,
    CamerasSection,
    Dtype,
    FetchingSection,
    FloatDtype,
    ImagesSection,
    InlineFrame,
    ModelSection,
    OutputSection,
    ParallelSection,
    SamplingSection,
    SceneSection,
    Section,
    Vector,
    VideoSection,
    parse_memory,
)
from landmark_batch.object_path import StorePath, as_store_path, is_url

__all__ = [
    "JOB_VERSION",
    "LOOKS",
    "CamerasSection",
    "Dtype",
    "FetchingSection",
    "FloatDtype",
    "ImagesSection",
    "InlineFrame",
    "ModelSection",
    "OutputSection",
    "ParallelSection",
    "RenderJob",
    "SamplingSection",
    "SceneSection",
    "Section",
    "Vector",
    "VideoSection",
    "job_from_dict",
    "known_keys",
    "load_job",
    "parse_memory",
]

JOB_VERSION = 1


class RenderJob(Section):
    """Everything that is to be done. path: the job file, None for a job made in memory."""

    version: Literal[1] = 1
    name: str = Field(default="flight", pattern=r"^[^\s./\\][^/\\\x00-\x1f]*$", max_length=128)
    scene: SceneSection = SceneSection()
    cameras: CamerasSection = CamerasSection()
    sampling: SamplingSection = SamplingSection()
    model: ModelSection = ModelSection()
    parallel: ParallelSection = ParallelSection()
    fetching: FetchingSection = FetchingSection()
    output: OutputSection = OutputSection()
    images: ImagesSection = ImagesSection()
    video: VideoSection = VideoSection()
    path: Path | None = Field(default=None, exclude=True)

    @field_validator("name", mode="before")
    @classmethod
    def _name(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value

    @property
    def base(self) -> Path:
        """Where default outputs go: beside the job file, else the working directory."""
        return self.path.parent if self.path is not None else Path.cwd()

    @property
    def store_path(self) -> StorePath:
        """Raises ConfigError for a URL where no store can be."""
        return as_store_path(self.output.store or self.base / f"{self.name}.zarr")

    @property
    def store_neighbour(self) -> Path:
        """By what log, pictures and films are named: the store's own path, or for a store in an object store its name in `base`."""
        store = self.store_path
        return store if isinstance(store, Path) else self.base / store.name

    @property
    def video_path(self) -> Path:
        return self.video.file or self._beside_store(video_suffix(self.video.codec))

    @property
    def images_dir(self) -> Path:
        """Parent of one folder an output: <dir>/rgb, <dir>/depth. Never the store itself."""
        return self.images.dir or self._beside_store("" if self.store_path.suffix == ".zarr" else ".images")

    @property
    def log_path(self) -> Path:
        return self._beside_store(".log")

    def _beside_store(self, suffix: str) -> Path:
        store = self.store_neighbour
        return store.with_name(store.name.removesuffix(".zarr") + suffix)


_CONTAINERS = {"ffv1": ".mkv", "prores_ks": ".mov", "dnxhd": ".mov", "dnxhr": ".mov", "libvpx-vp9": ".webm"}


def video_suffix(codec: str) -> str:
    """Of the file that holds a codec's film where no other was asked for."""
    return _CONTAINERS.get(codec, ".mp4")


_PATH_KEYS = (
    ("scene", "checkpoint"),
    ("cameras", "file"),
    ("cameras", "transform"),
    ("cameras", "dataset"),
    ("output", "store"),
    ("images", "dir"),
    ("video", "file"),
)


def load_job(path: Path, overrides: Iterable[str | Override] = ()) -> RenderJob:
    """Read and check a job file. overrides: 'section.key=value' texts of --set, values in TOML (bare words are strings), or Overrides.

    Raises ConfigError naming the file or the words of the command line, the key, the value and the remedy.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such job file", remedy="landmark-batch new CHECKPOINT --cameras FILE writes one") from None
    except IsADirectoryError:
        raise ConfigError(f"{path} is a directory, not a job file", remedy="name the .toml file in it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text file, so no job file", remedy="name the .toml file; a checkpoint goes into it") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read it: {error.strerror}", remedy="check the path and its permissions") from None
    try:
        raw = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: broken TOML: {error}", remedy="mend that line; strings stand in quotes") from None
    _resolve_paths(raw, path.resolve().parent, Overrides(), str(path))
    raw.setdefault("name", path.stem)
    return job_from_dict(raw, overrides, source=str(path), path=path.resolve())


def job_from_dict(
    raw: Mapping[str, Any], overrides: Iterable[str | Override] = (), *, source: str = "job", path: Path | None = None
) -> RenderJob:
    """Check an already parsed job (relative paths taken from the working directory). Raises ConfigError as `load_job`."""
    values: dict[str, Any] = {key: dict(item) if isinstance(item, Mapping) else item for key, item in raw.items()}
    values.pop("path", None)
    changed = read_overrides(overrides, _sections())
    _resolve_paths(changed.values, Path.cwd(), changed, source)
    for key, item in changed.values.items():
        if isinstance(item, dict) and isinstance(values.get(key), dict):
            values[key].update(item)
        else:
            values[key] = item
    _resolve_paths(values, Path.cwd(), changed, source)
    if values.get("version", JOB_VERSION) != JOB_VERSION:
        raise ConfigError(
            f"{changed.origin('version', source)}: version = {values['version']!r}", remedy=f"this program reads version {JOB_VERSION}"
        )
    try:
        return RenderJob.model_validate({**values, "path": path})
    except ValidationError as error:
        raise ConfigError(_explain(error, changed, source), remedy=_remedy(error)) from None


def _resolve_paths(values: dict[str, Any], base: Path, changed: Overrides, source: str) -> None:
    for section, key in _PATH_KEYS:
        table = values.get(section)
        if isinstance(table, dict) and isinstance(table.get(key), str | Path):
            origin = changed.origin(f"{section}.{key}", source)
            if not str(table[key]).strip():
                raise ConfigError(f"{origin}: {section}.{key} is empty", remedy="name a path, or leave the key out for its default")
            if is_url(str(table[key]).strip()):
                if key in ("checkpoint", "store"):
                    continue
                raise ConfigError(
                    f"{origin}: {section}.{key} = {table[key]!r}: a URL, where a path is needed", remedy="name it on this machine"
                )
            table[key] = (base / Path(table[key]).expanduser()).resolve()


def _sections() -> dict[str, type[Section]]:
    fields = RenderJob.model_fields.items()
    return {name: item.annotation for name, item in fields if isinstance(item.annotation, type) and issubclass(item.annotation, Section)}


def known_keys() -> list[str]:
    """Every key of a job file as 'section.key'."""
    sections = _sections()
    keys = [name for name in RenderJob.model_fields if name not in sections and name != "path"]
    return keys + [f"{section}.{key}" for section, kind in sections.items() for key in kind.model_fields]


def _place(item: ErrorDetails) -> str:
    """('scene', 'aabb', 0, 'tuple[...]') -> 'scene.aabb[0]': pydantic's names of union members are left out."""
    fields = {key.rpartition(".")[2] for key in known_keys()} | set(InlineFrame.model_fields)
    last = len(item["loc"]) - 1
    text = ""
    for depth, part in enumerate(item["loc"]):
        if isinstance(part, int):
            text += f"[{part}]"
        elif depth < 2 or part in fields or (depth == last and item["type"] == "extra_forbidden"):
            text += f".{part}" if text else part
    return text


_NOT_A_SECTION = ("model_type", "model_attributes_type", "dict_type")
_PLAIN_WORDS = {
    "missing": "a value is missing",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "string_type": "must be text in quotes",
    "path_type": "must be a path in quotes",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "string_pattern_mismatch": "must be a plain file name: no slash, no dot or blank at its start",
}


def _explain(error: ValidationError, changed: Overrides, source: str) -> str:
    """One sentence a key, behind who said it; what the members of a union say of one value is joined by 'or'."""
    found: dict[str, dict[str, list[str]]] = {}
    for item in error.errors():
        place = _place(item)
        origin = changed.origin(place, source)
        heads = found.setdefault(origin, {})
        if item["type"] == "extra_forbidden":
            heads[f"unknown key {place}"] = []
        elif item["type"] in _NOT_A_SECTION:
            heads[f"{place} = {item['input']!r}: not a section"] = []
        else:
            message = _PLAIN_WORDS.get(item["type"]) or item["msg"].removeprefix("Value error, ")
            message = message.replace("Input should be", "must be").replace("must be False", "must be false")
            whole = isinstance(item["input"], dict)  # a rule over a whole section names its keys itself
            heads.setdefault(place if whole else f"{place} = {item['input']!r}", []).append(message)
    lines = []
    for origin, heads in found.items():
        sentences = []
        for head, messages in heads.items():
            first, *others = dict.fromkeys(messages) or [""]
            joined = " or ".join([first, *(other.removeprefix("must be ") for other in others)])
            sentences.append(f"{head}: {joined}" if joined else head)
        lines.append(f"{origin}: {'; '.join(sentences)}")
    return "; ".join(lines)


def _remedy(error: ValidationError) -> str | None:
    for item in error.errors():
        place = _place(item)
        if item["type"] in _NOT_A_SECTION:
            return f"write [{place}] on a line of its own and its keys below it"
        if item["type"] != "extra_forbidden":
            continue
        keys, sections = known_keys(), _sections()
        if len(item["loc"]) > 2:
            return f"known: {', '.join(InlineFrame.model_fields)}"
        section, _, key = place.rpartition(".")
        inside = [k for k in keys if k.startswith(f"{section}.")] if section else []
        exact = [k for k in keys if k.rpartition(".")[2] == key]  # the right key in the wrong section
        tables = [] if section else list(sections)
        for group in (exact, tables if isinstance(item["input"], dict) else inside, keys, tables):
            tails = {k.rpartition(".")[2]: k for k in group}
            near = difflib.get_close_matches(key, tails, n=1, cutoff=0.6)
            if near:
                return f"did you mean {tails[near[0]]}?"
        return f"known: {', '.join(inside or [*keys[:2], *(f'[{name}]' for name in sections)])}"
    return None
