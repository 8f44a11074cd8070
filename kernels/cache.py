"""Built libraries on disk: one folder a build, keyed by what it was made of; one build a host at a time."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .recipe import library_name, source_files
from .torch_build import torch_build

FACTS = "facts.json"  # beside a library: what it was made of
LOG = "build.log"
FAILED = "failed.json"
LEFT_SECONDS = 3600.0  # after which a folder in which nothing was made is a leftover: a build takes minutes


@dataclass(frozen=True)
class Entry:
    """A finished build in a cache folder: device, library, bytes of its folder, when it was made (seconds since 1970)."""

    device: str
    library: Path
    size: int
    made: float


def default_cache_dir() -> Path:
    """Where libraries go unless the caller names a folder: ~/.cache/landmark-batch. Raises OSError where nobody knows a home."""
    try:
        return Path.home() / ".cache" / "landmark-batch"
    except RuntimeError:
        raise OSError("this user has no home folder") from None


def kernels_dir(cache_dir: Path | None) -> Path:
    """The folder of all builds in a cache folder."""
    return (cache_dir or default_cache_dir()) / "kernels"


def sources_digest(device: str) -> str:
    """Digest of names and contents of all sources of a device's library."""
    digest = hashlib.sha256()
    for path in source_files(device):
        content = path.read_bytes()
        digest.update(f"{path.name} {len(content)}\\n".encode() + content)
    return digest.hexdigest()


def build_facts(device: str, recipe: str, versions: Mapping[str, str]) -> dict[str, Any]:
    """Everything that a library depends on. versions: of the compilers, by name."""
    facts = {
        "device": device,
        "sources": sources_digest(device),
        "recipe": hashlib.sha256(_without_places(recipe).encode()).hexdigest(),
        "machine": platform.machine(),
        "compilers": dict(versions),
    }
    if device == "png":
        return facts
    cuda = torch_build().cuda if device == "cuda" else None
    return facts | {"torch": torch_build().version, "torch_commit": torch_build().commit, "cuda": cuda}


def _without_places(recipe: str) -> str:
    """The recipe without the lines that only say where files lie: the same sources elsewhere are the same build."""
    return "\n".join(line for line in recipe.splitlines() if not line.startswith(("src =", "cxx =", "nvcc =")))


def key_of(facts: Mapping[str, Any]) -> str:
    """Name of the folder of a build: 'cpu-', 'cuda-' or 'png-', and 16 hex digits."""
    return f"{facts['device']}-{hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]}"


def mismatch(library: Path) -> str | None:
    """Why a prebuilt library does not fit this torch and these sources, or is not whole; None if it does, or says nothing of itself."""
    try:
        facts = json.loads((library.parent / f"{library.stem}.json").read_text())
        device, made_of = str(facts["device"]), str(facts["sources"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError) as error:
        return f"{library.stem}.json beside it cannot be read: {error}"
    here_is = {"machine": platform.machine()} if device == "png" else {"torch": torch_build().version, "machine": platform.machine()}
    for name, here in here_is.items():
        if facts.get(name) != here:
            return f"it was built for {name} {facts.get(name)}, here is {here}"
    if device == "cuda" and facts.get("cuda") != torch_build().cuda:
        return f"it was built for CUDA {facts.get('cuda')}, torch here has {torch_build().cuda}"
    if made_of != sources_digest(device):
        return "it was built from another version of landmark-batch"
    return None if is_whole(library) else "it is damaged: it has not the size that it was made with"


def is_whole(library: Path) -> bool:
    """Whether it is there, of the size that the file beside it tells: the system ends a process that uses one that was cut off.

    Raises OSError, other than for no such file.
    """
    try:
        size = library.stat().st_size
        facts = json.loads((library.parent / f"{library.stem}.json").read_text())
        return bool(facts.get("size", size) == size)
    except (FileNotFoundError, NotADirectoryError):
        return library.is_file()
    except (ValueError, AttributeError):
        return False


def publish(built: Path, facts: Mapping[str, Any], folder: Path) -> Path:
    """Put a built library and its facts into `folder`, each under its name only when whole. Returns the library."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / built.name
    facts_file = folder / f"{built.stem}.json"
    described = {**facts, "size": built.stat().st_size}
    _put(facts_file, lambda partial: partial.write_text(json.dumps(described, indent=1)))
    _put(target, lambda partial: shutil.copyfile(built, partial))
    return target


def _put(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def build_lock(root: Path, device: str, waiting: Callable[[], None]) -> Iterator[None]:
    """One build of a device's library at a time under `root`; `waiting` is called now and then meanwhile.

    A process that dies gives the lock back: the system holds it, not a file's existence.
    """
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{device}.lock").open("w") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waiting()
                time.sleep(0.2)
        yield


def scratch_prefix(device: str) -> str:
    """What the names of folders begin with in which a device's library is built."""
    return f"building-{device}-"


def remove_leftovers(root: Path, device: str) -> None:
    """Remove what builds of processes that died have left, by whoever has the lock; young ones may be another host's, which has its own."""
    for folder in root.glob(f"{scratch_prefix(device)}*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > LEFT_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)


def remember_failure(folder: Path, reason: str) -> None:
    """So that processes that waited for this build do not repeat it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / FAILED).write_text(json.dumps({"reason": reason, "at": time.time()}))


def failure_since(folder: Path, start: float) -> str | None:
    """The reason of a build of this key that failed after `start` (seconds since 1970)."""
    try:
        record = json.loads((folder / FAILED).read_text())
        return str(record["reason"]) if float(record["at"]) >= start else None
    except (OSError, ValueError, KeyError):
        return None


def entries(cache_dir: Path | None = None) -> list[Entry]:
    """All finished builds, newest first."""
    found = []
    for folder in kernels_dir(cache_dir).glob("*-*"):
        library = folder / library_name(folder.name.partition("-")[0])
        if library.is_file():
            size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
            found.append(Entry(folder.name.partition("-")[0], library, size, library.stat().st_mtime))
    return sorted(found, key=lambda entry: -entry.made)


def clean(cache_dir: Path | None = None) -> tuple[list[Path], int]:
    """Delete all builds, logs and leftovers. Returns what was deleted and its bytes. A library in use stays usable."""
    root = kernels_dir(cache_dir)
    removed, total = [], 0
    for folder in sorted(root.glob("*-*")) if root.is_dir() else []:
        if folder.is_dir():
            total += sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            shutil.rmtree(folder, ignore_errors=True)
            removed.append(folder)
    return removed, total
