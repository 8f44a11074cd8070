"""Errors of landmark-batch: each names the place, the value and the remedy, and knows its exit code."""

from __future__ import annotations

import errno
import os


class LandmarkError(Exception):
    """Base of every error a user can mend. Exit code 2 (bad input) unless a subclass says otherwise.

    message: what is wrong, naming file and value. remedy: what to do about it (one sentence, optional).
    """

    exit_code = 2

    def __init__(self, message: str, *, remedy: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.message, self.remedy))


def _rebuild(kind: type[LandmarkError], message: str, remedy: str | None) -> LandmarkError:
    return kind(message, remedy=remedy)


class ConfigError(LandmarkError):
    """A job file, flag or setting is wrong."""


class CheckpointError(LandmarkError):
    """A checkpoint is missing, truncated, foreign, malicious or inconsistent."""


class CameraError(LandmarkError):
    """A camera file or pose is wrong; the message names the frame."""


class KernelBuildError(LandmarkError):
    """Compiled kernels are demanded and cannot be built or loaded."""


class GroupError(LandmarkError):
    """A render group could not be formed or was lost."""

    exit_code = 3


class StoreError(LandmarkError):
    """A frame store is foreign, damaged, of another shape or not writable."""


class UnreadableError(StoreError):
    """This user may not read a file of a store: nothing is known of its pixels."""


class StoreBusyError(StoreError):
    """Another job writes this store."""


class FramesDifferError(StoreError):
    """Finished frames of the store were rendered with other settings than the job's."""


class DiskFullError(StoreError):
    """The disk cannot hold what is to be written."""


class StaleWriterError(StoreError):
    """A writer of an ended job or of an older epoch tried to commit: the frames belong to others now."""

    exit_code = 3


class PixelError(LandmarkError):
    """A rendered frame holds NaN or Inf; the message names frame and output."""

    exit_code = 3


class RenderIncompleteError(LandmarkError):
    """The job ended with frames missing; the message names them."""

    exit_code = 3


class RenderInterrupted(LandmarkError):
    """The user stopped the job; the message says how to go on."""

    exit_code = 130


def cannot_write(path: str | os.PathLike[str], error: OSError, kind: type[LandmarkError] = ConfigError) -> LandmarkError:
    """What an OSError means to someone who had the file `path` written. kind: of the error, unless the disk is full."""
    what = f"{os.fspath(path)}: cannot write it: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFullError(what, remedy="make space, or name a file on another disk")
    if error.errno == errno.EFBIG:
        return DiskFullError(what, remedy="raise the limit (`ulimit -f`)")
    return kind(what, remedy="name a file in a folder you may write to")
