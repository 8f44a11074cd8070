"""Whether Python keeps what it compiled: without that every command compiles all that it imports, which can take longer than its work."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

MANY = 0.1  # of the modules: what is told


def without_bytecode(modules: Iterable[ModuleType | None] | None = None) -> tuple[int, int]:
    """(modules for which no bytecode lies anywhere, all) of those that come from a source file; default what this process has imported."""
    missing = count = 0
    for module in list(sys.modules.values() if modules is None else modules):
        spec = getattr(module, "__spec__", None)
        if spec is None or not spec.has_location or not str(spec.origin).endswith(".py") or spec.cached is None:
            continue
        count += 1
        missing += not _is_there(Path(spec.cached))
    return missing, count


def _is_there(file: Path) -> bool:
    """Whether Python can find it: one in a folder that may not be searched is not there."""
    try:
        return file.is_file()
    except OSError:
        return False


def advice(missing: int, count: int) -> str | None:
    """What to tell a user of `without_bytecode`; None where few modules are without."""
    if missing <= MANY * count:
        return None
    return (
        f"{missing} of {count} Python modules have no bytecode, so every command compiles them anew, which takes seconds: "
        "let `python -m compileall` make it once for their folders, and leave PYTHONDONTWRITEBYTECODE unset"
    )
