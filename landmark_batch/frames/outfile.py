"""Exported files: written under a temporary name, fsynced, renamed. A reader sees the old file or the new one, whole."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from landmark_batch.errors import ConfigError, DiskFullError, LandmarkError

from .durable import no_space, sync_directory
from .process import tag_process, writer_tag

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PREFIX = ".landmark-"
_SUFFIX = ".partial"


def export_error(error: OSError, path: Path) -> LandmarkError:
    """What an OSError means to someone who exports to `path`."""
    if error.errno in FULL_DISK:
        what, remedy = no_space(error)
        return DiskFullError(
            f"{path}: {what} ({error.strerror})",
            remedy=f"{remedy} and run the same export again: what is already there stays and is not written again",
        )
    return ConfigError(f"{path}: cannot write it ({error.strerror or error})", remedy="check the path and its permissions")


def make_folder(path: Path) -> None:
    """Create a folder and its parents. Raises ConfigError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise ConfigError(f"{path}: it is a file, not a folder", remedy="name a folder that is there, or a new one") from None
    except OSError as error:
        raise export_error(error, path) from error


def temporary_name(path: Path) -> Path:
    """A name beside `path` that tells which process made it, so that leftovers of a dead one can be removed."""
    return path.with_name(f"{_PREFIX}{writer_tag('export')}{_SUFFIX}")


def settle(temporary: Path, path: Path) -> None:
    """fsync a complete temporary file and give it its name; the folder is fsynced by `sync_folders`. Raises LandmarkError."""
    try:
        _sync_file(temporary)
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise export_error(error, path) from error


def _sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def output_file(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to; it becomes `path` when the block ends well and goes away otherwise.

    Raises DiskFullError or ConfigError for an OSError inside the block.
    """
    with aside(path) as temporary:
        yield temporary
    settle(temporary, path)


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """Yields a temporary path to write to, for `settle` to give it its name; it goes away where the block does not end well. Raises as
    `output_file`.
    """
    temporary = temporary_name(path)
    try:
        yield temporary
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise export_error(error, path) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(folder: Path) -> int:
    """Remove temporary files of exports whose process is certainly dead. Returns how many."""
    removed = 0
    for path in folder.glob(f"{_PREFIX}*{_SUFFIX}"):
        owner = tag_process(path.name[len(_PREFIX) : -len(_SUFFIX)])
        if owner is not None and owner.is_dead():
            with suppress(OSError):
                path.unlink()
                removed += 1
    return removed


def sync_folders(folders: Iterable[Path]) -> None:
    """Make the names of settled files outlive a power cut, as far as the file system allows."""
    for folder in sorted(set(folders)):
        with suppress(OSError):
            sync_directory(folder)
