"""What killed writers left behind: files under temporary names."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from pathlib import Path

from .layout import MOVING, PARTIAL, StoreLayout
from .process import tag_process

_log = logging.getLogger(__name__)
_TAG = re.compile(r"\.([^.@][^@]*@[^@]*@\d+@\d*@[0-9a-f]*@\d*@[0-9a-f]{8})(\.\d+)?\.partial$")


def remove_leftovers(layout: StoreLayout, *, sole: bool) -> int:
    """Remove temporary files; returns how many.

    sole: all of them, since no writer of another job may still commit. Shared: only those whose writer is certainly dead.
    """
    removed = 0
    changing = layout.journal.exists()
    for folder in _folders(layout):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                left = entry.name.endswith(PARTIAL) and (sole or _is_dead(entry.name))
                left = left or (entry.name.endswith(MOVING) and sole and not changing)
                if left:
                    Path(entry.path).unlink(missing_ok=True)
                    removed += 1
    if sole and not changing and layout.rebuilt.exists():
        shutil.rmtree(layout.rebuilt, ignore_errors=True)
    if removed:
        _log.info("%s: removed %d temporary files of killed writers", layout.root, removed)
    return removed


def _folders(layout: StoreLayout) -> list[Path]:
    arrays = [Path(entry.path) for entry in os.scandir(layout.root) if entry.is_dir()]
    return [layout.root, *arrays, layout.hidden, layout.ledger, layout.settings]


def _is_dead(name: str) -> bool:
    match = _TAG.search(name)
    process = tag_process(match[1]) if match else None
    return process is not None and process.is_dead()
