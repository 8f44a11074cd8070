"""The scheduler of a cluster and, beside it, the worker process in which the jobs' drivers run."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import multiprocessing
import os
import signal
import socket
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path

import dask
from distributed import Scheduler

from landmark_batch.errors import ConfigError, GroupError, LandmarkError
from landmark_batch.workflows.cluster import DASHBOARD_PORT, SCHEDULER_SETTINGS, SETTINGS, settle
from landmark_batch.workflows.hosts import DRIVER, LOOPBACK_PAGE, end_process, own_host, quiet_dask
from landmark_batch.workflows.nanny import RenderNanny, die_with_parent
from landmark_batch.workflows.security import SCHEDULER_PORT, TlsCredentials, write_private
from landmark_batch.workflows.worker import DRIVER_RESOURCE

logger = logging.getLogger(__name__)

DRIVERS = 1000  # jobs at once; a driver takes one unit of the resource
DRIVER_THREADS = 8
ALLOWED_FAILURES = 1000  # deaths of workers are counted by the driver, not by Dask
_CLOSE_SECONDS = 10.0


@dataclass(frozen=True)
class SchedulerOptions:
    """host, port: where it listens; port 0 takes a free one. dashboard_port: None for no dashboard.

    scheduler_file: written when it is up, removed at the end. log: of the driver's process.
    """

    host: str = "127.0.0.1"
    port: int = SCHEDULER_PORT
    dashboard_host: str = "127.0.0.1"
    dashboard_port: int | None = DASHBOARD_PORT
    tls: TlsCredentials | None = None
    scheduler_file: Path | None = None
    log: Path | None = None


@dataclass(frozen=True)
class SchedulerUp:
    """address: for workers and clients. dashboard: address of its page, None without one."""

    address: str
    dashboard: str | None


def serve_scheduler(options: SchedulerOptions, up: Callable[[SchedulerUp], None]) -> None:
    """Run a scheduler in this process until SIGTERM or Ctrl-C; a second one ends it at once. up: called when workers may come.

    Raises ConfigError where it cannot listen, GroupError where the driver's process does not start.
    """
    asyncio.run(_serve(options, up, link=None))


@contextlib.contextmanager
def scheduler_process(options: SchedulerOptions) -> Iterator[SchedulerUp]:
    """The same in a process of its own, for the time of the context; it ends with this process. Raises as serve_scheduler."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process: SpawnProcess = context.Process(target=_child, args=(options, theirs), name="landmark-batch scheduler")
    process.start()
    theirs.close()
    try:
        try:
            answer = ours.recv()
        except EOFError:
            process.join()
            raise GroupError(f"the scheduler's process ended with code {process.exitcode}", remedy="its output says why") from None
        if isinstance(answer, LandmarkError):
            raise answer
        yield answer
    finally:
        ours.close()  # which ends it
        process.join(_CLOSE_SECONDS + 5)
        if process.is_alive():
            process.kill()
            process.join()


def _child(options: SchedulerOptions, link: Connection) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    try:
        asyncio.run(_serve(options, link.send, link=link))
    except LandmarkError as error:
        with contextlib.suppress(OSError):
            link.send(error)
    finally:
        end_process()


async def _serve(options: SchedulerOptions, up: Callable[[SchedulerUp], None], *, link: Connection | None) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    if link is None:
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, lambda: os._exit(130) if ended.is_set() else ended.set())
    else:
        loop.add_reader(link.fileno(), _broken, link, ended)
    with dask.config.set({**SETTINGS, "distributed.diagnostics.nvml": False}):
        quiet_dask()
        scheduler = await _start(options)
        driver = asyncio.ensure_future(_keep_driver(scheduler, options, ended))
        try:
            told = SchedulerUp(str(scheduler.address), _dashboard(scheduler, options))
            with _scheduler_file(options.scheduler_file, told):
                up(told)
                closed = asyncio.ensure_future(scheduler.finished())
                asked = asyncio.ensure_future(ended.wait())
                await asyncio.wait({closed, asked, driver}, return_when=asyncio.FIRST_COMPLETED)
                if driver.done():
                    driver.result()
        finally:
            ended.set()
            with contextlib.suppress(Exception):
                await asyncio.wait_for(asyncio.shield(driver), _CLOSE_SECONDS)
            with contextlib.suppress(Exception):
                await asyncio.wait_for(scheduler.close(reason="landmark-batch-ended"), _CLOSE_SECONDS)


