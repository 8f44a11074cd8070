"""The log file of a job: one line a chunk and all warnings go there; Dask's own chatter never reaches the terminal."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

from landmark_batch.errors import StoreError

_FORMAT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"
_OURS = "landmark_batch"
_NOISY = ("distributed", "tornado", "bokeh", "asyncio", "dask")


class LogFile(logging.FileHandler):
    """A log file that stands aside where its disk is full or gone: one warning to whoever else listens, and what it cannot hold is lost.

    logging's own way is a traceback on the terminal for each line, in which the one message that matters drowns.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")
        self._told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            logging.getLogger(_OURS).warning("%s: lines of the log are lost: %s", self.baseFilename, error.strerror or error)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            super().close()


def events_logger(run: str) -> logging.Logger:
    """Logger of the events of one run of a job."""
    return logging.getLogger(f"{_OURS}.job.{run}")


@contextlib.contextmanager
def job_log(path: Path, run: str) -> Iterator[logging.Handler]:
    """While it lasts, this program's loggers write to `path` too; gives the handler, for `quiet_dask`.

    Lines of events go there alone: who looks on gets the events themselves. Where this process writes to that log already, that stays
    as it is. Raises StoreError where the file cannot be written.
    """
    known = next((h for h in logging.getLogger(_OURS).handlers if _writes_to(h, path)), None)
    if known is not None:
        yield known
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handler = LogFile(path)
    except OSError as error:
        raise StoreError(f"{path}: cannot write the log: {error.strerror or error}", remedy="check the permissions of its folder") from None
    handler.setFormatter(logging.Formatter(_FORMAT))
    ours, events = logging.getLogger(_OURS), events_logger(run)
    level = ours.level
    if ours.getEffectiveLevel() > logging.INFO:
        ours.setLevel(logging.INFO)
    ours.addHandler(handler)
    events.addHandler(handler)
    events.propagate = False
    try:
        yield handler
    finally:
        events.propagate = True
        events.removeHandler(handler)
        ours.removeHandler(handler)
        ours.setLevel(level)
        handler.close()


@contextlib.contextmanager
def quiet_dask(handler: logging.Handler) -> Iterator[None]:
    """Take terminals away from Dask's loggers and its friends', give them `handler`, put everything back at the end.

    To be entered when Dask is imported: it is the import that gives its loggers terminals.
    """
    before: list[tuple[logging.Logger, list[logging.Handler], bool, int]] = []
    names = [name for name in logging.root.manager.loggerDict if name.partition(".")[0] in _NOISY]
    for name in sorted({*names, *_NOISY}):
        logger = logging.getLogger(name)
        before.append((logger, [*logger.handlers], logger.propagate, logger.level))
        files = [known for known in logger.handlers if not _is_terminal(known)]
        is_top = name in _NOISY
        logger.handlers = [*files, handler] if is_top else files
        logger.propagate = not is_top
        if name == "distributed":
            logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate = handlers, propagate
            logger.setLevel(level)


def _writes_to(handler: logging.Handler, path: Path) -> bool:
    return isinstance(handler, logging.FileHandler) and Path(handler.baseFilename) == path.absolute()


def _is_terminal(handler: logging.Handler) -> bool:
    return isinstance(handler, logging.StreamHandler) and not isinstance(handler, logging.FileHandler)
