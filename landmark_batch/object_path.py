"""ObjectPath: a place in an object store, with the verbs of pathlib that a frame store needs, and conditional writes.

Objects are written whole or not at all and know no rename, no lock and no append. What replaces these is a condition: an object is
written only where there is none yet, or only over the very state that the writer has seen (`put`). A request whose answer was lost is
told from one that was refused by reading back.
"""

from __future__ import annotations

import errno
import io
import os
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar, cast
from urllib.parse import unquote, urlsplit

from landmark_batch.errors import ConfigError
from landmark_batch.object_client import RETRY_SECONDS, SCHEMES, ObjectStoreError, call, provider, translated, version_of

_ATTEMPTS = 4
_DELAY = 0.2  # seconds before the second attempt, doubled before each further one
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_BATCH = 1000  # keys of one delete
_BESIDE = 16  # requests

T = TypeVar("T")
R = TypeVar("R")
Version = dict[str, str]  # names a state of an object; what is in it is the provider's business


@dataclass(frozen=True)
class ObjectStat:
    """st_size: bytes. st_mtime: seconds since 1970 by the server's clock. version: of this state, for `ObjectPath.put`."""

    st_size: int
    st_mtime: float
    version: Version


@dataclass(frozen=True, order=True)
class ObjectPath:
    """bucket: 's3://name'. key: of an object or of what lies below it, without slashes at its ends.

    It is no os.PathLike: handed to what works on files it is a TypeError, never a file with an odd name.
    Every method that asks the server raises ObjectStoreError where it cannot answer.
    """

    bucket: str
    key: str

    def __str__(self) -> str:
        return f"{self.bucket}/{self.key}" if self.key else self.bucket

    # -- names

    def __truediv__(self, name: str) -> ObjectPath:
        return ObjectPath(self.bucket, f"{self.key}/{name}".strip("/"))

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def stem(self) -> str:
        return Path(self.name).stem

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    @property
    def parent(self) -> ObjectPath:
        return ObjectPath(self.bucket, self.key.rpartition("/")[0])

    def with_name(self, name: str) -> ObjectPath:
        return self.parent / name

    def below(self, root: ObjectPath) -> str:
        """The key from `root` on."""
        return self.key.removeprefix(root.key).lstrip("/")

    # -- looking

    def stat(self) -> ObjectStat:
        """Raises FileNotFoundError."""
        return _stat(self._call("head", self.key))

    def is_file(self) -> bool:
        return self.found() is not None

    def found(self) -> ObjectStat | None:
        """As `stat`, None where there is no such object."""
        try:
            return self.stat()
        except FileNotFoundError:
            return None

    def is_dir(self) -> bool:
        """Whether there is any object below."""
        return next(self._listed(), None) is not None

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def sizes(self) -> dict[str, int]:
        """{name: bytes} of the objects right below."""
        found = self._call("list_with_delimiter", f"{self.key}/")
        return {str(item["path"]).rpartition("/")[2]: int(item["size"]) for item in found["objects"]}

    def iterdir(self) -> Iterator[ObjectPath]:
        """Objects right below, and names that have objects below them."""
        found = self._call("list_with_delimiter", f"{self.key}/")
        keys = [str(item["path"]) for item in found["objects"]] + [str(prefix).rstrip("/") for prefix in found["common_prefixes"]]
        yield from (ObjectPath(self.bucket, key) for key in sorted(keys))

    def glob(self, pattern: str) -> Iterator[ObjectPath]:
        """Those of `iterdir` whose name fits the pattern."""
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def tree(self) -> list[ObjectPath]:
        """Every object below."""
        return sorted(self._listed())

    def _listed(self) -> Iterator[ObjectPath]:
        batches = iter(self._call("list", f"{self.key}/"))
        while True:
            try:
                batch = next(batches, None)
            except Exception as error:
                raise translated(error, str(self), self.bucket) from error
            if batch is None:
                return
            yield from (ObjectPath(self.bucket, str(item["path"])) for item in batch)

    # -- reading

    def read(self) -> tuple[bytes, ObjectStat]:
        """The whole object and its state. Raises FileNotFoundError."""
        attempt, began = 0, time.monotonic()
        while True:
            try:
                answer = self._call("get", self.key)
                return self._body(answer.bytes), _stat(answer.meta)
            except ObjectStoreError as error:
                attempt = _again(error, attempt, began)

    def read_bytes(self) -> bytes:
        """Raises FileNotFoundError."""
        return self.read()[0]

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Raises FileNotFoundError."""
        return self.read_bytes().decode(encoding, errors)

    def read_range(self, start: int, end: int) -> bytes:
        """Bytes from `start` to before `end`; both lie in the object. Raises FileNotFoundError."""
        if start >= end:
            return b""
        attempt, began = 0, time.monotonic()
        while True:
            try:
                return self._body(lambda: self._call("get_range", self.key, start=start, end=end))
            except ObjectStoreError as error:
                attempt = _again(error, attempt, began)

    def _body(self, take: Any) -> bytes:
        try:
            return bytes(take())
        except (OSError, ObjectStoreError):
            raise
        except Exception as error:
            raise translated(error, str(self), self.bucket) from error

    # -- writing

    def put(self, data: bytes, *, over: Version | None) -> Version:
        """Write the object only where there is none (over=None), or only over that state of it. Returns the new state.

        Raises FileExistsError where there is another state: then nothing was written.
        """
        mode: Any = "create" if over is None else over
        attempt, began = 0, time.monotonic()
        while True:
            try:
                return version_of(self._call("put", self.key, data, mode=mode, use_multipart=False))
            except FileNotFoundError:
                raise FileExistsError(errno.EEXIST, "removed by another meanwhile", str(self)) from None
            except FileExistsError:
                stands = self._holds(data)  # of an attempt whose answer was lost
                if stands is not None:
                    return stands
                if over is not None or attempt + 1 >= _ATTEMPTS or self.is_file():
                    raise
                attempt += 1  # two at once got into each other's way, and neither stands
            except ObjectStoreError as error:
                attempt = _again(error, attempt, began)

    def _holds(self, data: bytes) -> Version | None:
        """The object's state if it holds these bytes."""
        try:
            found, stat = self.read()
        except FileNotFoundError:
            return None
        return stat.version if found == data else None

    def replace_bytes(self, data: bytes) -> Version:
        """Write the object over whatever is there, so that an earlier write which comes late cannot undo this one."""
        for _ in range(10):
            found = self.found()
            try:
                return self.put(data, over=None if found is None else found.version)
            except FileExistsError:
                continue
        raise ObjectStoreError(f"{self}: others write it again and again", remedy="see who else uses this store, then try again")

    def write_bytes(self, data: bytes) -> int:
        self.replace_bytes(data)
        return len(data)

    def write_text(self, text: str, encoding: str = "utf-8") -> int:
        return self.write_bytes(text.encode(encoding))

    @contextmanager
    def open(self, mode: str) -> Iterator[io.BytesIO]:
        """'rb': the bytes to read; 'wb': a buffer that is written when the block ends well. Raises FileNotFoundError."""
        buffer = io.BytesIO(self.read_bytes() if mode == "rb" else b"")
        yield buffer
        if mode == "wb":
            self.write_bytes(buffer.getvalue())

    def touch(self) -> None:
        """An empty object, unless there is one."""
        try:
            self.put(b"", over=None)
        except FileExistsError:
            pass

    def replace(self, target: ObjectPath) -> None:
        """Copy, then delete. Cut short, both are there; doing it again does no harm. Raises FileNotFoundError."""
        if provider(self.bucket) == "az":  # Azure may answer before it has copied, and the library does not wait for it
            target.replace_bytes(self.read_bytes())
        else:
            self._call("copy", self.key, target.key)
        self.unlink()

    def unlink(self, missing_ok: bool = True) -> None:
        """One that is not there is as good as deleted."""
        self.bucket_delete([self.key])

    def bucket_delete(self, keys: Iterable[str]) -> None:
        """Delete these keys of the bucket."""
        rest = list(keys)
        for start in range(0, len(rest), _BATCH):
            try:
                self._call("delete", rest[start : start + _BATCH])
            except FileNotFoundError:
                pass

    def remove_tree(self, *first: ObjectPath) -> None:
        """Delete every object below, `first` before all others."""
        self.bucket_delete(path.key for path in first)
        self.bucket_delete(path.key for path in self.tree())

    def mkdir(self, parents: bool = False, exist_ok: bool = False) -> None:
        """Nothing: names need no folders here."""

    def _call(self, name: str, *args: Any, **options: Any) -> Any:
        return call(self.bucket, str(self), name, *args, **options)


