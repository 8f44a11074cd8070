"""WarmStart: workers that are forked with everything imported, a process that goes whenever it is told to."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable

import psutil
import pytest
from distributed import Client

from landmark_batch.workflows.cluster import start_cluster
from landmark_batch.workflows.machine import Placement
from landmark_batch.workflows.warm import WarmStart
from tests.workflows.processes import until

PLACEMENT = Placement("cpu", 1, (), "here")
Servers = Callable[[], list[int]]


def about() -> tuple[int, bool]:
    """(the parent of this process, whether what a worker needs is imported)."""
    modules = ("torch", "landmark_batch.model.renderer", "landmark_batch.workflows.preloaded")
    return os.getppid(), all(name in sys.modules for name in modules)


def renderers(client: Client) -> list[str]:
    workers = client.scheduler_info(n_workers=-1)["workers"]
    return [address for address, info in workers.items() if info["name"] != "driver"]


def test_workers_are_forked_from_it_and_it_leaves_nothing(monkeypatch: pytest.MonkeyPatch, servers: Servers) -> None:
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # as `render` does
    with WarmStart() as warm:
        assert warm.running
        (server,) = until(servers)
        cluster = start_cluster(PLACEMENT, dashboard=False, warm=warm)
        try:
            (found,) = cluster.client.run(about, workers=renderers(cluster.client)).values()
        finally:
            cluster.close()
        assert found == (server, True)
        assert psutil.Process(server).num_threads() == 1, "what forks has one thread"
    assert not servers()


@pytest.mark.parametrize("warmed", [True, False])
def test_sigterm_to_every_process_ends_none_but_who_is_to_answer(warmed: bool, servers: Servers) -> None:
    """As a batch job's end sends it: the client finishes the chunks in hand, with workers that are still there."""
    mine = {process.pid for process in psutil.Process().children(recursive=True)}  # servers of other tests
    with contextlib.ExitStack() as stack:
        warm = stack.enter_context(WarmStart()) if warmed else None
        cluster = start_cluster(PLACEMENT, dashboard=False, warm=warm)
        stack.callback(cluster.close)
        before = cluster.client.run(os.getpid, workers=renderers(cluster.client))
        others = [process.pid for process in psutil.Process().children(recursive=True) if process.pid not in mine]
        assert set(before.values()) <= set(others) and (not warmed or set(servers()) <= set(others))
        for process in others:
            os.kill(process, signal.SIGTERM)
        time.sleep(0.5)
        assert cluster.client.run(os.getpid, workers=renderers(cluster.client)) == before
        assert all(psutil.pid_exists(process) for process in others)


def test_it_goes_while_it_still_imports(servers: Servers) -> None:
    with pytest.raises(KeyboardInterrupt), WarmStart():
        until(servers)
        raise KeyboardInterrupt
    assert not servers()


def test_the_fork_server_of_another_is_left_alone(servers: Servers) -> None:
    with WarmStart() as first:
        with WarmStart() as second:
            assert (first.running, second.running) == (True, False)
        assert len(until(servers)) == 1
    assert not servers()
