"""What the end of a job says of the chunks that failed."""

from __future__ import annotations

from landmark_batch.workflows.result import describe_failures


def test_chunks_of_one_cause_are_told_together() -> None:
    ids = [f"{first:06d}-{first + 3:06d}+4" for first in range(0, 32, 4)]
    failures = {chunk: f"ChunkError: chunk {chunk} on host/w{i % 2}: ValueError: block 7 is damaged" for i, chunk in enumerate(ids[:6])}
    failures[ids[6]] = f"its worker died: rank 1 on host/w3, chunk {ids[6]}: MemoryError: no room (log: city.log)"
    failures[ids[7]] = "frame 9: rgb holds 12 values that are NaN or infinite"
    assert describe_failures(failures) == [
        f"chunks {', '.join(ids[:4])} and 2 more: ValueError: block 7 is damaged",
        f"chunk {ids[6]}: its worker died: rank 1 on host/w3: MemoryError: no room (log: city.log)",
        f"chunk {ids[7]}: frame 9: rgb holds 12 values that are NaN or infinite",
    ]


def test_many_causes_are_counted() -> None:
    failures = {str(i): f"frame {i}: rgb holds {i} values that are NaN" for i in range(9)}
    assert describe_failures(failures)[3:] == ["6 more chunks for other reasons"]
    assert describe_failures({}) == []