def _broken(link: Connection, ended: asyncio.Event) -> None:
    asyncio.get_running_loop().remove_reader(link.fileno())
    ended.set()


async def _start(options: SchedulerOptions) -> Scheduler:
    page = f"{options.dashboard_host}:{options.dashboard_port}" if options.dashboard_port is not None else LOOPBACK_PAGE
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*Port \d+ is already in use")  # it takes another, and says which
            with dask.config.set(SCHEDULER_SETTINGS):
                scheduler = await Scheduler(
                    host=options.host,
                    port=options.port,
                    protocol="tls" if options.tls else "tcp",
                    security=options.tls.security() if options.tls else None,
                    dashboard=options.dashboard_port is not None,
                    dashboard_address=page,
                    allowed_failures=ALLOWED_FAILURES,
                )
            settle(scheduler)
            if options.dashboard_port is None:  # its HTTP server has no such page: clients are not to be sent there
                scheduler.services["http"] = scheduler.services.pop("dashboard")
            return scheduler
    except (OSError, ValueError, RuntimeError) as error:
        cause = error.__cause__ or error
        busy = getattr(cause, "errno", None) == errno.EADDRINUSE
        remedy = "--port 0 takes a free one; is a scheduler running already?" if busy else "name an address of this machine with --host"
        raise ConfigError(f"the scheduler cannot listen on {options.host}:{options.port}: {cause}", remedy=remedy) from None


def _dashboard(scheduler: Scheduler, options: SchedulerOptions) -> str | None:
    if options.dashboard_port is None:
        return None
    host = socket.gethostname() if options.dashboard_host in ("0.0.0.0", "::", "") else options.dashboard_host
    return f"http://{host}:{scheduler.http_server.port}/status"


@contextlib.contextmanager
def _scheduler_file(path: Path | None, told: SchedulerUp) -> Iterator[None]:
    """A file with the address, as Dask's own tools read it, of this user alone."""
    if path is None:
        yield
        return
    text = json.dumps({"type": "Scheduler", "address": told.address, "dashboard": told.dashboard, "host": socket.gethostname()})
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write_private(partial, text)
        partial.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot write: {error.strerror or error}", remedy="check the folder of --scheduler-file") from None
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


async def _keep_driver(scheduler: Scheduler, options: SchedulerOptions, ended: asyncio.Event) -> None:
    """One worker process for the jobs' drivers, started again whenever it ends, until `ended`. Raises GroupError if it never starts."""
    ever = False
    while not ended.is_set():
        nanny = RenderNanny(
            scheduler.address,
            name=DRIVER,
            host=own_host(scheduler.address),
            nthreads=DRIVER_THREADS,
            resources={DRIVER_RESOURCE: DRIVERS},
            env={"CUDA_VISIBLE_DEVICES": ""},
            security=options.tls.security() if options.tls else None,
            memory_limit=0,
            dashboard_address=LOOPBACK_PAGE,
            log=str(options.log) if options.log is not None else None,
        )
        try:
            await nanny
        except Exception as error:
            if not ever:
                raise GroupError(
                    f"the driver's process did not start: {type(error).__name__}: {error}", remedy="its output says why"
                ) from error
            logger.warning("the driver's process did not start: %s", error)
            await asyncio.sleep(1.0)
            continue
        ever = True
        finished, asked = asyncio.ensure_future(nanny.finished()), asyncio.ensure_future(ended.wait())
        await asyncio.wait({finished, asked}, return_when=asyncio.FIRST_COMPLETED)
        with contextlib.suppress(Exception):
            await nanny.close(timeout=_CLOSE_SECONDS / 2)
        asked.cancel()
