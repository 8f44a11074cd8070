"""The ledger against a model: any records, any order of writers, any cut."""

from __future__ import annotations

import errno
import itertools
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from landmark_batch.errors import DiskFullError
from landmark_batch.frames import durable
from landmark_batch.frames.ledger import LedgerIndex, LedgerLog, rewrite_damaged
from landmark_batch.frames.records import FrameRecord, discard_line, frames_line, line_records, record_lines
from landmark_batch.frames.sealed import DamagedError, seal, unseal

QUICK = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture])


def record(frame: int, *, generation: int = 1, print_: str = "f", worker: str = "w") -> FrameRecord:
    return FrameRecord(frame, print_, {"rgb": "d" * 32}, {"rgb": 100 + frame}, 0.5, 1, worker, 12.5, "host", 7, 0, generation, "s")


@st.composite
def events(draw: st.DrawFn) -> list[tuple[int, dict[str, Any]]]:
    """(writer, line) in the order they happen: generations only grow, discards take a fresh one."""
    generation, found = 1, []
    for number in range(draw(st.integers(1, 12))):
        frames = sorted(draw(st.sets(st.integers(0, 7), min_size=1, max_size=4)))
        if draw(st.integers(0, 3)) == 0:
            generation += 1
            found.append((draw(st.integers(0, 2)), discard_line(frames, generation, "test", 0.0)))
        else:
            generation += draw(st.integers(0, 1))
            print_ = f"{number}-{generation}"
            found.append((draw(st.integers(0, 2)), frames_line([record(frame, generation=generation, print_=print_) for frame in frames])))
    return found


def model(lines: Sequence[dict[str, Any]]) -> dict[int, str]:
    """{frame: fingerprint} after these lines, in the order they happened."""
    latest: dict[int, str] = {}
    for line in lines:
        if line["kind"] == "frames":
            latest.update(zip(line["frames"], line["fingerprints"], strict=True))
        else:
            latest = {frame: print_ for frame, print_ in latest.items() if frame not in line["frames"]}
    return latest


def shown(index: LedgerIndex) -> dict[int, str]:
    return {frame: found.fingerprint for frame, found in index.refresh().finished().items()}


