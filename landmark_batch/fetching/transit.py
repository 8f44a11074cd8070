"""Where ranks of one host pass planes to each other: how much of their memory that takes, and folders that go with their ranks."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # no file locks of the kernel's: nothing is shared
    fcntl = None

logger = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # files in it are shared memory
BOOT = Path("/proc/sys/kernel/random/boot_id")
ALIVE = "alive"  # its lock is shared by all ranks of a folder as long as they live
PREFIX = "landmark-batch-blocks-"
SHARE = 4  # of this many parts of a rank's host memory, one is shared
LEAST_BLOCKS = 4  # of a rank's host memory: with fewer, the rank needs them itself
MOST_BLOCKS = 8  # of each rank, shared
NUMBERS = 2**62
TRIES, PAUSE = 1000, 0.001  # to get a folder while another removes it


class Offer(NamedTuple):
    """What a rank tells the others, in whole numbers. host: the same for ranks that can share. bytes: of its memory for that, 0: none.

    nonce: names the folder, if this rank is the first of its host.
    """

    host: int
    bytes: int
    nonce: int


NOTHING = Offer(0, 0, 0)


def make_offer(host_bytes: int, block_bytes: int, ranks: int) -> tuple[Path | None, Offer]:
    """Where this rank would share, and its offer. ranks: of the group.

    host_bytes: this rank's memory for blocks on their way, of which what is offered is a part. block_bytes: of one block.
    """
    own = offered_bytes(host_bytes, block_bytes)
    root = find_root(own * ranks) if own and ranks > 1 else None
    if root is None:
        return None, NOTHING
    place = root.stat()
    try:
        boot = BOOT.read_text()
    except OSError:
        boot = os.uname().nodename
    text = f"{boot} {root} {place.st_dev} {place.st_ino} {os.getuid()}"  # one kernel, one file system, one user
    host = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") % NUMBERS
    return root, Offer(host, own, secrets.randbelow(NUMBERS))


def offered_bytes(host_bytes: int, block_bytes: int) -> int:
    """What a rank of a group offers of its memory for blocks on their way; block_bytes: of one block."""
    return min(host_bytes // SHARE, MOST_BLOCKS * block_bytes) if host_bytes >= LEAST_BLOCKS * block_bytes else 0


def find_root(size: int) -> Path | None:
    """Shared memory, or else the folder for temporary files, whichever has twice `size` bytes left; None without, or without locks."""
    if fcntl is None:
        return None
    for root in roots():
        with contextlib.suppress(OSError):
            found = os.statvfs(root)
            if found.f_bavail * found.f_frsize >= 2 * size and os.access(root, os.W_OK | os.X_OK):
                return root
    return None


def roots() -> tuple[Path, ...]:
    return MEMORY, Path(tempfile.gettempdir())


def open_folder(root: Path, number: int) -> tuple[Path, int] | None:
    """The folder of that number, made if need be, and an open file that keeps it as long as this process lives. None: it cannot be had."""
    remove_leftovers()
    folder = root / f"{PREFIX}{number:x}"
    try:
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError, FileExistsError):  # removed since, as one without ranks; while it was being made
                folder.mkdir(mode=0o700, exist_ok=True)
                if not _is_own(folder):
                    break
                alive = _open_alive(folder)
                if locked(alive, shared=True) and _is_that_of(folder, alive):
                    return folder, alive
                os.close(alive)
            time.sleep(PAUSE)
    except OSError as error:
        logger.warning("ranks of this host do not share what they read: %s", error)
    return None


def remove_leftovers() -> None:
    """Remove the folders of this user whose ranks are all gone."""
    if fcntl is None:
        return
    for root in roots():
        for folder in _folders(root):
            remove_folder(folder)


def remove_folder(folder: Path) -> None:
    """Remove a folder, unless it has a rank."""
    with contextlib.suppress(OSError):
        if not _is_own(folder):
            return
        alive = _open_alive(folder)
        try:
            if locked(alive) and _is_that_of(folder, alive):
                for path in folder.iterdir():
                    if path.name != ALIVE:
                        path.unlink(missing_ok=True)
                (folder / ALIVE).unlink()
                folder.rmdir()
        finally:
            os.close(alive)


def locked(file: int, *, shared: bool = False) -> bool:
    """Lock an open file, as long as it is open, if no other has it. shared: beside others that share it."""
    assert fcntl is not None
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def unlock(file: int) -> None:
    """Undo `locked`, for copies of the open file in other processes too."""
    assert fcntl is not None
    fcntl.flock(file, fcntl.LOCK_UN)


def _open_alive(folder: Path) -> int:
    return os.open(folder / ALIVE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)


def _is_that_of(folder: Path, alive: int) -> bool:
    """Whether the open file is still the folder's."""
    try:
        return os.path.samestat(os.fstat(alive), (folder / ALIVE).stat())
    except FileNotFoundError:
        return False


def _is_own(folder: Path) -> bool:
    found = folder.lstat()
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _folders(root: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError):
        yield from root.glob(f"{PREFIX}*")
