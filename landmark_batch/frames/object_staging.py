"""A commit of frames into an object store, and Zarr's view of a frame store there.

An object is written whole or not at all, so that there are no temporary names: a commit's files wait in memory until they are
published. Each is written over the state that was seen before the writer's right to write was last checked, so that what comes late
of a writer whose time is over is refused by the store itself.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Self

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from landmark_batch.errors import StaleWriterError
from landmark_batch.object_path import ObjectPath, StorePath, Version, at_once

from . import durable


class ObjectStage:
    """As `staging.Stage`: files that wait to be published. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: list[tuple[ObjectPath, bytes]] = []
        self._seen: dict[ObjectPath, Version | None] = {}
        self._closed = False

    def look(self, finals: Iterable[StorePath]) -> list[StorePath]:
        """Note in which state these objects are now; returns those that there are. To be called before the fence is read."""
        chosen = [path for path in dict.fromkeys(finals) if isinstance(path, ObjectPath)]
        found = dict(zip(chosen, at_once(ObjectPath.found, chosen), strict=True))
        with self._lock:
            self._seen = {path: None if stat is None else stat.version for path, stat in found.items()}
        return [path for path, stat in found.items() if stat is not None]

    def write(self, final: StorePath, *parts: bytes | bytearray | memoryview) -> None:
        """Keep these bytes for `final`. Raises StaleWriterError after `discard`."""
        assert isinstance(final, ObjectPath)
        data = b"".join(parts)
        with self._lock:
            if self._closed:
                raise StaleWriterError(f"{final}: this commit was given up")
            self._files.append((final, data))

    def publish(self) -> dict[StorePath, int]:
        """Write every object. Returns {object: bytes}. Raises FileExistsError where another has written one since `look`: then it may
        be called again.
        """
        with self._lock:
            files, seen = list(self._files), dict(self._seen)

        def put(item: tuple[ObjectPath, bytes]) -> None:
            path, data = item
            if path in seen:
                path.put(data, over=seen[path])
            else:
                path.replace_bytes(data)
            durable.step("renamed")

        at_once(put, files)
        with self._lock:
            self._files, self._seen = [], {}
        return {path: len(data) for path, data in files}

    def discard(self) -> None:
        """Forget what was not published and refuse all that is still to come."""
        with self._lock:
            self._closed = True
            self._files, self._seen = [], {}


class ObjectFrames(Store):
    """Zarr store of one frame store in an object store. Writes go to its stage; metadata is served from memory, as in StagedStore."""

    supports_writes = True
    supports_deletes = False
    supports_listing = True

    def __init__(
        self, root: ObjectPath, *, read_only: bool = False, metadata: Mapping[str, str] | None = None, stage: ObjectStage | None = None
    ) -> None:
        super().__init__(read_only=read_only)
        self.root = root
        self._metadata = dict(metadata or {})
        self._stage = stage

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ObjectFrames) and self.root == other.root

    def __str__(self) -> str:
        return str(self.root)

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, read_only=read_only, metadata=self._metadata, stage=self._stage)

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        kind = (prototype or default_buffer_prototype()).buffer
        text = self._metadata.get(key)
        if text is not None:
            return kind.from_bytes(text.encode())
        data = await asyncio.to_thread(_read, self.root / key, byte_range)
        return None if data is None else kind.from_bytes(data)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        return list(await asyncio.gather(*(self.get(key, prototype, byte_range) for key, byte_range in key_ranges)))

    async def exists(self, key: str) -> bool:
        return key in self._metadata or await asyncio.to_thread((self.root / key).is_file)

    async def set(self, key: str, value: Buffer) -> None:
        self._check_writable()
        if self._stage is None:
            raise PermissionError(f"{self.root / key}: this store was opened to be read")
        self._stage.write(self.root / key, value.to_bytes())

    async def delete(self, key: str) -> None:
        raise PermissionError(f"{self.root / key}: objects of a frame store are not deleted through Zarr")

    async def list(self) -> AsyncIterator[str]:
        for path in await asyncio.to_thread(self.root.tree):
            yield path.below(self.root)

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        async for key in self.list():
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        folder = self.root / prefix if prefix else self.root
        for path in await asyncio.to_thread(lambda: [*folder.iterdir()]):
            yield path.name


def _read(path: ObjectPath, byte_range: ByteRequest | None) -> bytes | None:
    try:
        if byte_range is None:
            return path.read_bytes()
        if isinstance(byte_range, RangeByteRequest):
            return path.read_range(byte_range.start, byte_range.end)
        size = path.stat().st_size
        start = byte_range.offset if isinstance(byte_range, OffsetByteRequest) else max(0, size - byte_range.suffix)
        return path.read_range(start, size)
    except FileNotFoundError:
        return None
