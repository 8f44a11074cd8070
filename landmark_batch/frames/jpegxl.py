"""JPEG XL, lossless, as a Zarr codec: the name and configuration are those of imagecodecs, so that its readers read these stores."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer, NDBuffer
from zarr.core.common import JSON
from zarr.registry import register_codec

from landmark_batch.errors import ConfigError

NAME = "imagecodecs_jpegxl"
_READING = ("index", "keeporientation")  # options of the reader alone; all others but the threads are the writer's


def library() -> Any:
    """The module imagecodecs. Raises ConfigError where it is not installed, or was built without JPEG XL."""
    try:
        import imagecodecs
    except ImportError:
        found = False
    else:
        found = bool(imagecodecs.JPEGXL.available)
    if not found:
        raise ConfigError(
            "JPEG XL (output.compressor = 'jpegxl') needs the package imagecodecs",
            remedy="pip install 'landmark-batch[jpegxl]', on every worker host too, or choose another compressor for a new store",
        )
    return imagecodecs


def require_compressor(compressor: str) -> None:
    """Raises ConfigError if this machine lacks what a store with this compressor is written and read with."""
    if compressor == "jpegxl":
        library()


@dataclass(frozen=True)
class JpegXl(ArrayBytesCodec):
    """A chunk [..., H, W] or [..., H, W, C] as a JPEG XL image; axes of length 1 are left out.

    options: of imagecodecs' `jpegxl_encode` and `jpegxl_decode`, by name; all that the array's metadata say.
    """

    options: tuple[tuple[str, JSON], ...] = ()
    is_fixed_size = False

    @classmethod
    def from_dict(cls, data: dict[str, JSON]) -> Self:
        configuration = data.get("configuration")
        return cls(tuple(sorted(configuration.items())) if isinstance(configuration, dict) else ())

    def to_dict(self) -> dict[str, JSON]:
        return {"name": NAME, "configuration": dict(self.options)}

    def to_image(self, chunk: NDArray[Any]) -> bytes:
        """The image's bytes. It takes one thread, unless the options say otherwise. Raises ConfigError where the library is missing."""
        options: dict[str, Any] = {"numthreads": 1, **dict(self.options)}
        picture = np.ascontiguousarray(np.atleast_2d(np.squeeze(chunk)))
        encoded: bytes = library().jpegxl_encode(picture, **{name: value for name, value in options.items() if name not in _READING})
        return encoded

    def to_pixels(self, data: NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """Pixels of that shape and dtype. Raises ValueError, RuntimeError for other bytes, ConfigError where the library is missing."""
        options: dict[str, Any] = {"numthreads": 1, **dict(self.options)}
        chosen = {name: value for name, value in options.items() if name in (*_READING, "numthreads")}
        picture: NDArray[Any] = library().jpegxl_decode(data, **chosen)
        if picture.dtype != dtype or picture.size != np.prod(shape, dtype=np.int64):
            raise ValueError(f"it holds {picture.dtype} {picture.shape}, not {dtype} {shape}")
        return picture.reshape(shape)

    async def _encode_single(self, chunk_data: NDBuffer, chunk_spec: ArraySpec) -> Buffer | None:
        encoded = await asyncio.to_thread(self.to_image, chunk_data.as_numpy_array())
        return chunk_spec.prototype.buffer.from_bytes(encoded)

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> NDBuffer:
        dtype = chunk_spec.dtype.to_native_dtype()
        decoded = await asyncio.to_thread(self.to_pixels, chunk_data.as_numpy_array(), chunk_spec.shape, dtype)
        return chunk_spec.prototype.nd_buffer.from_numpy_array(decoded)

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        raise ValueError("an image's size follows from its pixels")


# Also an entry point of the package, for processes that import none of it. Where imagecodecs' own class is registered as well, Zarr
# would warn that it takes any of them; they read and write the same.
register_codec(NAME, JpegXl)
if NAME not in zarr.config.get("codecs", {}):
    zarr.config.set({f"codecs.{NAME}": f"{JpegXl.__module__}.{JpegXl.__qualname__}"})
