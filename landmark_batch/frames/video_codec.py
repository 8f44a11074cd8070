"""Encoders: what is asked of them, whether this build has them, and whether they can do it, before a frame is read."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.codec.codec import UnknownCodecError

from landmark_batch.errors import ConfigError

from .encoder_threads import usual_scheduling

CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska", ".webm": "webm", ".avi": "avi"}
ALIASES = {"h264": "libx264", "h265": "libx265", "hevc": "libx265", "av1": "libsvtav1", "vp9": "libvpx-vp9", "dnxhr": "dnxhd"}
_DNXHR = {"yuv422p": "dnxhr_hq", "yuv422p10le": "dnxhr_hqx", "yuv444p10le": "dnxhr_444", "gbrp10le": "dnxhr_444"}  # profile by format
_BT709, _SRGB, _RGB, _LIMITED, _FULL = 1, 13, 0, 1, 2  # ISO/IEC 23091-2 code points and FFmpeg's ranges
_HIDDEN_FORMATS = ("yuvj", "cuda", "vaapi", "qsv", "vulkan", "drm", "gray", "ya", "pal", "mono")


@dataclass(frozen=True)
class Encoder:
    """How a codec's crf and preset are called and what they are by default. crf_option None: it has no such quality."""

    pix_fmt: str
    crf_option: str | None = None
    crf: int | None = None
    crf_range: tuple[int, int] = (0, 51)
    preset_option: str | None = None
    preset: str | None = None
    extra: Mapping[str, str] = field(default_factory=dict)


_NVENC = Encoder("yuv420p", "cq", 20, (0, 51), "preset", "p5", {"rc": "vbr", "b": "0"})
ENCODERS: dict[str, Encoder] = {
    "libx264": Encoder("yuv420p", "crf", 18, (0, 51), "preset", "medium"),
    "libx264rgb": Encoder("rgb24", "crf", 18, (0, 51), "preset", "medium"),
    "libx265": Encoder("yuv420p", "crf", 20, (0, 51), "preset", "medium", {"x265-params": "log-level=error"}),
    "libsvtav1": Encoder("yuv420p", "crf", 30, (0, 63), "preset", "8"),
    "libvpx-vp9": Encoder("yuv420p", "crf", 30, (0, 63), "cpu-used", "4", {"b": "0", "row-mt": "1", "deadline": "good"}),
    "ffv1": Encoder("bgr0", extra={"level": "3", "slices": "12", "slicecrc": "1", "g": "1"}),
    "prores_ks": Encoder("yuv422p10le", preset_option="profile", preset="hq", extra={"vendor": "apl0"}),
    "dnxhd": Encoder("yuv422p", preset_option="profile"),
    "h264_nvenc": _NVENC,
    "hevc_nvenc": _NVENC,
    "av1_nvenc": _NVENC,
}


@dataclass(frozen=True)
class EncoderPlan:
    """An encoder that has been opened once with exactly this. width, height: of the film, padded to what the chroma needs.

    container: FFmpeg's name of the file format. bits: of one component. is_rgb: no colour conversion. options: as FFmpeg takes them.
    """

    codec: str
    canonical: str
    container: str
    pix_fmt: str
    bits: int
    is_rgb: bool
    width: int
    height: int
    rate: Fraction
    options: Mapping[str, str]
    threads: int = 0


def available_encoders() -> list[str]:
    """The encoders of ENCODERS that this build of FFmpeg has (a hardware encoder may still lack its device)."""
    return [name for name in ENCODERS if _codec(name) is not None]


def pixel_formats(codec: str) -> list[str]:
    """The pixel formats an encoder takes that a rendered frame can be given in."""
    found = _codec(codec)
    formats = [item.name for item in (found.video_formats or [])] if found is not None else []
    return [name for name in formats if not name.startswith(_HIDDEN_FORMATS) and not _has_alpha(name)]


def exact_fps(value: Fraction | float | int | str) -> Fraction:
    """23.976 -> 24000/1001, 12.5 -> 25/2, '30000/1001' as it is. Raises ConfigError unless 0 < fps <= 1000."""
    try:
        rate = Fraction(value) if not isinstance(value, float) else _from_float(value)
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        raise ConfigError(f"fps = {value!r}: not a number", remedy="for example 24, 23.976 or 30000/1001") from None
    if isinstance(value, str) and "/" not in value:
        rate = _from_float(float(rate))
    if not 0 < rate <= 1000:
        raise ConfigError(f"fps = {value}: not within 0 and 1000", remedy="for example 24")
    return rate.limit_denominator(100_000)


def _from_float(value: float) -> Fraction:
    if not math.isfinite(value):
        raise ValueError(value)
    ntsc = Fraction(round(value * 1.001) * 1000, 1001)
    if value >= 10 and value != int(value) and abs(float(ntsc) - value) < 1e-4:
        return ntsc
    return Fraction(value).limit_denominator(1001)


def choose_fps(
    argument: Fraction | float | str | None = None,
    job: float | None = None,
    camera: float | None = None,
    *,
    camera_origin: str = "camera file",
) -> tuple[Fraction, str]:
    """Frames a second and where they come from: the argument, the job, the camera file, else 24. Raises ConfigError as `exact_fps`."""
    for value, origin in ((argument, "argument"), (job, "job"), (camera, camera_origin)):
        if value is not None:
            return exact_fps(value), origin
    return Fraction(24), "default"


