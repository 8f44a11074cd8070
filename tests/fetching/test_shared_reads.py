"""What the ranks of a host share of the blocks they read: real processes, which are killed, and files that must not mislead."""

from __future__ import annotations

import errno
import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.fetching import shared_reads, transit
from landmark_batch.fetching.shared_reads import SharedReads
from landmark_batch.fetching.transit import NOTHING, Offer, make_offer, remove_leftovers
from landmark_batch.scene.store import BlockStore
from tests.fetching.cached import make_store
from tests.fetching.sharing_tasks import MIB, join_pair, read_blocks, sharing
from tests.parallel.ranks import Ranks
from tests.workflows.block_jobs import Server, serve

PLANE = bytes(range(256)) * 4


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> BlockStore:
    return make_store(tmp_path_factory.mktemp("shared"))


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(transit, "MEMORY", folder)
    return folder


@pytest.fixture
def opened() -> Iterator[list[SharedReads]]:
    made: list[SharedReads] = []
    yield made
    for shared in made:
        shared.close()


@pytest.fixture
def pair(root: Path) -> Iterator[Ranks]:
    """Two processes that share."""
    processes = Ranks(2)
    for answer in processes.all(range(2), join_pair, root):
        answer.get()
    yield processes
    processes.close()


def reading(into: bytearray, content: bytes = PLANE) -> Callable[[], None]:
    def read() -> None:
        into[:] = content

    return read


def take(shared: SharedReads, name: str, content: bytes = PLANE, *, wait: bool = True) -> str:
    """Where the bytes came from; they are the right ones."""
    into = bytearray(len(content))
    source = shared.fill(name, memoryview(into), reading(into, content), wait=wait)
    assert source == "later" or bytes(into) == content
    return source


def files(root: Path) -> dict[str, int]:
    """Bytes of files in transit."""
    return {path.name: path.stat().st_size for path in root.glob("*/*") if path.name not in (shared_reads.ROOM, transit.ALIVE)}


def planes(server: Server) -> Counter[str]:
    """How often each plane was asked for."""
    return Counter(path for path in server.asked if "_plane/" in path)


