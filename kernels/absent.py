"""The error of a sample in a block that is not in memory."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

MESSAGE = "a sample lies in a block that is not in memory"


class AbsentBlockError(RuntimeError):
    """A sample lies in a block whose entry in `slots` is -1: load the block and call again, or leave its samples out."""


@contextmanager
def absent_blocks() -> Iterator[None]:
    """Turns the RuntimeError by which a compiled op says so into AbsentBlockError."""
    try:
        yield
    except AbsentBlockError:
        raise
    except RuntimeError as error:
        if MESSAGE in str(error):
            raise AbsentBlockError(MESSAGE) from error
        raise
