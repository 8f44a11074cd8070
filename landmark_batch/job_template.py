"""A commented job file: every key with its unit, what is set written out, what is not shown as a comment with its default."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landmark_batch.object_path import place_name

_HEAD = (
    "# {title}\n# landmark-batch render {file}\n"
    "# Paths are relative to this file. A line behind '#' shows the default (or an example, where it says so).\n"
)

# section -> (key, what a commented line shows as TOML, unit and meaning)
_KEYS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "scene": (
        ("checkpoint", '"scene.th"', "LandMark .th file, a directory of -sub{b}.th files, a block store's folder or URL"),
        ("plane_division", "[2, 2]", "example; blocks along x and y; default: what the checkpoint says"),
        ("appearance", "0", "row of the appearance embedding, or LandMark's looks: default (2930), sunset, sunshine, cloudy, fog"),
        ("aabb", "[[-1.0, -1.0, -0.1], [1.0, 1.0, 0.5]]", "example; crop box, scene units; default: the whole scene"),
        ("edit", '"new"', 'example; LandMark\'s edit mode: "reset", "new" (sub{b}_add.th) or "remove" (sub{b}_remove.th)'),
        ("edit_block", "0", "example; the block that edit exchanges, counted from 0; default: the one that has such a file"),
        ("metres_per_unit", "1.0", "example; metres in one scene unit, for exported depth"),
    ),
    "cameras": (
        ("file", '"transforms.json"', "transforms.json (LandMark, nerfstudio, instant-ngp) or nerfstudio's camera_path.json"),
        ("transform", '"dataparser_transforms.json"', "example; for a camera_path.json of a nerfstudio scene"),
        ("dataset", '"transforms.json"', "example; what nerfstudio was trained on, where that has an applied_transform"),
        ("width", "1920", "example; pixels; the focal is scaled along; default: the camera file's"),
        ("height", "1080", "example; pixels; default: the camera file's, or as the width asks"),
        ("focal", "1483.6378", "example; pixels at the rendered size; default: the camera file's, scaled"),
        ("frames", '"0-239x10"', "example; inclusive, xN = every Nth, parts by comma: 3,5-10; default: all"),
        ("pixel_center", "0.0", "0 = LandMark's rays, 0.5 = rays through the middle of a pixel"),
    ),
    "sampling": (
        ("mode", '"hull"', '"hull" = evenly between near and far or the ground (LandMark\'s renderer), "dense" = steps of the grid'),
        ("samples", "128", "example; a ray; default: hull 256 or the checkpoint's n_importance, dense as many as the step size gives"),
        ("near", "0.1", "example; scene units along the unnormalised ray; default: the checkpoint's"),
        ("far", "4.0", "example; as near"),
        ("alpha_mask_threshold", "0.0", "a sample counts where the alpha mask is above this; 0 to 1"),
        ("rays_per_batch", "0", "0 = chosen from memory; pixels do not depend on it"),
        ("distance_scale", "25.0", "example; default: the checkpoint's"),
    ),
    "model": (
        ("runtime", '"auto"', '"auto", "torch" or "fused" (compiled kernels)'),
        ("precision", '"fp32"', '"fp32" or "fp16" for planes and lines'),
    ),
    "parallel": (
        ("device", '"auto"', '"auto" = all visible GPUs, else the CPU; "cuda"; "cpu"'),
        ("gpus", "[0, 1]", "example; GPU numbers; default: all visible"),
        ("workers", "0", "processes; 0 = one a GPU, or one a core"),
        ("tensor_parallel", "1", "workers that share one scene's channels: each holds its part of the scene"),
        ("data_parallel", "1", "workers (or groups of them that share a scene) that share one frame's rays"),
        ("render_timeout", "0.0", "seconds after which a silent group is replaced; 0 = 10 times its slowest chunk, at least 30"),
        ("priority", "0", "of this job on a scheduler that others use too; higher goes first"),
        ("overlap", "true", "render, copy, encode and write at once; false = one after the other, with the same pixels"),
    ),
    "fetching": (
        ("mode", '"auto"', '"resident" = hold a block store whole, "dynamic" = blocks that frames need, "auto" = whole where it fits'),
        ("gpu_blocks", "9", "example; blocks in GPU memory at once (LandMark's neighbour_size)"),
        ("gpu_memory", '"8GiB"', "example; for blocks and the rays in hand, in place of gpu_blocks"),
        ("host_memory", '"32GiB"', "example; of a worker, for blocks on their way; default: half of its share of the host's"),
    ),
    "output": (
        ("store", '"{name}.zarr"', "the Zarr store that is rendered into; s3://bucket/name.zarr too"),
        ("rgb", '"uint8"', 'colour: "uint8", "uint16", "float16", "float32", false'),
        ("depth", "false", 'along the view axis, scene units: "float16", "float32", true (= float32)'),
        ("alpha", "false", 'coverage 0 to 1: "uint8", "uint16", "float16", "float32", true (= uint8)'),
        ("background", '"white"', '"white", "black" or "transparent" (premultiplied RGBA)'),
        ("chunk_frames", '"auto"', 'frames rendered and committed together; "auto" = 8, on a GPU 4 to 32 by their bytes'),
        ("frames_per_shard", "1", "frames a file; fixed once the store is made"),
        ("order", '"auto"', '"time", "space" (by fetched blocks), "coarse-to-fine" (every 2^k-th frame first); "auto" = what loads least'),
        ("compressor", '"auto"', '"auto" (= "lz4"), "none", "lz4", "zstd", "jpegxl" (lossless; densest, slow to read, an extra package)'),
    ),
    "images": (
        ("dir", '"{name}"', "images go to {{dir}}/rgb, {{dir}}/depth, {{dir}}/alpha"),
        ("format", '"png"', '"png", "jpeg", "exr"'),
        ("bit_depth", "8", "8 or 16"),
        ("pattern", '"{{name}}.{{frame:05d}}.{{ext}}"', "file names"),
        ("start_number", "0", "added to the frame number in file names"),
    ),
    "video": (
        ("file", '"{name}.mp4"', "the film"),
        ("fps", "24.0", "frames a second; default: the camera file's, else 24"),
        ("codec", '"libx264"', "any video encoder of PyAV"),
        ("crf", "18", "example; quality, lower is better and larger"),
        ("preset", '"medium"', "example; speed of the encoder"),
        ("pix_fmt", '"yuv420p"', 'example; "yuv420p10le" = 10 bits'),
    ),
}  # fmt: skip


def job_text(
    values: Mapping[str, Mapping[str, Any]],
    *,
    name: str,
    title: str = "",
    file: str | None = None,
    remarks: Mapping[str, str] | None = None,
) -> str:
    """The text of a job file. values: section -> key -> value that is written out.

    remarks: 'section.key' -> the comment of a value written out, instead of the usual one.
    Paths among the values are written as they are: relative ones must be relative to the job file.
    """
    lines = [
        _HEAD.format(title=title or f"Job {name!r}", file=shlex.quote(file or f"{name}.toml")),
        f"version = 1\nname = {toml_value(name)}",
    ]
    for section, keys in _KEYS.items():
        given = dict(values.get(section, {}))
        lines.append(f"\n[{section}]")
        for key, shown, meaning in keys:
            comment = meaning.replace("{{", "{").replace("}}", "}")
            if key in given:
                comment = (remarks or {}).get(f"{section}.{key}", comment.removeprefix("example; "))
                text = f"{key} = {toml_value(given.pop(key))}"
            else:
                filled = shown.replace("{{", "\0").replace("{name}", name).replace("\0", "{").replace("}}", "}")
                text = f"# {key} = {filled}"
            lines.append(f"{text:<46} # {comment}")
        frames = given.pop("frame", ())
        if given:
            raise KeyError(f"{section} has no key {', '.join(given)}")
        for frame in frames:
            lines.append("\n[[cameras.frame]]")
            lines += [f"{key} = {toml_value(value)}" for key, value in frame.items()]
    return "\n".join(lines) + "\n"


def toml_value(value: Any) -> str:
    """A value as TOML text: text, path, switch, number, or (nested) list of them."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, Sequence):
        return f"[{', '.join(toml_value(item) for item in value)}]"
    raise TypeError(f"{value!r} has no TOML text")


def scene_name(checkpoint: Path | str) -> str:
    """Name of a job for a scene: bp0-merged-stack.th, bp0-sub0.th -> bp0; a directory its own name; block store x.zarr -> x-frames."""
    name = re.sub(r"-(merged-stack|sub\d+)$", "", place_name(checkpoint).removesuffix(".th"))
    name = re.sub(r"\.zarr$", "-frames", name)  # the frames' own store must not be the scene's
    return re.sub(r"[/\\\x00-\x1f]", "_", name).lstrip(". ") or "flight"