def until(condition: Callable[[], Any], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


@pytest.mark.parametrize(("precision", "tensor"), [("fp32", False), ("fp16", False), ("fp32", True)])
def test_two_ranks_read_each_plane_once_from_a_url(precision: str, tensor: bool, store: BlockStore, root: Path, pair: Ranks) -> None:
    """Data ranks, a conversion, tensor ranks; three blocks at once in each process."""
    location = Path(str(store.location))
    with serve(location.parent) as server:
        answers = pair.all(range(2), read_blocks, f"{server.url}/{location.name}", location, precision, tensor)
    errors, counted = zip(*(answer.get() for answer in answers), strict=True)
    assert not any(errors)
    assert planes(server) == dict.fromkeys((f"/{location.name}/{t.key(block)}" for t in store.tables for block in range(store.blocks)), 1)
    total = store.blocks * sum(table.height * table.width * table.channels for table in store.tables) * 4
    for name in ("bytes_read", "bytes_shared"):
        assert sum(numbers[name] for numbers in counted) == total, name
    assert all(numbers["blocks_read"] == store.blocks and numbers["host_peak_bytes"] >= MIB for numbers in counted)
    assert not list(root.iterdir()), "the last rank removes the folder"


def test_a_rank_killed_while_it_reads_holds_up_nobody(store: BlockStore, root: Path, pair: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other waits for its read, then reads the plane itself."""
    location = Path(str(store.location))
    key = store.tables[0].key(2)  # of the first rank's first plane
    with serve(location.parent) as server:
        killed, refuses = threading.Event(), server.refuses
        monkeypatch.setattr(server, "refuses", lambda path: refuses(path) or (path.endswith(key) and not killed.wait(20)))
        where = f"{server.url}/{location.name}", location
        pair.send(0, read_blocks, 0, *where, "fp32", False, 1, (2,))
        until(lambda: any(path.endswith(key) for path in server.asked))
        pair.send(1, read_blocks, 1, *where)
        until(lambda: sum(planes(server).values()) == len(store.tables) * store.blocks)  # all but that plane
        assert not pair.pipes[1].poll(0.1), "it waits"
        pair.processes[0].kill()
        pair.processes[0].join()
        killed.set()
        errors, counted = pair.receive(1).get()
    assert not errors and counted["blocks_read"] == store.blocks
    assert planes(server)[f"/{location.name}/{key}"] == 2
    assert set(planes(server).values()) == {1, 2}
    assert not list(root.iterdir()), "nothing is left of the dead one"


def test_every_rank_names_a_damaged_block_and_its_file(store: BlockStore, root: Path, tmp_path: Path, pair: Ranks) -> None:
    shutil.copytree(Path(str(store.location)), tmp_path / "bad.zarr")
    bad = BlockStore.open(tmp_path / "bad.zarr")
    file = Path(bad.where(4, bad.tables[1]))
    content = bytearray(file.read_bytes())
    content[100] ^= 1
    file.write_bytes(content)
    for answer in pair.all(range(2), read_blocks, str(tmp_path / "bad.zarr"), Path(str(store.location))):
        errors, counted = answer.get()
        assert errors.keys() == {4} and counted["blocks_read"] == 5
        assert errors[4].startswith("CheckpointError") and "block 4" in errors[4] and str(file) in errors[4]


def test_a_file_is_taken_once_by_each_rank_and_goes_with_the_last(root: Path, opened: list[SharedReads]) -> None:
    opened += [sharing(root, rank, ranks=3) for rank in range(3)]
    assert take(opened[1], "a") == "store"
    assert take(opened[0], "a") == take(opened[2], "a") == "neighbour"
    assert not files(root)
    assert take(opened[0], "a") == "store", "asked for again, it is read again"
    assert (take(opened[0], "b", b""), take(opened[1], "b", b"")) == ("store", "neighbour"), "nothing to copy"


def test_a_read_that_fails_is_its_own_ranks_alone(root: Path, opened: list[SharedReads]) -> None:
    """The one that waits for it reads itself, and so gets what is wrong itself."""
    opened += [sharing(root, rank) for rank in range(2)]
    begun, fail = threading.Event(), threading.Event()

    def broken() -> None:
        begun.set()
        assert fail.wait(20)
        raise OSError(errno.EIO, "a bad sector")

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(opened[0].fill, "a", memoryview(bytearray(len(PLANE))), broken, wait=True)
        assert begun.wait(20)
        assert take(opened[1], "a", wait=False) == "later"
        second = pool.submit(take, opened[1], "a")
        fail.set()
        with pytest.raises(OSError, match="bad sector"):
            first.result()
        assert second.result() == "store"
    assert take(opened[0], "a") == "neighbour" and not files(root)


def test_who_waits_for_too_long_reads_itself(root: Path, opened: list[SharedReads], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shared_reads, "PATIENCE", 0.05)
    opened += [sharing(root, rank) for rank in range(2)]
    into = bytearray(len(PLANE))

    def slow() -> None:
        assert take(opened[1], "a") == "store"
        into[:] = PLANE

    assert opened[0].fill("a", memoryview(into), slow, wait=True) == "store"
    assert take(opened[1], "a") == "neighbour"


def test_what_a_killed_rank_had_begun_is_taken_over(root: Path, opened: list[SharedReads]) -> None:
    """Whatever is in its file; and a file without its whole content has no name to be found by."""
    opened += [sharing(root, rank) for rank in range(2)]
    (folder,) = root.iterdir()
    (folder / f"a{shared_reads.PART}").write_bytes(b"\1" * 5000)
    (folder / f"b{shared_reads.PART}").touch()
    for name in "ab":
        assert take(opened[0], name) == "store"
        assert take(opened[1], name) == "neighbour"
    (folder / "c").write_bytes(b"cut off")
    assert take(opened[0], "c") == "store" and take(opened[1], "c") == "neighbour"
    assert not files(root)


def test_files_stay_within_the_budget_and_the_oldest_leave(root: Path, opened: list[SharedReads]) -> None:
    room = 3 * (len(PLANE) + 2)
    opened += [sharing(root, rank, size=room // 2) for rank in range(2)]
    assert opened[0].budget == room and opened[0].own_bytes == room // 2
    for number in range(9):
        assert take(opened[0], f"{number}") == "store"
        assert sum(files(root).values()) <= room
        time.sleep(0.01)  # the clock of files is coarse
    assert sorted(files(root)) == ["6", "7", "8"]
    assert take(opened[0], "whole", PLANE * 4) == "store"
    assert sorted(files(root)) == ["6", "7", "8"], "for what does not fit nothing leaves"
    assert [take(opened[1], f"{number}") for number in (8, 5, 7)] == ["neighbour", "store", "neighbour"]


def test_room_taken_by_reads_under_way_is_not_given_twice(root: Path, opened: list[SharedReads]) -> None:
    opened += [sharing(root, rank, size=len(PLANE) + 2) for rank in range(2)]
    into = [bytearray(len(PLANE)) for _ in range(3)]
    sizes = []

    def nested(depth: int) -> None:
        into[depth][:] = PLANE
        sizes.append(sum(files(root).values()))
        if depth < 2:
            opened[depth % 2].fill(f"{depth + 1}", memoryview(into[depth + 1]), lambda: nested(depth + 1), wait=True)

    opened[0].fill("0", memoryview(into[0]), lambda: nested(0), wait=True)
    assert sizes == [len(PLANE) + 2, 2 * (len(PLANE) + 2), 2 * (len(PLANE) + 2)]
    assert into == [PLANE] * 3 and sorted(files(root)) == ["0", "1"]


def test_many_threads_of_two_ranks_get_the_right_bytes(root: Path, opened: list[SharedReads]) -> None:
    """With room for a few files only, so that they leave while others look for them."""
    opened += [sharing(root, rank, size=2 * len(PLANE)) for rank in range(2)]
    contents = [random.Random(number).randbytes(len(PLANE)) for number in range(6)]

    def work(seed: int) -> Counter[str]:
        chance = random.Random(seed)
        wanted = (chance.randrange(len(contents)) for _ in range(60))
        return Counter(take(opened[seed % 2], f"{number}", contents[number], wait=chance.random() < 0.7) for number in wanted)

    with ThreadPoolExecutor(6) as pool:
        sources = sum(pool.map(work, range(6)), Counter[str]())
    assert sources["store"] and sources["neighbour"]
    assert sum(files(root).values()) <= opened[0].budget
    assert not any(name.endswith(shared_reads.PART) for name in files(root))


def test_a_rank_reads_itself_where_its_folder_is_gone_or_full(
    root: Path, opened: list[SharedReads], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened += [sharing(root, rank) for rank in range(2)]
    (folder,) = root.iterdir()

    class Full(FileIO):
        def write(self, content: Any) -> int:
            raise OSError(errno.ENOSPC, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(shared_reads, "FileIO", Full)
        assert take(opened[0], "a") == "store" and not files(root)
    shutil.rmtree(folder)
    assert take(opened[0], "a") == take(opened[1], "a") == "store"
    assert not folder.exists()


def test_folders_go_with_their_last_rank_and_those_of_killed_ranks_with_the_next(
    root: Path, opened: list[SharedReads], pair: Ranks
) -> None:
    live = sharing(root, 0, number=5)
    opened.append(live)
    for process in pair.processes:
        process.kill()
        process.join()
    assert len(list(root.iterdir())) == 2
    opened.append(sharing(root, 1, number=5))
    assert len(list(root.iterdir())) == 1, "the dead group's is gone"
    (root / f"{transit.PREFIX}empty").mkdir()  # of one killed at its very beginning
    remove_leftovers()
    (folder,) = root.iterdir()
    live.close()
    assert folder.exists() and take(opened[1], "a") == "store"
    opened[1].close()
    opened[1].close()
    assert not folder.exists()


def test_a_folder_that_another_removes_while_it_is_made_is_made_again(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It had no rank yet, and looked like a leftover."""
    is_own, removed = transit._is_own, list[Path]()

    def late(folder: Path) -> bool:
        if not removed:
            folder.rmdir()
            removed.append(folder)
        return is_own(folder)

    monkeypatch.setattr(transit, "_is_own", late)
    opened = transit.open_folder(root, 3)
    assert opened is not None and removed == [opened[0]] == list(root.iterdir())
    os.close(opened[1])


def test_an_offer_is_a_part_of_what_a_rank_has(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found, offer = make_offer(400 * MIB, 20 * MIB, 2)
    assert (found, offer.bytes) == (root, 100 * MIB)
    again = make_offer(4000 * MIB, 20 * MIB, 2)[1]
    assert again.bytes == 8 * 20 * MIB and again.host == offer.host and again.nonce != offer.nonce
    assert make_offer(79 * MIB, 20 * MIB, 2) == (None, NOTHING), "fewer than four blocks"
    assert make_offer(400 * MIB, 20 * MIB, 1) == (None, NOTHING), "a rank alone"
    assert make_offer(0, 20 * MIB, 2) == (None, NOTHING)
    full = os.statvfs(root)
    monkeypatch.setattr(transit.tempfile, "gettempdir", lambda: str(root.parent))
    monkeypatch.setattr(transit, "MEMORY", root / "none")
    other, there = make_offer(400 * MIB, 20 * MIB, 2)
    assert other == root.parent and there.host != offer.host
    assert make_offer(8 * full.f_bavail * full.f_frsize, 2**50, 2) == (None, NOTHING), "no room anywhere"
    monkeypatch.setattr(transit, "fcntl", None)
    assert make_offer(400 * MIB, 20 * MIB, 2) == (None, NOTHING)


def test_ranks_share_with_those_of_their_host_alone(root: Path, opened: list[SharedReads]) -> None:
    offers = [Offer(1, 10, 100), Offer(2, 20, 200), Offer(1, 30, 300), NOTHING, Offer(2, 40, 400), Offer(3, 50, 500)]
    found = [SharedReads.join(root if offer.bytes else None, offers, rank) for rank, offer in enumerate(offers)]
    opened += [shared for shared in found if shared is not None]
    assert [None if s is None else (s.rank, s.ranks, s.budget, s.own_bytes) for s in found] == [
        (0, 2, 40, 10),
        (0, 2, 60, 20),
        (1, 2, 40, 30),
        None,
        (1, 2, 60, 40),
        None,
    ]
    assert sorted(path.name for path in root.iterdir()) == [f"{transit.PREFIX}{number:x}" for number in (100, 200)]
