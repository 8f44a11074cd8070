"""Bytes of a block store by key: from a folder, over HTTP, an object store, or whatever fsspec knows, with retries where it is remote."""

from __future__ import annotations

import http.client
import importlib
import logging
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any, Protocol, TypeVar

from landmark_batch.errors import CheckpointError, StoreError
from landmark_batch.object_client import SCHEMES, installed
from landmark_batch.object_path import ObjectPath, as_store_path
from landmark_batch.scene.location import SceneLocation, as_location

logger = logging.getLogger(__name__)

T = TypeVar("T")

_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_FINAL = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class TransientError(Exception):
    """A read that may succeed when it is tried again: a lost connection, a busy server, a body that broke off."""


class Source(Protocol):
    """Values of a store by key. FileNotFoundError for a key that is not there, OSError or TransientError for a failed read."""

    remote: bool

    def where(self, key: str) -> str:
        """The file or URL behind a key, for people."""

    def read(self, key: str) -> bytes:
        """The whole value."""

    def read_into(self, key: str, into: memoryview) -> int:
        """Put the value into a buffer of bytes; returns its length, or one more than the buffer holds where it is longer."""


class FolderSource:
    """A store in a directory: read straight into the caller's memory."""

    remote = False

    def __init__(self, root: Path) -> None:
        self.root = root

    def where(self, key: str) -> str:
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def read_into(self, key: str, into: memoryview) -> int:
        with self.open(key) as file:
            return _fill(file.readinto, into)

    def open(self, key: str) -> FileIO:
        """The value as a file, with no buffer between it and the caller's memory."""
        return open(self.root / key, "rb", buffering=0)  # noqa: PTH123


class HttpSource:
    """A store behind http:// or https://, one GET a value. timeout: seconds without a byte."""

    remote = True

    def __init__(self, root: str, timeout: float) -> None:
        self.root, self.timeout = root, timeout

    def where(self, key: str) -> str:
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes:
        return self._get(key, lambda response: bytes(response.read()))

    def read_into(self, key: str, into: memoryview) -> int:
        def take(response: http.client.HTTPResponse) -> int:
            count = _fill(response.readinto, into)
            if response.length:  # what was announced and did not come, unless it is more than fits
                if count < into.nbytes:
                    raise http.client.IncompleteRead(b"", response.length)
                return into.nbytes + 1
            return count

        return self._get(key, take)

    def _get(self, key: str, take: Callable[[http.client.HTTPResponse], T]) -> T:
        try:
            with urllib.request.urlopen(self.where(key), timeout=self.timeout) as response:
                return take(response)
        except urllib.error.HTTPError as error:
            with error:
                if error.code in (404, 410):
                    raise FileNotFoundError(2, f"HTTP {error.code}") from None
                if error.code in (401, 403):
                    raise PermissionError(13, f"HTTP {error.code} {error.reason}") from None
                if error.code in _TRANSIENT_STATUS:
                    raise TransientError(f"HTTP {error.code} {error.reason}") from None
                raise OSError(5, f"HTTP {error.code} {error.reason}") from None
        except (http.client.InvalidURL, ValueError) as error:
            raise OSError(22, str(error)) from None
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise TransientError(str(getattr(error, "reason", error)) or type(error).__name__) from error


class ObjectSource:
    """A store in an object store, one GET a value, by the library and the environment variables that frame stores take."""

    remote = True

    def __init__(self, root: ObjectPath) -> None:
        self.root = root

    def where(self, key: str) -> str:
        return str(self.root / key)

    def read(self, key: str) -> bytes:
        return (self.root / key).read_bytes()

    def read_into(self, key: str, into: memoryview) -> int:
        return _put(self.read(key), into)


class FsspecSource:
    """A store behind any other URL that fsspec has a file system for (memory://, sftp://)."""

    remote = True

    def __init__(self, root: str) -> None:
        try:
            fsspec: Any = importlib.import_module("fsspec")
            self._files, self._path = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            scheme = root.partition("://")[0]
            package = "'landmark-batch[cloud]'" if scheme.lower() in SCHEMES else "the fsspec package of that store"
            raise CheckpointError(
                f"{root}: nothing installed here reads {scheme}:// ({error})",
                remedy=f"install {package}, on every worker host too, or copy the store to a local folder",
            ) from None
        self.root = root

    def where(self, key: str) -> str:
        return f"{self.root}/{key}"

    def read(self, key: str) -> bytes:
        try:
            return bytes(self._files.cat_file(f"{self._path}/{key}"))
        except _FINAL:
            raise
        except Exception as error:  # each file system has errors of its own
            raise TransientError(f"{type(error).__name__}: {error}"[:300]) from error

    def read_into(self, key: str, into: memoryview) -> int:
        return _put(self.read(key), into)


@dataclass(frozen=True)
class Retry:
    """attempts: reads of one value before it is an error. delay: seconds before the second, doubled before each further one."""

    attempts: int = 5
    delay: float = 0.25

    def run(self, read: Callable[[], T], what: str) -> T:
        """read(), again after TransientError. Raises StoreError naming `what` when the last attempt fails too."""
        for attempt in range(1, self.attempts + 1):
            try:
                return read()
            except TransientError as error:
                if attempt == self.attempts:
                    raise StoreError(
                        f"{what}: cannot read it: {error} ({attempt} attempts)",
                        remedy="check the connection and the server, then run the same command again",
                    ) from error
                wait = self.delay * 2 ** (attempt - 1)
                logger.warning("%s: %s; trying again in %.2g s", what, error, wait)
                time.sleep(wait)
        raise ValueError(f"attempts = {self.attempts}: at least 1")


def open_source(location: SceneLocation, *, timeout: float = 60.0) -> Source:
    """The source behind a path or URL; nothing is read yet. Raises CheckpointError for a URL that nothing installed here can read,
    ConfigError for one that names no place in a bucket.
    """
    place = as_location(location)
    if isinstance(place, Path):
        return FolderSource(place)
    if place.lower().startswith(("http://", "https://")):
        return HttpSource(place, timeout)
    scheme, _, rest = place.partition("://")
    if scheme.lower() in SCHEMES and installed():
        bucket, _, key = rest.partition("/")
        found = as_store_path(place) if key.strip("/") else ObjectPath(f"{scheme.lower()}://{bucket}", "")
        assert isinstance(found, ObjectPath)
        return ObjectSource(found)
    return FsspecSource(place)


def _put(data: bytes, into: memoryview) -> int:
    """Put the value into a buffer of bytes; returns its length, or one more than the buffer holds where it is longer."""
    if len(data) <= into.nbytes:
        into[: len(data)] = data
    return min(len(data), into.nbytes + 1)


def _fill(readinto: Callable[[memoryview], int | None], into: memoryview) -> int:
    """Read until the buffer is full or the input ends; one more than the buffer holds where something is left."""
    filled = read_piece(readinto, into)
    return filled if filled < into.nbytes else filled + bool(readinto(memoryview(bytearray(1))))


def read_piece(readinto: Callable[[memoryview], int | None], into: memoryview) -> int:
    """Read until the buffer is full or the input ends; returns how many bytes came."""
    filled = 0
    while filled < into.nbytes:
        count = readinto(into[filled:])
        if not count:
            break
        filled += count
    return filled
