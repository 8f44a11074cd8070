"""Which process is this, and does that one still live? Without psutil: a worker asks this before it has imported anything."""

from __future__ import annotations

import os
import re
import secrets
import socket
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

_WORD = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class ProcessIdentity:
    """A process for all time: pids are used again, (boot, pid namespace, pid, start) is not.

    start: clock ticks after boot at which it started, '' where /proc does not say. boot: id of this boot of the machine.
    namespace: of its pid; two containers of one host may both have a pid 7.
    """

    host: str
    pid: int
    start: str
    boot: str
    namespace: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @property
    def is_local(self) -> bool:
        """True if this machine, since its last boot, runs or ran it: only then can it be asked whether it lives."""
        mine = this_process()
        return bool(self.boot) and self.boot == mine.boot

    def is_dead(self) -> bool:
        """True only if it is certain: same boot, same pid namespace, and no such process (a zombie counts as dead)."""
        mine = this_process()
        if not self.is_local or self.namespace != mine.namespace:
            return False
        state, start = _stat(self.pid)
        return state in ("", "Z", "X") or (bool(self.start) and start != self.start)


def _stat(pid: int) -> tuple[str, str]:
    """(state, start ticks) of a process; ('', '') if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        pass
    if Path("/proc/self/stat").exists():
        return "", ""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "", ""
    except OSError:
        pass
    return "?", ""


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="ascii").strip()
    except OSError:
        return ""


@lru_cache(maxsize=4)
def _identity(pid: int) -> ProcessIdentity:
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    return ProcessIdentity(
        socket.gethostname(), pid, _stat(pid)[1], _read("/proc/sys/kernel/random/boot_id").replace("-", "")[:16], namespace
    )


def this_process() -> ProcessIdentity:
    return _identity(os.getpid())


def writer_tag(worker: str) -> str:
    """A file-name part that no other writer has, and from which `tag_process` reads back who it was."""
    me = this_process()
    host = _WORD.sub("-", me.host)[:60]
    return f"{_WORD.sub('-', worker)[:40] or 'w'}@{host}@{me.pid}@{me.start}@{me.boot}@{me.namespace}@{secrets.token_hex(4)}"


def tag_process(tag: str) -> ProcessIdentity | None:
    """The process that made a tag, None if it is not one."""
    parts = tag.split("@")
    if len(parts) != 7 or not parts[2].isdecimal():
        return None
    return ProcessIdentity(host=parts[1], pid=int(parts[2]), start=parts[3], boot=parts[4], namespace=parts[5])