@QUICK
@given(events())
def test_index_follows_what_happened(happened: list[tuple[int, dict[str, Any]]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        logs = [LedgerLog(directory, f"w{i}") for i in range(3)]
        watching = LedgerIndex(directory)
        for count, (writer, line) in enumerate(happened, start=1):
            after = watching.last_sequence(line["frames"])
            logs[writer].append(line, after=after)
            expected = model([line for _, line in happened[:count]])
            assert shown(watching) == expected
            assert {frame: watching.record(frame) is not None for frame in range(8)} == {frame: frame in expected for frame in range(8)}
        assert shown(LedgerIndex(directory)) == shown(watching)
        assert watching.damaged() == [] and watching.generation == max(line["generation"] for _, line in happened)


def check_cut(directory: Path, lines: Sequence[dict[str, Any]], cuts: Sequence[int] | None) -> None:
    """Of one log cut anywhere exactly the whole lines count, the cut is told, and a line counts once it is whole. cuts: None = all."""
    encoded = [seal({**line, "sequence": i}) + b"\n" for i, line in enumerate(lines)]
    ends, whole = list(itertools.accumulate(map(len, encoded))), b"".join(encoded)
    file = directory / "w.log"
    for size in range(len(whole) + 1) if cuts is None else [cut % (len(whole) + 1) for cut in cuts]:
        file.write_bytes(whole[:size])
        index = LedgerIndex(directory)
        assert shown(index) == model(lines[: sum(end <= size for end in ends)])
        assert [item.torn for item in index.damaged()] == ([] if size in ends else [True])
        with file.open("ab") as log:
            log.write(whole[size:])
        assert shown(index) == model(lines) and index.damaged() == []


def test_cut_at_every_byte(fast_path: Path) -> None:
    lines = [
        frames_line([record(1)]),
        discard_line([1], 2, "x", 0.0),
        frames_line([record(1, generation=2, print_="g"), record(2, generation=2)]),
    ]
    check_cut(fast_path, lines, None)


@QUICK
@given(events(), st.lists(st.integers(0, 10**6), min_size=1, max_size=4))
def test_cut_anywhere(happened: list[tuple[int, dict[str, Any]]], cuts: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        check_cut(Path(folder), [line for _, line in happened], cuts)


@QUICK
@given(events(), st.data())
def test_a_damaged_byte_loses_that_line_only(happened: list[tuple[int, dict[str, Any]]], data: st.DataObject) -> None:
    lines = [line for _, line in happened]
    encoded = [seal({**line, "sequence": i}) + b"\n" for i, line in enumerate(lines)]
    whole = bytearray(b"".join(encoded))
    place = data.draw(st.integers(0, len(whole) - 1))
    whole[place] ^= 1 << data.draw(st.integers(0, 7))
    struck, end = set(), 0
    for i, text in enumerate(encoded):
        if end <= place < end + len(text):
            struck = {i, i + 1} if place == end + len(text) - 1 else {i}  # a lost line break takes the next line with it
        end += len(text)
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        (directory / "w.log").write_bytes(whole)
        index = LedgerIndex(directory)
        expected = model([line for i, line in enumerate(lines) if i not in struck])
        assert shown(index) == expected
        assert index.damaged()
        rewrite_damaged(directory, index.damaged())
        again = LedgerIndex(directory)
        assert shown(again) == expected and again.damaged() == []
        assert shown(index) == expected, "an index that was open reads the rewritten log anew"


def test_a_discard_loses_against_what_came_after_it_whatever_the_clocks(tmp_path: Path) -> None:
    early, late = LedgerLog(tmp_path, "a"), LedgerLog(tmp_path, "b")
    early.append(frames_line([record(1, generation=5, print_="new")._replace(at=-1e9)]))
    late.append(discard_line([1], 5, "before it", 1e9))
    late.append(frames_line([record(1, generation=4, print_="old")._replace(at=1e9)]))
    assert shown(LedgerIndex(tmp_path)) == {1: "new"}
    late.append(discard_line([1], 6, "after it", -1e9))
    assert shown(LedgerIndex(tmp_path)) == {}


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 2)), max_size=12))
def test_records_survive_their_lines(values: list[tuple[int, int]]) -> None:
    records = [record(i, generation=generation, worker=f"w{worker}") for i, (worker, generation) in enumerate(values)]
    lines = record_lines(records)
    assert [found for line in lines for found in line_records(unseal(seal(line)))] == records
    assert len(lines) == len(list(itertools.groupby(values)))


@given(
    st.dictionaries(
        st.text(min_size=1, max_size=5), st.integers() | st.text(max_size=5) | st.floats(allow_nan=False, allow_infinity=False), min_size=1
    ),
    st.data(),
)
def test_seal_holds(values: dict[str, Any], data: st.DataObject) -> None:
    sealed = seal(values)
    assert unseal(sealed) == {**values} and b"\n" not in sealed
    place, bit = data.draw(st.integers(0, len(sealed) - 1)), data.draw(st.integers(0, 7))
    struck = bytearray(sealed)
    struck[place] ^= 1 << bit
    for bad in (bytes(struck), sealed[:place], sealed + b" ", b"", bytes(len(sealed))):
        with pytest.raises(DamagedError):
            unseal(bad)


def test_a_line_of_another_program_is_damage(tmp_path: Path) -> None:
    (tmp_path / "w.log").write_bytes(
        seal({"kind": "frames", "generation": 1, "sequence": 0, "frames": [1]}) + b"\n" + seal({"hello": 1}) + b"\n"
    )
    index = LedgerIndex(tmp_path).refresh()
    assert index.finished() == {} and [item.line for item in index.damaged()] == [1, 2]


def test_disk_full_leaves_no_torn_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = LedgerLog(tmp_path, "w")
    log.append(frames_line([record(1)]))
    written: list[int] = []

    def half(descriptor: int, data: bytes) -> None:
        os.write(descriptor, data[: len(data) // 2])
        written.append(1)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(durable, "write_all", half)
        for _ in range(2):
            with pytest.raises(DiskFullError, match=r"disk is full .*\n.*make space"):
                log.append(frames_line([record(2)]))
    assert len(written) == 2
    index = LedgerIndex(tmp_path).refresh()
    assert list(index.finished()) == [1] and index.damaged() == []
    log.append(frames_line([record(3)]))
    assert list(index.refresh().finished()) == [1, 3] and index.damaged() == []