def plan_encoder(
    path: Path,
    *,
    width: int,
    height: int,
    rate: Fraction,
    codec: str = "libx264",
    pix_fmt: str | None = None,
    crf: int | None = None,
    preset: str | None = None,
    threads: int = 0,
) -> EncoderPlan:
    """Choose defaults and try: container, encoder, pixel format, size and options. Reads and writes no file.

    Odd sizes are padded to even ones where the format's chroma needs it.
    Raises ConfigError naming what this build offers instead.
    """
    container = CONTAINERS.get(path.suffix.lower())
    if container is None:
        raise ConfigError(f"{path}: no film format {path.suffix!r}", remedy=f"end the name in one of {', '.join(CONTAINERS)}")
    codec = ALIASES.get(codec, codec)
    found = _codec(codec)
    if found is None:
        raise ConfigError(
            f"video codec {codec!r}: this build of FFmpeg has no such encoder", remedy=f"it has {', '.join(available_encoders())}"
        )
    entry = ENCODERS.get(codec) or Encoder("yuv420p", "crf", None, (0, 255), "preset")
    offered = pixel_formats(codec)
    chosen = pix_fmt or (entry.pix_fmt if entry.pix_fmt in offered or not offered else offered[0])
    if chosen not in offered:
        raise ConfigError(f"pix_fmt {chosen!r}: {codec} does not take it for rendered frames", remedy=f"it takes {', '.join(offered)}")
    _check_container(path, container, codec, found.canonical_name)
    layout = av.VideoFormat(chosen, 64, 64)
    wide, tall = 64 // layout.chroma_width(64), 64 // layout.chroma_height(64)
    plan = EncoderPlan(
        codec=codec,
        canonical=found.canonical_name,
        container=container,
        pix_fmt=chosen,
        bits=max(part.bits for part in layout.components),
        is_rgb=layout.is_rgb,
        width=-(-width // wide) * wide,
        height=-(-height // tall) * tall,
        rate=rate,
        options=_options(codec, entry, crf, preset or (_DNXHR.get(chosen) if codec == "dnxhd" else None)),
        threads=threads,
    )
    _try(plan)
    return plan


def configure_encoder(context: Any, plan: EncoderPlan) -> None:
    """Give a codec context, not yet open, all that the plan says: size, format, rate, options, threads, colour tags."""
    context.width, context.height, context.pix_fmt = plan.width, plan.height, plan.pix_fmt
    context.framerate, context.time_base = plan.rate, 1 / plan.rate
    context.options = dict(plan.options)
    context.thread_count = plan.threads
    context.color_primaries = _BT709
    context.color_trc = _SRGB if plan.is_rgb else _BT709
    context.colorspace = _RGB if plan.is_rgb else _BT709
    context.color_range = _FULL if plan.is_rgb else _LIMITED
    if plan.canonical == "hevc" and plan.container in ("mp4", "mov"):
        context.codec_tag = "hvc1"  # QuickTime plays no other


def _codec(name: str) -> av.Codec | None:
    try:
        codec = av.Codec(name, "w")
    except UnknownCodecError:
        return None
    return codec if codec.type == "video" and codec.name == name else None


def _has_alpha(name: str) -> bool:
    return any(part.is_alpha for part in av.VideoFormat(name).components) or name in ("argb", "rgba", "abgr", "bgra")


def _options(codec: str, entry: Encoder, crf: int | None, preset: str | None) -> dict[str, str]:
    options = dict(entry.extra)
    low, high = entry.crf_range
    if crf is not None and entry.crf_option is None:
        raise ConfigError(f"crf = {crf}: {codec} has no constant quality", remedy="leave crf out")
    if crf is not None and not low <= crf <= high:
        raise ConfigError(f"crf = {crf}: {codec} takes {low} to {high}", remedy=f"lower is better; its default here is {entry.crf}")
    if preset is not None and entry.preset_option is None:
        raise ConfigError(f"preset = {preset!r}: {codec} has none", remedy="leave preset out")
    quality = crf if crf is not None else entry.crf
    if entry.crf_option is not None and quality is not None:
        options[entry.crf_option] = str(quality)
    speed = preset or entry.preset
    if entry.preset_option is not None and speed is not None:
        options[entry.preset_option] = speed
    return options


def _check_container(path: Path, container: str, codec: str, canonical: str) -> None:
    fits = []
    for suffix, name in CONTAINERS.items():
        with av.open(os.devnull, "w", format=name) as file:
            if canonical in file.supported_codecs:
                fits.append(suffix)
    if path.suffix.lower() not in fits:
        remedy = f"end the name in {' or '.join(fits)}, or choose another codec" if fits else "choose another codec"
        raise ConfigError(f"{path}: {container} does not hold {codec}", remedy=remedy)


def _try(plan: EncoderPlan) -> None:
    context = av.Codec(plan.codec, "w").create("video")
    configure_encoder(context, plan)
    shown = " ".join(f"{key}={value}" for key, value in plan.options.items())
    try:
        with usual_scheduling():
            context.open()
    except (av.FFmpegError, ValueError) as error:
        hardware = "; it needs an NVIDIA GPU and its driver" if plan.codec.endswith("_nvenc") else ""
        raise ConfigError(
            f"video codec {plan.codec}: it cannot encode {plan.width}×{plan.height} {plan.pix_fmt} with {shown or 'no options'}"
            f" ({getattr(error, 'strerror', None) or error}){hardware}",
            remedy=f"check preset and size; this build has {', '.join(available_encoders())}",
        ) from None
    unknown = set(context.options) & set(plan.options)
    if unknown:
        raise ConfigError(f"video codec {plan.codec}: it does not know {', '.join(sorted(unknown))}", remedy="leave that option out")
