"""One rank of a host: the process that holds its nanny. A supervisor starts it, tells it when to drain, and starts it again.

A process a nanny: what happens to one rank's nanny happens to no other. It obeys its link to the supervisor and no signal, for
signals of batch systems reach every process at once; when the link breaks, the supervisor is dead and the rank ends too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, Literal

import dask
from distributed.protocol.pickle import dumps

from landmark_batch.workflows.cluster import SETTINGS
from landmark_batch.workflows.hosts import LOOPBACK_PAGE, Rank, end_process, own_host, quiet_dask
from landmark_batch.workflows.in_hand import CHUNKS
from landmark_batch.workflows.joblog import LogFile
from landmark_batch.workflows.nanny import RenderNanny, die_with_parent
from landmark_batch.workflows.warm import PRELOADED
from landmark_batch.workflows.worker import begin_drain, drained

logger = logging.getLogger(__name__)

Word = tuple[Literal["up", "failed", "lost", "dismissed"], str]
DRAIN, CLOSE = "drain", "close"
_POLL_SECONDS = 0.5
_CLOSE_SECONDS = 10.0
_STOP_SECONDS = 2.0  # for a worker to say goodbye before it is killed; it has nothing in hand that is not in the store


def run_rank(rank: Rank, link: Connection, drain_seconds: float) -> None:
    """Body of the process. Sends Words over `link`, takes DRAIN and CLOSE from it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    die_with_parent()
    _log_to(rank)
    try:
        settings = {**SETTINGS, "distributed.diagnostics.nvml": bool(rank.env.get("CUDA_VISIBLE_DEVICES"))}
        with dask.config.set(settings):
            asyncio.run(_serve(rank, link, drain_seconds))
    finally:
        end_process()


def _log_to(rank: Rank) -> None:
    quiet_dask()
    handler = LogFile(rank.log) if rank.log is not None else logging.StreamHandler()
    handler.setFormatter(logging.Formatter(f"%(asctime)s %(levelname)-7s [{rank.name} nanny] %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    for name in ("distributed", "distributed.nanny"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True


async def _serve(rank: Rank, link: Connection, drain_seconds: float) -> None:
    words: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_reader(link.fileno(), _listen, link, words)
    try:
        nanny = RenderNanny(
            rank.scheduler,
            name=rank.name,
            host=own_host(rank.scheduler),
            nthreads=CHUNKS,
            env=rank.env,
            security=rank.tls.security() if rank.tls else None,
            memory_limit=0,
            dashboard_address=LOOPBACK_PAGE,
            preload=[PRELOADED],  # by the worker, before it is up: its first job is not to wait for that
            preload_argv=[],
            log=str(rank.log) if rank.log is not None else None,
        )
        starting = asyncio.ensure_future(nanny.start())
        told = asyncio.ensure_future(words.get())
        await asyncio.wait({starting, told}, return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():  # not up yet: nothing to drain
            return
        starting.result()
    except Exception as error:  # noqa: BLE001  the supervisor says it, and tries again
        _say(link, ("failed", _last_cause(error)))
        return
    _say(link, ("up", str(nanny.worker_address)))
    ended = asyncio.ensure_future(nanny.finished())
    await asyncio.wait({ended, told}, return_when=asyncio.FIRST_COMPLETED)
    if ended.done():
        _say(link, ("dismissed", "the scheduler took it out of service") if nanny.dismissed else ("lost", "the scheduler is gone"))
        return
    if told.result() == DRAIN:
        at_once = asyncio.ensure_future(words.get())
        draining = asyncio.ensure_future(_drain(nanny, drain_seconds))
        await asyncio.wait({at_once, draining, ended}, return_when=asyncio.FIRST_COMPLETED)
    with contextlib.suppress(Exception):
        await asyncio.wait_for(nanny.close(timeout=_STOP_SECONDS, reason="landmark-batch-drained"), _CLOSE_SECONDS)


def _listen(link: Connection, words: asyncio.Queue[str | None]) -> None:
    try:
        words.put_nowait(str(link.recv()))
    except (EOFError, OSError):
        asyncio.get_running_loop().remove_reader(link.fileno())
        words.put_nowait(None)


def _say(link: Connection, word: Word) -> None:
    with contextlib.suppress(OSError):
        link.send(word)


def _last_cause(error: BaseException) -> str:
    """One line: the error Dask wraps in others is what helps."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


async def _drain(nanny: RenderNanny, seconds: float) -> None:
    """Let the worker finish the chunk in hand and take no other, for at most `seconds`."""
    end = time.monotonic() + seconds
    try:
        await _on_worker(nanny, begin_drain)
        while time.monotonic() < end:
            if await _on_worker(nanny, drained):
                return
            await asyncio.sleep(_POLL_SECONDS)
        logger.warning("still rendering after %.0f s of draining: ended", seconds)
    except Exception as error:  # noqa: BLE001  a worker that cannot be asked has nothing to finish
        logger.warning("cannot drain: %s", _last_cause(error))


async def _on_worker(nanny: RenderNanny, function: Callable[..., Any]) -> Any:
    """Call a function in this nanny's worker process, as Client.run does; it works without a scheduler too."""
    answer = await nanny.rpc(nanny.worker_address).run(function=dumps(function), args=dumps(()), kwargs=dumps({}))
    if answer["status"] != "OK":
        raise RuntimeError(f"{function.__name__}: {answer.get('exception_text', answer['status'])}")
    return answer["result"]
