"""What killed writers left behind: files under temporary names."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from pathlib import Path

from landmark_batch.object_path import ObjectPath

from . import durable
from .layout import MOVING, PARTIAL, StoreLayout
from .process import tag_process

_log = logging.getLogger(__name__)
_TAG = re.compile(r"\.([^.@][^@]*@[^@]*@\d+@\d*@[0-9a-f]*@\d*@[0-9a-f]{8})(\.\d+)?\.partial$")


def remove_leftovers(layout: StoreLayout, *, sole: bool) -> int:
    """Remove temporary files; returns how many.

    sole: all of them, since no writer of another job may still commit. Shared: only those whose writer is certainly dead.
    """
    if isinstance(layout.root, ObjectPath):
        return _remove_objects(layout) if sole else 0
    removed = 0
    changing = layout.journal.exists()
    for folder in _folders(layout, layout.root):
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                left = entry.name.endswith(PARTIAL) and (sole or _is_dead(entry.name))
                left = left or (entry.name.endswith(MOVING) and sole and not changing)
                if left:
                    Path(entry.path).unlink(missing_ok=True)
                    removed += 1
    if sole and not changing and layout.rebuilt.exists():
        durable.remove_tree(layout.rebuilt)
    if removed:
        _log.info("%s: removed %d temporary files of killed writers", layout.root, removed)
    return removed


def _remove_objects(layout: StoreLayout) -> int:
    """Objects are never half written: a change of flight that did not get to its journal leaves some, a probe of conditions one."""
    hidden = layout.hidden
    if not isinstance(hidden, ObjectPath) or layout.journal.exists():
        return 0
    left = [path for path in hidden.tree() if path.name.endswith(PARTIAL) or path.below(hidden).startswith("rebuilt/")]
    hidden.bucket_delete(path.key for path in left)
    return len(left)


def _folders(layout: StoreLayout, root: Path) -> list[Path]:
    arrays = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir()]
    inside = StoreLayout(Path())
    return [root, *arrays, *(root / str(path) for path in (inside.hidden, inside.ledger, inside.settings))]


def _is_dead(name: str) -> bool:
    match = _TAG.search(name)
    process = tag_process(match[1]) if match else None
    return process is not None and process.is_dead()
