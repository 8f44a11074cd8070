"""Logging of the command line: warnings to the terminal; an unexpected error's traceback into the log of the job it met."""

from __future__ import annotations

import logging
import time
import traceback
from pathlib import Path

_PYTHON = logging.getLogger("py.warnings")
_SILENCE = logging.NullHandler()


class _State:
    quiet: bool = False
    console: logging.Handler | None = None
    job_log: Path | None = None


class _Plain(logging.Formatter):
    """'landmark-batch: warning: ...' without time and name: a terminal is no log."""

    def format(self, record: logging.LogRecord) -> str:
        return f"landmark-batch: {record.levelname.lower()}: {record.getMessage()}"


def start(*, debug: bool) -> None:
    """Our warnings (with debug: every line, and Python's warnings) go to standard error."""
    stop()
    _State.quiet = not debug
    if _State.quiet:  # a library's DeprecationWarning is nothing a user of a command can act on
        logging.captureWarnings(True)
        _PYTHON.addHandler(_SILENCE)
        _PYTHON.propagate = False
    console = logging.StreamHandler()
    console.setLevel(logging.DEBUG if debug else logging.WARNING)
    console.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(name)s: %(message)s") if debug else _Plain())
    _State.console = console
    logger = logging.getLogger("landmark_batch")
    logger.setLevel(logging.DEBUG if debug else logging.INFO)
    logger.propagate = False
    logger.addHandler(console)


def belongs_to(path: Path) -> None:
    """From now on this command works on the job whose log is `path`."""
    _State.job_log = path


def keep_traceback() -> Path | None:
    """Append the exception being handled to the job's log, if the job has one already. Returns its path, else None."""
    path = _State.job_log
    if path is None or not path.is_file():
        return None
    try:
        with path.open("a", encoding="utf-8") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR   unexpected error\n{traceback.format_exc()}")
    except OSError:
        return None
    return path


def stop() -> None:
    """Undo `start`: the next command of this process starts afresh."""
    _State.job_log = None
    if _State.quiet:
        logging.captureWarnings(False)
        _PYTHON.removeHandler(_SILENCE)
        _PYTHON.propagate = True
        _State.quiet = False
    if _State.console is not None:
        logger = logging.getLogger("landmark_batch")
        logger.removeHandler(_State.console)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True
        _State.console = None
