"""Frame ranges and pose chunks: hand-made cases, then properties."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.chunks import FrameChunk, format_frame_ranges, parse_frame_ranges, split_frames
from landmark_batch.errors import ConfigError

FRAMES = st.lists(st.integers(0, 300), max_size=80)


@pytest.mark.parametrize(
    ("text", "frames"),
    [
        ("0", [0]),
        ("0-3", [0, 1, 2, 3]),
        ("0-9x4", [0, 4, 8]),
        ("0-8x4", [0, 4, 8]),
        ("3,5-7", [3, 5, 6, 7]),
        ("5-7,3,6", [3, 5, 6, 7]),
        (" 2 - 4 ".replace(" - ", "-"), [2, 3, 4]),
        ("9-9", [9]),
        ("0-9x100", [0]),
    ],
)
def test_ranges_are_inclusive(text: str, frames: list[int]) -> None:
    assert parse_frame_ranges(text, 10) == frames


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot read ''"),
        ("1,,2", "cannot read ''"),
        ("a", "cannot read 'a'"),
        ("-3", "cannot read '-3'"),
        ("1-2-3", "cannot read '1-2-3'"),
        ("0:5", "cannot read '0:5'"),
        ("0-5x", "cannot read '0-5x'"),
        ("0-5x0", "step 0"),
        ("5-2", "ends before it starts"),
        ("0-10", "frame 10 is outside the flight of 10 frames"),
        ("99", "frame 99 is outside"),
    ],
)
def test_bad_ranges_name_the_part(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_frame_ranges(text, 10)
    assert repr(text) in str(caught.value)
    assert caught.value.remedy


@settings(deadline=None)
@given(FRAMES.filter(bool))
def test_ranges_written_are_read_back(frames: list[int]) -> None:
    assert parse_frame_ranges(format_frame_ranges(frames), 301) == sorted(set(frames))


def test_ranges_written_are_short() -> None:
    assert format_frame_ranges([]) == ""
    assert format_frame_ranges([7]) == "7"
    assert format_frame_ranges([3, 5, 6, 7]) == "3,5-7"
    assert format_frame_ranges([7, 6, 5, 3, 5]) == "3,5-7"


@settings(deadline=None)
@given(FRAMES, st.integers(1, 20))
def test_chunks_hold_every_frame_once_in_order(frames: list[int], size: int) -> None:
    chunks = split_frames(frames, size)
    assert [frame for chunk in chunks for frame in chunk.frames] == sorted(set(frames))
    assert all(1 <= len(chunk.frames) <= size for chunk in chunks)
    assert len({chunk.id for chunk in chunks}) == len(chunks)


@settings(deadline=None)
@given(FRAMES, FRAMES, st.integers(1, 20))
def test_a_frame_falls_into_the_same_chunk_whatever_is_done(frames: list[int], done: list[int], size: int) -> None:
    rest = set(frames) - set(done)
    for chunk in split_frames(rest, size):
        assert len({frame // size for frame in chunk.frames}) == 1


def test_chunks_of_no_frames_and_of_no_size() -> None:
    assert split_frames([], 8) == []
    with pytest.raises(ConfigError, match="chunk_frames = 0"):
        split_frames([1], 0)


def test_the_id_of_a_chunk_tells_its_frames() -> None:
    assert FrameChunk((3, 4, 9)).id == "000003-000009+3"
