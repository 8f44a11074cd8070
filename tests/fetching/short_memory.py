"""A device that is out of memory: as tests without one have it, and a real one."""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest import mock

import torch

from landmark_batch.fetching.slots import SlotTables
from landmark_batch.model.field import Field
from landmark_batch.model.fused import FusedRenderer
from landmark_batch.model.fused_passes import RayPasses


@contextmanager
def room_for(slots: int) -> Iterator[list[int]]:
    """What reads tables of more slots raises torch.OutOfMemoryError. Gives how many of the tables that were given back meanwhile
    somebody still had: one number for each time.
    """
    kept: list[int] = []
    free = SlotTables.free

    def freed(self: SlotTables) -> None:
        before = [weakref.ref(table) for table in self._tables()]
        free(self)
        if before:
            kept.append(sum(table() is not None for table in before))

    def short(original: Callable[..., Any], planes: Callable[[Any], torch.Tensor]) -> Callable[..., Any]:
        def run(self: Any, *arguments: Any, **named: Any) -> Any:
            if planes(self).shape[0] > slots:
                raise torch.OutOfMemoryError(f"tables of {planes(self).shape[0]} slots")
            return original(self, *arguments, **named)

        return run

    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(SlotTables, "free", freed))
        for owner, name, planes in (
            (Field, "weigh", lambda field: field._density[0][0]),
            (Field, "density", lambda field: field._density[0][0]),
            (Field, "appearance", lambda field: field._app[0][0]),
            (FusedRenderer, "_frame", lambda renderer: renderer._density[0][0]),
            (RayPasses, "_colours", lambda passes: passes._renderer._density[0][0]),
        ):
            stack.enter_context(mock.patch.object(owner, name, short(getattr(owner, name), planes)))
        yield kept


@contextmanager
def room_for_tables(slots: int) -> Iterator[None]:
    """Tables of more slots cannot even be made."""
    allocate = SlotTables.allocate

    def short(self: SlotTables, count: int) -> None:
        if count > slots:
            raise torch.OutOfMemoryError(f"tables of {count} slots")
        allocate(self, count)

    with mock.patch.object(SlotTables, "allocate", short):
        yield


def fill_memory(device: torch.device) -> list[torch.Tensor]:
    """Take all that is left of what this process has of a GPU, and let it have no more from here on: what it gives back alone, it gets
    again. Returns what was taken.
    """
    torch.cuda.synchronize(device)
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(device) + 2**20) / total, device)
    taken: list[torch.Tensor] = []
    for size in (2**23, 2**20, 2**16, 2**12, 2**9):
        with suppress(torch.OutOfMemoryError):
            while True:
                taken.append(torch.empty(size, dtype=torch.uint8, device=device))
    return taken


class Told(logging.Handler):
    """Warnings, as they come."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