def at_once(work: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """work(item) of each, in order, many requests beside one another. Raises the first error, when all are through."""
    if len(items) < 2:
        return [work(item) for item in items]
    with ThreadPoolExecutor(min(_BESIDE, len(items)), thread_name_prefix="objects") as pool:
        return list(pool.map(work, items))


StorePath: TypeAlias = Path | ObjectPath


def _stat(meta: Any) -> ObjectStat:
    return ObjectStat(int(meta["size"]), meta["last_modified"].timestamp(), version_of(meta))


def _again(error: ObjectStoreError, attempt: int, began: float) -> int:
    """Wait before the next attempt; raises the error after the last, where waiting does not help, or where the library waited long."""
    if not error.passing or attempt + 1 >= _ATTEMPTS or time.monotonic() - began > RETRY_SECONDS / 2:
        raise error
    time.sleep(_DELAY * 2**attempt)
    return attempt + 1


@contextmanager
def whole_file(path: StorePath) -> Iterator[IO[bytes]]:
    """What is written in the block becomes the file or object `path` when it ends well, whole or not at all. Raises OSError."""
    if isinstance(path, ObjectPath):
        with path.open("wb") as buffer:
            yield buffer
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            yield file
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def is_url(location: object) -> bool:
    """Whether this is a text like https://host/scene.zarr or s3://bucket/scene.zarr; a Path never is."""
    return isinstance(location, str) and _URL.match(location) is not None


def place_name(location: Path | str) -> str:
    """The last part of a path or URL: 'town.zarr' of https://host/scenes/town.zarr/; of a URL without parts, its host or bucket."""
    if isinstance(location, Path):
        return location.name
    parts = urlsplit(location)
    return unquote(parts.path.rstrip("/")).rpartition("/")[2] or parts.netloc


def as_store_path(location: str | os.PathLike[str] | ObjectPath) -> StorePath:
    """Where a frame store lies: an ObjectPath for s3://bucket/flight.zarr and its like, a Path for all on this machine (file:// too).

    Raises ConfigError for a URL of another kind, or one that names no bucket or nothing in it.
    """
    if isinstance(location, ObjectPath) or not isinstance(location, str) or not is_url(location):
        return location if isinstance(location, ObjectPath) else Path(location)
    text = location.strip()
    scheme, _, rest = text.partition("://")
    if scheme.lower() == "file":
        return Path(unquote(urlsplit(text).path))
    bucket, _, key = rest.partition("/")
    parts = [part for part in key.split("/") if part]
    if scheme.lower() not in SCHEMES:
        known = ", ".join(f"{name}://" for name in SCHEMES)
        raise ConfigError(f"{text}: frames cannot be written there", remedy=f"name a folder, or a URL of {known}")
    if not bucket or not parts or any(part in (".", "..") for part in parts):
        raise ConfigError(f"{text}: names no place in a bucket", remedy=f"write {scheme}://BUCKET/NAME.zarr")
    return cast(StorePath, ObjectPath(f"{scheme.lower()}://{bucket}", "/".join(parts)))
