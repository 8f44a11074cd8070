from __future__ import annotations

import gc
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from landmark_batch.errors import StoreError
from landmark_batch.frames import process_pool, shared_pixels
from landmark_batch.frames.process_pool import ProcessLost, ProcessPool
from landmark_batch.frames.shared_pixels import opened, place, shared_array
from tests.frames.processes import wait_for
from tests.workflows.processes import until


@pytest.fixture
def pool() -> Iterator[ProcessPool]:
    made = ProcessPool(2)
    yield made
    made.close()


def refuse(what: str) -> None:
    raise StoreError(f"{what}: refused", remedy="ask for less")


def lock() -> object:
    return threading.Lock()


def total(where: shared_pixels.Place) -> int:
    values = opened(where)
    found = int(values.sum())
    values[...] = 7
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in "ZX"
    except OSError:
        return False


def meet(own: str, other: str) -> int:
    Path(own).touch()
    wait_for(Path(other))
    return os.getpid()


def test_calls_go_to_processes_side_by_side(pool: ProcessPool, tmp_path: Path) -> None:
    """Each waits for what the other does."""
    files, pids = [str(tmp_path / name) for name in "ab"], set[int]()
    threads = [threading.Thread(target=lambda i=i: pids.add(pool.run(meet, files[i], files[1 - i]))) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(pids) == 2 and os.getpid() not in pids
    assert {pool.run(int, text, base=2) for text in ("101", "11")} == {5, 3}


def test_a_pool_is_ready_when_its_processes_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool, "START", "import time; time.sleep(0.5)\n" + process_pool.START)
    pool = ProcessPool(2)
    assert not pool.ready
    until(lambda: pool.ready)
    assert pool.run(len, "abc") == 3 and pool.ready
    pool.close()


def test_errors_are_those_of_the_call(pool: ProcessPool) -> None:
    with pytest.raises(StoreError, match="everything: refused") as caught:
        pool.run(refuse, "everything")
    assert caught.value.remedy == "ask for less"
    with pytest.raises(FileNotFoundError):
        pool.run(os.stat, "/no/such/file")
    with pytest.raises(RuntimeError, match="cannot be pickled"):
        pool.run(lock)
    with pytest.raises(TypeError, match="pickle"):
        pool.run(len, [threading.Lock()])
    assert pool.run(len, [1, 2]) == 2


def test_a_process_that_ends_is_lost_and_the_others_go_on(pool: ProcessPool) -> None:
    with pytest.raises(ProcessLost):
        pool.run(os._exit, 1)
    assert pool.run(len, "abc") == 3
    with pytest.raises(ProcessLost):
        pool.run(os.kill, pool.run(os.getpid), signal.SIGKILL)
    for _ in range(2):
        with pytest.raises(ProcessLost, match="no process is left"):
            pool.run(len, "abc")


def test_no_process_outlives_its_pool(pool: ProcessPool) -> None:
    child, server = pool.run(os.getpid), pool.run(os.getppid)
    pool.close()
    assert not is_alive(child) and not is_alive(server)
    with pytest.raises(ProcessLost):
        pool.run(len, "abc")
    pool.close()


def test_a_pool_without_descriptors_has_no_processes(caplog: pytest.LogCaptureFixture) -> None:
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(list(Path("/proc/self/fd").iterdir())) + 8, most))
    try:
        pool = ProcessPool(50)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert "no processes beside this one" in caplog.text and pool.ready and pool.left == 0
    with pytest.raises(ProcessLost):
        pool.run(len, "abc")
    pool.close()


def test_a_call_that_is_in_work_is_over_before_its_pool(pool: ProcessPool, tmp_path: Path) -> None:
    found = list[int]()
    working = threading.Thread(target=lambda: found.append(pool.run(slow, str(tmp_path / "begun"))))
    working.start()
    wait_for(tmp_path / "begun")
    pool.close(60.0)
    working.join()
    assert found == [7]


def slow(file: str) -> int:
    Path(file).touch()
    time.sleep(0.5)
    return 7


def test_a_call_that_does_not_end_is_lost_with_its_pool(pool: ProcessPool, tmp_path: Path) -> None:
    lost = list[BaseException]()

    def ask() -> None:
        try:
            pool.run(hang, str(tmp_path / "begun"))
        except ProcessLost as error:
            lost.append(error)

    working = threading.Thread(target=ask)
    working.start()
    wait_for(tmp_path / "begun")
    pool.close(0.2)
    working.join()
    assert len(lost) == 1


