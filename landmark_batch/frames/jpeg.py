"""JPEG with an sRGB profile and a comment that can be read back without decoding."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, UnidentifiedImageError

_END = b"\xff\xd9"


@lru_cache(maxsize=1)
def srgb_profile() -> bytes:
    """An ICC sRGB profile whose bytes are the same in every run (its date is fixed)."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = bytes.fromhex("07E8 0001 0001 0000 0000 0000")  # 2024-01-01 00:00:00
    profile[84:100] = bytes(16)  # the profile's own digest: 0 = not calculated
    return bytes(profile)


def encode_jpeg(pixels: NDArray[np.uint8], text: Mapping[str, str] | None = None, *, quality: int = 95, srgb: bool = True) -> bytes:
    """A whole JPEG file. pixels: [H, W] or [H, W, 3] uint8. quality: 1..100; from 90 on colour keeps its full resolution (4:4:4).

    text: stored as one JSON comment. Raises ValueError for another dtype or shape.
    """
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"JPEG holds uint8 of [H, W] or [H, W, 3], not {pixels.dtype} {pixels.shape}")
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(
        buffer,
        "JPEG",
        quality=quality,
        subsampling=0 if quality >= 90 else 2,
        comment=json.dumps(dict(text or {})).encode(),
        icc_profile=srgb_profile() if srgb else None,
    )
    return buffer.getvalue()


def read_jpeg_text(path: Path) -> dict[str, str]:
    """The comment `encode_jpeg` wrote; empty for a file that is not whole or not ours. Raises OSError."""
    with path.open("rb") as file:
        try:
            file.seek(-2, 2)
        except OSError:
            return {}
        if file.read() != _END:
            return {}
        file.seek(0)
        try:
            with Image.open(file, formats=["JPEG"]) as image:
                comment = image.info.get("comment", b"")
            found = json.loads(comment if isinstance(comment, str) else comment.decode())
        except (UnidentifiedImageError, SyntaxError, ValueError):
            return {}
    return {str(key): str(value) for key, value in found.items()} if isinstance(found, dict) else {}
