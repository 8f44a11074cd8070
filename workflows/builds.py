"""On what a store's frames were rendered: device type, torch build, runtime, precision. Pixels are only equal bit for bit on one."""

from __future__ import annotations

import json
import logging
import platform
from dataclasses import asdict, dataclass

from landmark_batch.errors import StoreError
from landmark_batch.frames.durable import replace_file
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.object_path import StorePath

logger = logging.getLogger(__name__)

_FILE = "builds.json"


@dataclass(frozen=True)
class Build:
    """device: 'cpu' or 'cuda'. arch: of the CPU, as the system names it. torch: version with its build tag."""

    device: str
    arch: str
    torch: str
    runtime: str
    precision: str

    def __str__(self) -> str:
        return f"{self.device} ({self.arch}), torch {self.torch}, runtime {self.runtime}, {self.precision}"


def this_build(device: str, torch_version: str, runtime: str, precision: str) -> Build:
    return Build(device, platform.machine(), torch_version, runtime, precision)


def read_builds(store: StorePath) -> list[Build]:
    """Builds that have rendered into a store, in the order they came; empty if unknown."""
    try:
        return [Build(**entry) for entry in json.loads((StoreLayout(store).hidden / _FILE).read_text(encoding="utf-8"))]
    except (OSError, ValueError, TypeError):
        return []


def other_build(store: StorePath, build: Build) -> str | None:
    """What to tell a user whose store holds frames of another build; None if it does not."""
    last = next(iter(reversed(read_builds(store))), None)
    if last is None or last == build:
        return None
    return f"frames in the store were rendered on {last}; this job renders on {build}: the last bits of its frames may differ from theirs"


def note_build(store: StorePath, build: Build) -> None:
    """Record that `build` renders into the store from now on. A note that cannot be written stops nothing."""
    known = read_builds(store)
    if known and known[-1] == build:
        return
    try:
        replace_file(StoreLayout(store).hidden / _FILE, json.dumps([asdict(item) for item in [*known, build]], indent=1).encode())
    except StoreError as error:
        logger.warning("%s", error)