def hang(file: str) -> None:
    Path(file).touch()
    time.sleep(600)


def test_no_process_outlives_a_killed_caller(tmp_path: Path) -> None:
    program = f"""
import os, time
from landmark_batch.frames.process_pool import ProcessPool
pool = ProcessPool(2)
open({str(tmp_path / "part")!r}, "w").write(f"{{pool.run(os.getpid)}} {{pool.run(os.getppid)}}")
os.rename({str(tmp_path / "part")!r}, {str(tmp_path / "pids")!r})
pool.run(time.sleep, 1.0)
time.sleep(600)
"""
    caller = subprocess.Popen([sys.executable, "-c", program])
    wait_for(tmp_path / "pids")
    pids = [int(text) for text in (tmp_path / "pids").read_text().split()]
    assert all(is_alive(pid) for pid in pids)
    caller.kill()
    caller.wait()
    until(lambda: not any(is_alive(pid) for pid in pids))


def test_ctrl_c_of_a_terminal_ends_no_process(pool: ProcessPool) -> None:
    for pid in (pool.run(os.getpid), pool.run(os.getppid)):
        os.kill(pid, signal.SIGINT)
    assert pool.run(len, "abc") == 3


def test_where_no_process_can_be_had_every_call_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process_pool.sys, "executable", "/no/such/python")
    pool = ProcessPool(2)
    with pytest.raises(ProcessLost):
        pool.run(len, "abc")
    pool.close()


def test_other_processes_see_and_write_shared_arrays(pool: ProcessPool) -> None:
    whole = shared_array((3, 40, 50), "uint16")
    assert not whole.any()
    whole[:] = np.arange(whole.size).reshape(whole.shape)
    part = whole[1, 10:30]
    where = place(part)
    assert where is not None and where.shape == (20, 50)
    sum_before = int(part.sum())
    assert pool.run(total, where) == sum_before
    assert (part == 7).all() and whole[1, 9, 49] == 2499 and whole[1, 30, 0] == 3500
    assert place(whole[:, 0]) is None, "it has gaps"
    assert place(np.zeros(5)) is None


def test_shared_memory_goes_with_its_arrays(pool: ProcessPool) -> None:
    told = list[tuple[str, int]]()
    array = shared_array(
        (100, 1000), "float32", use=lambda address, size: told.append(("use", size)), leave=lambda address: told.append(("leave", 0))
    )
    part, where = array[5], place(array)
    assert where is not None
    kept = os.dup(where.descriptor)  # as whoever has opened it has
    assert pool.run(total, where) == 0
    del array
    gc.collect()
    assert place(part) is not None and told == [("use", 400_000)] and os.fstat(kept).st_size == 400_000
    del part
    gc.collect()
    assert told == [("use", 400_000), ("leave", 0)] and os.fstat(kept).st_size == 0
    os.close(kept)
    with pytest.raises(ProcessLost):
        pool.run(total, where)  # there is nothing any more where it looks
    again = shared_array((100, 1000), "float32")
    with pytest.raises(OSError):
        pool.run(total, where), "the descriptor is another memory's now"
    found = place(again)
    assert found is not None and pool.run(total, found) == 0


def test_the_garbage_collector_may_come_anywhere() -> None:
    """Memory in a cycle, as an error keeps it, goes while another array's place is looked for."""
    other = shared_array((10,), "uint8")
    collected = list[int]()

    class Shape(np.ndarray):  # type: ignore[type-arg]
        @property
        def nbytes(self) -> int:  # type: ignore[override]
            collected.append(gc.collect())
            return 10

    cycle: list[Any] = [shared_array((10,), "uint8")]
    cycle.append(cycle)
    address = cycle[0].ctypes.data
    del cycle
    assert place(other.view(Shape)) is not None and collected
    assert address not in shared_pixels._memories


def descriptors() -> dict[str, str]:
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # that of this look
            found[entry.name] = str(entry.readlink())
    return {number: what for number, what in found.items() if "landmark-batch-pixels" in what}


def test_memory_that_cannot_be_used_is_given_back() -> None:
    def refused(address: int, size: int) -> None:
        raise RuntimeError("not for devices")

    gc.collect()
    before = descriptors()
    with pytest.raises(RuntimeError, match="not for devices"):
        shared_array((100,), "uint8", use=refused)
    gc.collect()
    assert descriptors() == before
