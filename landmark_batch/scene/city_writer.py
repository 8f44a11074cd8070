"""A checkpoint far larger than memory, written in LandMark's format: torch.save lays out the file, its planes are filled in place.

The merged-stack layout holds all blocks of a channel together, (1, C, B, h, w), so a city made block by block is written with
random access: `PlaneFile` reserves the file (sparse), then takes one [h, w] plane at a time. The zip's checksums are completed at
the end, so that the file is as valid as any that torch.save wrote at once.
"""

from __future__ import annotations

import errno
import os
import secrets
import shutil
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from zipfile import ZipFile, ZipInfo

import torch
from torch import Tensor

from landmark_batch.errors import CheckpointError, DiskFullError

_NO_SPACE = "free some space or choose another directory"
_CENTRAL, _LOCAL, _DESCRIPTOR = b"PK\x01\x02", b"PK\x03\x04", b"PK\x07\x08"


class PlaneFile:
    """A .th file under construction: a context that leaves either the whole file or none.

    content: the checkpoint's dict; its tensors are written now, except those of `planes` {name: shape}, which become zeros in
    content["state_dict"] and are filled by `put`.
    Raises DiskFullError before anything is written where the disk cannot hold it, CheckpointError where it is not writable.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], planes: Mapping[str, tuple[int, ...]]) -> None:
        self.path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        self._shapes = dict(planes)
        need = 4 * sum(int(torch.Size(shape).numel()) for shape in planes.values())
        try:
            free = shutil.disk_usage(path.parent).free
            if need > free:
                raise DiskFullError(f"{path}: needs {need / 1e6:,.1f} MB, {free / 1e6:,.1f} MB are free", remedy=_NO_SPACE)
            self._layout(content)
            self._file = self._temporary.open("r+b")
        except (OSError, RuntimeError) as error:
            self._temporary.unlink(missing_ok=True)
            raise _failure(path, error) from error

    def _layout(self, content: Mapping[str, Any]) -> None:
        """Reserve the file by torch.save without storages, note where each storage lies, write those that are known."""
        known: list[tuple[Tensor, str | None]] = []

        def note(value: Any, key: str | None) -> None:
            if isinstance(value, Tensor):
                if not value.is_contiguous() or value.untyped_storage().nbytes() != value.numel() * value.element_size():
                    raise ValueError(f"{key}: not a contiguous tensor with a storage of its own")
                known.append((value, key))
            elif isinstance(value, Mapping):
                for name, item in value.items():
                    note(item, name)

        empty = {name: torch.empty(shape) for name, shape in self._shapes.items()}  # reserved, never touched: no memory
        whole = {**content, "state_dict": {**empty, **content["state_dict"]}}
        note(whole, None)
        with self._temporary.open("xb") as fresh, torch.serialization.skip_data():
            torch.save(whole, fresh)
        with ZipFile(self._temporary) as archive:
            infos = {info.filename.partition("/")[2]: info for info in archive.infolist()}
        self._infos = [infos[f"data/{k}"] for k in range(len(known))]
        self._offsets: dict[str, int] = {}
        self._sums: dict[int, dict[int, tuple[int, int]]] = {k: {} for k in range(len(known))}
        self._keys: dict[str, int] = {}
        with self._temporary.open("r+b") as file:
            starts = [_data_start(file, info) for info in self._infos]
            for k, (tensor, name) in enumerate(known):
                if name in empty:
                    self._offsets[name], self._keys[name] = starts[k], k
                else:
                    data = tensor.numpy().tobytes()
                    file.seek(starts[k])
                    file.write(data)
                    self._sums[k][0] = (zlib.crc32(data), len(data))

    def put(self, name: str, channel: int, block: int, plane: Tensor) -> None:
        """Fill plane [h, w] of one channel and block of tensor `name` (1, C, B, h, w). Any order, each once."""
        _, _, blocks, h, w = self._shapes[name]
        data = plane.float().contiguous().numpy().data.cast("B")
        at = (channel * blocks + block) * h * w * 4
        try:
            self._file.seek(self._offsets[name] + at)
            self._file.write(data)
        except OSError as error:
            raise _failure(self.path, error) from error
        self._sums[self._keys[name]][at] = (zlib.crc32(data), len(data))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None:
                self._complete()
                self._file.flush()
                os.fsync(self._file.fileno())
                self._temporary.replace(self.path)
        except OSError as failure:
            raise _failure(self.path, failure) from failure
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)

    def _complete(self) -> None:
        """Write each storage's checksum into the archive's directory and behind its data."""
        file, sums = self._file, {}
        for k, info in enumerate(self._infos):
            total, end = 0, 0
            for at, (crc, length) in sorted(self._sums[k].items()):
                if at != end:
                    raise ValueError(f"{self.path}: {info.filename} was not filled from byte {end} on")
                total, end = _combine(total, crc, length), at + length
            if end != info.file_size:
                raise ValueError(f"{self.path}: {info.filename} was not filled from byte {end} on")
            sums[info.filename.encode()] = total
            start = _data_start(file, info) + info.file_size
            file.seek(start)
            if file.read(4) == _DESCRIPTOR:
                file.write(struct.pack("<I", total))
        _patch_directory(file, self._temporary, sums)


def _failure(path: Path, error: OSError | RuntimeError) -> CheckpointError | DiskFullError:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return DiskFullError(f"{path}: the disk is full", remedy=_NO_SPACE)
    why = (error.strerror or error) if isinstance(error, OSError) else "torch could not write all of it"
    return CheckpointError(f"{path}: cannot write it: {why}", remedy="check the directory, its permissions and its free space")


def _data_start(file: Any, info: ZipInfo) -> int:
    file.seek(info.header_offset)
    header = file.read(30)
    if header[:4] != _LOCAL:
        raise RuntimeError(f"{info.filename}: no local header")
    name, extra = struct.unpack("<HH", header[26:30])
    return int(info.header_offset) + 30 + int(name) + int(extra)


def _patch_directory(file: Any, path: Path, sums: Mapping[bytes, int]) -> None:
    with ZipFile(path) as archive:
        at = archive.start_dir
    file.seek(at)
    directory = file.read()
    position = 0
    while directory[position : position + 4] == _CENTRAL:
        name, extra, comment = struct.unpack("<HHH", directory[position + 28 : position + 34])
        filename = directory[position + 46 : position + 46 + name]
        if filename in sums:
            file.seek(at + position + 16)
            file.write(struct.pack("<I", sums[filename]))
        position += 46 + name + extra + comment


def _combine(first: int, second: int, length: int) -> int:
    """CRC-32 of two texts joined, from their own checksums and the second one's length (zlib's crc32_combine)."""
    return _advance(first, length) ^ second


def _advance(crc: int, length: int) -> int:
    """The checksum state after `length` zero bytes: multiplication by x^(8·length) in GF(2)[x] modulo the CRC polynomial."""
    power, factor, exponent = 0x80000000, 0x00800000, length  # 1 and x^8, bit-reversed
    while exponent:
        if exponent & 1:
            power = _multiply(power, factor)
        factor = _multiply(factor, factor)
        exponent >>= 1
    return _multiply(crc, power)


def _multiply(a: int, b: int) -> int:
    product = 0
    for bit in range(31, -1, -1):
        if a >> bit & 1:
            product ^= b
        b = (b >> 1) ^ (0xEDB88320 if b & 1 else 0)
    return product
