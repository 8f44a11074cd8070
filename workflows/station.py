"""DaskStation: a driver's place on a Dask cluster. Its task, its line to those who watch, the exports of a job nobody watches."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from distributed import Client, get_worker, secede

from landmark_batch.errors import ConfigError, LandmarkError
from landmark_batch.events import ChunkStarted, Event
from landmark_batch.frames.fence import read_fence
from landmark_batch.frames.layout import StoreLayout
from landmark_batch.frames.store import FrameStore
from landmark_batch.object_path import StorePath
from landmark_batch.parallel.shape import GroupShape
from landmark_batch.workflows.crew import Crew
from landmark_batch.workflows.drive import Claim, drive
from landmark_batch.workflows.graph import RenderGraph
from landmark_batch.workflows.messages import events_message, events_topic
from landmark_batch.workflows.order import JobOrder
from landmark_batch.workflows.pool import DaskPool
from landmark_batch.workflows.result import RenderResult
from landmark_batch.workflows.snapshot import JobSnapshot

if TYPE_CHECKING:
    from landmark_batch.frames.pictures import PictureOrder
    from landmark_batch.workflows.export_session import ExportSession

logger = logging.getLogger(__name__)

HOLD_SECONDS = 1.0  # that the word of a chunk's beginning may wait for another event


def drive_task(order: JobOrder) -> RenderResult | LandmarkError:
    """The long-running task that drives a job. An error that people can mend is its result: Dask would try again."""
    worker = get_worker()
    secede()
    with Client(worker.scheduler.address, security=worker.security, set_as_default=False) as client:
        return drive_with(
            client, order, worker.log_event
        )  # batched with all else that this worker has to say; a client's is an errand each


def drive_with(client: Client, order: JobOrder, log_event: Callable[[str, Any], None]) -> RenderResult | LandmarkError:
    """Drive a job with this client, wherever it is. log_event: tells those who watch, by topic."""
    station = DaskStation(client, order, log_event)
    try:
        return drive(order, station)
    except LandmarkError as error:
        return error
    finally:
        station.end()


class DaskStation:
    """A drive.Station on a cluster."""

    def __init__(self, client: Client, order: JobOrder, log_event: Callable[[str, Any], None]) -> None:
        self._client = client
        self._log_event = log_event
        self._held: list[Event] = []  # beginnings of chunks, not told yet
        self._held_at = 0.0  # when the first of them came
        self._begun = False
        self._order = order
        self._crew: Crew | None = None
        self._pool: DaskPool | None = None
        self._exports: ExportSession | None = None

    def emit(self, event: Event) -> None:
        if self._exports is not None:
            self._exports(event)
        if not self._held:
            self._held_at = time.monotonic()
        self._held.append(event)
        if not (self._begun and isinstance(event, ChunkStarted)):
            self._tell()  # else most often another chunk is done in a moment: both travel together
        self._begun |= isinstance(event, ChunkStarted)

    def _tell(self) -> None:
        held, self._held = self._held, []
        self._log_event(events_topic(self._order.run), events_message(held))

    def tell_held(self) -> None:
        """Tell what has waited long enough."""
        if self._held and time.monotonic() - self._held_at >= HOLD_SECONDS:
            self._tell()

    def begin(self, wanted: Sequence[int], todo: Sequence[int]) -> PictureOrder | None:
        asked = self._order.exports
        if asked is None or not asked.is_anything:
            return None
        from landmark_batch.workflows.export_session import ExportSession
        from landmark_batch.workflows.worker import kernel_source

        job = self._order.request.job
        self._exports = ExportSession.of_job(
            job,
            frames=wanted,
            pending=todo,
            images=asked.images,
            video=asked.video,
            allow_8bit=asked.allow_8bit,
            latest=asked.latest,
            kernels=kernel_source(),
        )
        return self._exports.pictures

    def end(self) -> None:
        """Tell what is held; finish the exports of a job nobody watches; what goes wrong stands in the log."""
        if self._held:
            with suppress(Exception):
                self._tell()
        if self._exports is None:
            return
        try:
            for note in self._exports.finish().notes:
                logger.warning("%s", note)
        except Exception:
            logger.exception("an export failed; the frames stand")
        finally:
            self._exports.abort()

    def open_run(self, folder: StorePath, snapshot: JobSnapshot) -> int:
        parallel, store = self._order.request.job.parallel, FrameStore.open(snapshot.store)
        placement = self._order.placement
        self._crew = Crew(
            self._client,
            snapshot.run,
            folder,
            GroupShape(parallel.tensor_parallel, parallel.data_parallel),
            expected=placement.workers if placement is not None else 0,
            timeout=parallel.render_timeout,
            first_epoch=max(read_fence(StoreLayout(store.path)).epochs.values(), default=0) + 1,
            fence=lambda group, epoch: store.fence(epoch, group=f"{snapshot.run}/{group}"),
            refuse=self._refuse,
            log=str(self._order.log),
        )
        try:
            return self._crew.open()
        except LandmarkError:
            raise
        except Exception as error:
            raise ConfigError(
                f"the workers of {self._client.scheduler.address} cannot open the job: {type(error).__name__}: {error}",
                remedy="install the same landmark-batch, torch and Python on every worker host",
            ) from error

    def _refuse(self, error: BaseException) -> None:
        if self._pool is not None:
            self._pool.refuse(error)

    def pool(self, graph: RenderGraph, folder: StorePath, claim: Claim) -> DaskPool:
        assert self._crew is not None
        priority = self._order.request.job.parallel.priority
        self._pool = DaskPool(self._client, self._crew, graph, folder, claim=claim, priority=priority, turn=self.tell_held)
        return self._pool

    def close(self) -> None:
        ends = self._order.placement is not None and not self._order.request.renderer.get("profile")
        if self._crew is not None and not ends:  # workers of its own end with the job, unless they have traces to close
            with suppress(Exception):
                self._crew.close()
