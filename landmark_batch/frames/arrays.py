"""The Zarr side of a store: codecs, arrays, attributes. Every array is opened here, always with write_empty_chunks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, StorePath

from .jpegxl import JpegXl
from .object_staging import ObjectFrames
from .spec import StoreSpec
from .staging import StagedStore

Array: TypeAlias = "zarr.Array[Any]"  # not generic at run time before zarr 3.1.4
_CONFIG: Any = {"write_empty_chunks": True}  # a black frame is a frame; also, comparing with the fill value costs more than writing
_KEYS: Any = {"name": "default", "separator": "."}
DIMENSIONS = {"rgb": ("frame", "y", "x", "channel"), "depth": ("frame", "y", "x"), "alpha": ("frame", "y", "x")}
COORDINATES = ("frame", "time", "pose", "focal", "intrinsics", "done")
_COORDINATE_DIMENSIONS = {"pose": ("frame", "row", "column"), "intrinsics": ("frame", "lens")}
_COORDINATE_ATTRIBUTES = {
    "frame": {"long_name": "index in the camera file"},
    "time": {"long_name": "seconds from the first frame"},
    "pose": {"long_name": "camera to world, OpenGL axes (x right, y up, looks along -z)"},
    "focal": {"long_name": "horizontal focal length in pixels"},
    "intrinsics": {"long_name": "fl_x, fl_y, cx, cy in pixels"},
    "done": {"long_name": "this frame is rendered; where false, its pixels mean nothing"},
}


def codecs(dtype: str, compressor: str) -> tuple[ArrayBytesCodec | Literal["auto"], list[BytesBytesCodec]]:
    """Codecs of an output: what makes bytes of pixels, and what is done to the bytes, always ending in a checksum.

    'auto' is lz4 over shuffled bits, by measurement on rendered 1920×1080 uint8 frames, one core: 556 MB/s at ratio 1.43; without the
    shuffle 783 MB/s at 1.41 (on smoother frames 648 against 399 MB/s, at 1.31 against 1.44); zstd alone 191 MB/s at 1.78, over shuffled
    bits 203 MB/s at 1.74. For float depth, lz4 over shuffled bytes: 875 MB/s at 2.44, zstd 298 MB/s at 3.03. A renderer shares its
    cores with the codec, a disk is cheap: lz4. Frames whose bits save next to nothing are written without that shuffle (encode.py).

    JPEG XL at effort 1: 478 MB/s at 3.15, but reading takes 75 ms a frame where lz4 takes 6, and a package more: no default. Effort 2 and 3
    write 47 and 20 MB/s, at 3.31 and 3.86. Floats of such a store are compressed as by 'zstd': for depth JPEG XL gave 159 MB/s at 3.69,
    and libjxl 0.12 takes no float32 of mixed signs, 0.11 changes not-a-numbers of float16.
    """
    if compressor == "jpegxl" and np.dtype(dtype).kind == "u":
        return JpegXl((("effort", 1), ("lossless", True))), [Crc32cCodec()]
    if compressor == "none":
        return "auto", [Crc32cCodec()]
    shuffle = "shuffle" if np.dtype(dtype).kind == "f" else "bitshuffle"
    name = "zstd" if compressor in ("zstd", "jpegxl") else "lz4"
    blosc = BloscCodec(typesize=np.dtype(dtype).itemsize, cname=name, clevel=1, shuffle=shuffle)  # type: ignore[arg-type]
    return "auto", [blosc, Crc32cCodec()]


def create_outputs(store: LocalStore, spec: StoreSpec, units: Mapping[str, Mapping[str, Any]]) -> None:
    """Metadata of rgb, depth, alpha in an empty store; no chunk is written."""
    for output in spec.outputs:
        shape = spec.frame_shape(output.name)
        serializer, compressors = codecs(output.dtype, spec.compressor)
        zarr.create_array(
            store,
            name=output.name,
            shape=(spec.frames, *shape),
            chunks=(1, *shape),
            shards=(spec.frames_per_shard, *shape) if spec.frames_per_shard > 1 else None,
            dtype=output.dtype,
            serializer=serializer,
            compressors=compressors,
            fill_value=0,
            dimension_names=DIMENSIONS[output.name],
            chunk_key_encoding=_KEYS,
            attributes=dict(units[output.name]),
            config=_CONFIG,
        )


def create_coordinate(store: LocalStore, name: str, values: NDArray[Any]) -> None:
    """A whole coordinate array in one checksummed file."""
    array = zarr.create_array(
        store,
        name=name,
        shape=values.shape,
        chunks=values.shape,
        dtype=values.dtype,
        compressors=[Crc32cCodec()],
        fill_value=0,
        dimension_names=_COORDINATE_DIMENSIONS.get(name, ("frame",)),
        chunk_key_encoding=_KEYS,
        attributes=dict(_COORDINATE_ATTRIBUTES[name]),
        config=_CONFIG,
    )
    array[...] = values


def open_array(store: StagedStore | ObjectFrames, name: str) -> Array:
    """An array of the store, metadata from the store's own copy.

    `zarr.open_array(config=...)` ignores its config for an array that exists, so the array is made again with it.
    """
    found = zarr.open_array(StorePath(store, name), mode="r" if store.read_only else "r+", zarr_format=3)
    return zarr.Array(zarr.AsyncArray(found.metadata, found.store_path, config=_CONFIG))
