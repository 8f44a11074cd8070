"""A Zarr store whose writes become visible only when they are published: all of a commit's files, durable, or none."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeAlias

from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype
from zarr.storage import LocalStore

from landmark_batch.errors import StaleWriterError
from landmark_batch.object_path import ObjectPath, StorePath

from . import durable
from .layout import PARTIAL
from .object_staging import ObjectFrames, ObjectStage

_counter = itertools.count()


@dataclass(frozen=True)
class StagedFile:
    temporary: Path
    final: Path
    size: int


class Stage:
    """Files written under temporary names that carry the writer's tag, waiting to be renamed. Thread-safe.

    After `discard` nothing can be added any more: codec threads that come late are refused and leave no file.
    """

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._changed = threading.Condition()
        self._files: list[StagedFile] = []
        self._writing = 0
        self._closed = False

    def write(self, final: StorePath, *parts: bytes | bytearray | memoryview) -> None:
        """Write these parts to the temporary file of `final` and fsync it. Raises OSError: then it is gone again."""
        with self.file(final) as temporary:
            durable.write_new(temporary, parts)

    @contextmanager
    def file(self, final: StorePath, *, absent: bool = False) -> Iterator[Path]:
        """The temporary file of `final`, which whoever asks makes and fsyncs meanwhile. absent: it may be missing at the end, and nothing
        is published then.
        """
        assert isinstance(final, Path)
        temporary = final.with_name(f"{final.name}.{self._tag}.{next(_counter)}{PARTIAL}")
        with self._changed:
            if self._closed:
                raise StaleWriterError(f"{final}: this commit was given up")
            self._writing += 1
        size = None
        try:
            yield temporary
            if not absent or temporary.exists():
                size = temporary.stat().st_size
        finally:
            with self._changed:
                if size is not None:
                    self._files.append(StagedFile(temporary, final, size))
                self._writing -= 1
                self._changed.notify_all()

    def publish(self) -> dict[StorePath, int]:
        """Rename every file to its name, fsync the directories. Returns {file: bytes}. Raises OSError."""
        with self._changed:
            files, self._files = self._files, []
        published: dict[StorePath, int] = {}
        for position, item in enumerate(files):
            try:
                item.temporary.replace(item.final)
            except OSError:
                with self._changed:
                    self._files = files[position:]
                raise
            published[item.final] = item.size
            durable.step("renamed")
        durable.sync_directories(path.parent for path in published)
        return published

    def discard(self) -> None:
        """Remove what was not published and refuse all that is still to come."""
        with self._changed:
            self._closed = True
            self._changed.wait_for(lambda: self._writing == 0, timeout=60)
            files, self._files = self._files, []
        for item in files:
            item.temporary.unlink(missing_ok=True)


class StagedStore(LocalStore):
    """LocalStore of one FrameStore. Writes go to its stage; metadata is served from memory, so that damaged zarr.json files do not matter.

    metadata: {key such as 'rgb/zarr.json': text}.
    """

    def __init__(
        self, root: Path | str, *, read_only: bool = False, metadata: Mapping[str, str] | None = None, stage: Stage | None = None
    ) -> None:
        super().__init__(root, read_only=read_only)
        self._metadata = dict(metadata or {})
        self._stage = stage

    def with_read_only(self, read_only: bool = False) -> Self:
        return type(self)(self.root, read_only=read_only, metadata=self._metadata, stage=self._stage)

    def _write(self, key: str, value: Buffer) -> None:
        self._check_writable()
        if self._stage is None:
            raise PermissionError(f"{self.root / key}: this store was opened to be read")
        self._stage.write(self.root / key, value.as_buffer_like())

    async def set(self, key: str, value: Buffer) -> None:
        await asyncio.to_thread(self._write, key, value)

    def set_sync(self, key: str, value: Buffer) -> None:
        self._write(key, value)

    async def get(self, key: str, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        text = self._metadata.get(key)
        if text is not None:
            return (prototype or default_buffer_prototype()).buffer.from_bytes(text.encode())
        return await super().get(key, prototype, byte_range)

    def get_sync(self, key: str, *, prototype: BufferPrototype | None = None, byte_range: ByteRequest | None = None) -> Buffer | None:
        text = self._metadata.get(key)
        if text is not None:
            return (prototype or default_buffer_prototype()).buffer.from_bytes(text.encode())
        return super().get_sync(key, prototype=prototype, byte_range=byte_range)


AnyStage: TypeAlias = Stage | ObjectStage


def make_stage(root: StorePath, tag: str) -> AnyStage:
    """For one commit after another into the store at `root`."""
    return ObjectStage() if isinstance(root, ObjectPath) else Stage(tag)


def staged_store(
    root: StorePath, *, read_only: bool = False, metadata: Mapping[str, str] | None = None, stage: AnyStage | None = None
) -> StagedStore | ObjectFrames:
    """Zarr's view of the frame store at `root`."""
    if isinstance(root, ObjectPath):
        return ObjectFrames(root, read_only=read_only, metadata=metadata, stage=stage if isinstance(stage, ObjectStage) else None)
    return StagedStore(root, read_only=read_only, metadata=metadata, stage=stage if isinstance(stage, Stage) else None)
