"""How a scene in blocks is held: all of it, or the blocks that frames need, in how many slots. Numbers in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from landmark_batch.errors import ConfigError
from landmark_batch.job_sections import FetchingSection, parse_memory

DEVICE_SHARE = 0.85  # of a device's memory that blocks and buffers may take; the rest is its context's and its libraries'
BATCH_SHARE = 0.25  # of fetching.gpu_memory for the rays in hand
HOST_SHARE = 0.5  # of the memory of a worker's share of its host, for blocks on their way
MIN_BATCH = 32 * 2**20


@dataclass(frozen=True)
class SceneSize:
    """blocks: of the scene. block: bytes of one in a slot. rest: bytes of decoder, mask and what else stays. batch: of the rays in hand.
    ahead: of frames that are begun ahead, where all blocks are held.
    """

    blocks: int
    block: int
    rest: int
    batch: int
    ahead: int = 0

    def whole(self, batch: int | None = None) -> int:
        """Bytes of all of it. batch: of the rays in hand, where it is limited."""
        return self.blocks * self.block + self.rest + (self.batch if batch is None else batch) + self.ahead


@dataclass(frozen=True)
class FetchChoice:
    """mode: what is done. reason: one line. slots: blocks on the device at once. host_bytes: of buffers for blocks on their way there.

    batch: bytes for the rays in hand, None where the device's own memory decides. host_spare: bytes of host memory that those buffers
    do not need, and that blocks may take otherwise.
    """

    mode: Literal["resident", "dynamic"]
    reason: str
    slots: int
    host_bytes: int
    batch: int | None = None
    host_spare: int = 0


def choose_fetching(section: FetchingSection, size: SceneSize, *, device: str, memory: int, host: int) -> FetchChoice:
    """device: 'cuda' or 'cpu'. memory: bytes of a worker's device. host: bytes of its share of the host's memory.

    Raises ConfigError for limits in which not one block fits, or not the scene where it has to be resident.
    """
    limit, batch = _limit(section, size, memory)
    fitting = max(0, limit - size.rest - (size.batch if batch is None else batch)) // size.block
    slots = section.gpu_blocks or fitting
    whole = slots >= size.blocks
    where = "GPU" if device == "cuda" else "worker"
    beside = size.rest + (size.batch if batch is None else batch)
    need = f"{size.blocks} blocks of {_mib(size.block)} and {_mib(beside + size.ahead)} beside them"
    may = f"{_gib(limit)} that a {where} may use"
    have = _said(section) or may
    if section.gpu_memory is not None and min(slots, size.blocks) > fitting:
        raise ConfigError(
            f"fetching.gpu_blocks = {slots} and fetching.gpu_memory = {section.gpu_memory} contradict each other: "
            f"it holds {fitting} blocks of {_mib(size.block)}",
            remedy="leave one of them out: fetching.gpu_memory alone gives as many slots as it holds",
        )
    if section.mode == "resident":
        if not whole and _said(section):
            raise ConfigError(
                f'{_said(section)} and fetching.mode = "resident" contradict each other: the scene has {need}',
                remedy='set fetching.mode = "dynamic", or leave the limit out',
            )
        return FetchChoice("resident", "asked for", size.blocks, 0, batch)
    if section.mode == "auto" and whole and size.whole(batch) <= limit:
        return FetchChoice("resident", f"{need} fit into {have}", size.blocks, 0, batch)
    if slots < 1:
        raise ConfigError(
            f"{have}: not one block fits in (a block has {_mib(size.block)}, {_mib(beside)} stay beside it)",
            remedy="give fetching.gpu_memory more, or convert the scene with smaller blocks",
        )
    slots = min(slots, size.blocks)
    asked = parse_memory(section.host_memory) if section.host_memory else int(host * HOST_SHARE)
    if asked < size.block:
        raise ConfigError(
            f"fetching.host_memory = {section.host_memory or _mib(asked)}: less than one block, which has {_mib(size.block)}",
            remedy=f"set fetching.host_memory to {_mib(2 * size.block)} or more",
        )
    reason = f"{need} do not fit into {may if whole else have}"
    if section.mode == "dynamic":
        reason = "asked for"
    elif section.gpu_blocks is not None and not whole:
        reason = f"{size.blocks} blocks of {_mib(size.block)} come into {slots} slots as frames need them ({have})"
    buffers = min(asked, size.blocks * size.block)
    return FetchChoice("dynamic", reason, slots, buffers, batch, asked - buffers)


def _limit(section: FetchingSection, size: SceneSize, memory: int) -> tuple[int, int | None]:
    """(bytes on the device, bytes of them for the rays in hand or None)."""
    if section.gpu_memory is None:
        return int(memory * DEVICE_SHARE), None
    limit = parse_memory(section.gpu_memory)
    return limit, min(size.batch, max(MIN_BATCH, int(limit * BATCH_SHARE)))


def _said(section: FetchingSection) -> str:
    if section.gpu_blocks is not None:
        return f"fetching.gpu_blocks = {section.gpu_blocks}"
    return f"fetching.gpu_memory = {section.gpu_memory}" if section.gpu_memory is not None else ""


def _mib(size: int) -> str:
    return f"{size / 2**20:.1f} MiB"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
