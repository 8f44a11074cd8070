"""Fingerprints: what changes them, what does not, and how a difference reads."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from landmark_batch.frames.fingerprint import (
    FrameSettings,
    flight_digest,
    flight_fingerprints,
    frame_fingerprint,
    settings_difference,
)

from .store_kit import make_flight, make_settings

FLIGHT, SETTINGS = make_flight(), make_settings()
POSE, LENS = FLIGHT.c2w[0], FLIGHT.intrinsics[0]


def test_one_by_one_and_all_at_once_agree() -> None:
    prints = flight_fingerprints(SETTINGS, FLIGHT)
    assert prints == [frame_fingerprint(SETTINGS, FLIGHT.c2w[i], FLIGHT.intrinsics[i]) for i in range(6)]
    assert len(set(prints)) == 6 and all(len(print_) == 64 for print_ in prints)


def test_the_last_bit_of_a_pose_counts() -> None:
    pose, lens = POSE.copy(), LENS.copy()
    pose[2, 3] = np.nextafter(pose[2, 3], 9.0)
    lens[1] = np.nextafter(lens[1], 99.0)
    base = frame_fingerprint(SETTINGS, POSE, LENS)
    assert len({base, frame_fingerprint(SETTINGS, pose, LENS), frame_fingerprint(SETTINGS, POSE, lens)}) == 3


def test_how_a_pose_is_written_does_not_count() -> None:
    pose = POSE.copy()
    pose[0, 0] = 0.0
    base = frame_fingerprint(SETTINGS, pose, LENS)
    negative = pose.copy()
    negative[0, 0] = -0.0
    whole = np.vstack([pose, [0.0, 0.0, 0.0, 1.0]])
    for same in (negative, whole, np.asfortranarray(pose), pose.astype(">f8"), pose.tolist()):
        assert frame_fingerprint(SETTINGS, same, tuple(LENS)) == base


def test_settings_are_their_content() -> None:
    one = FrameSettings({"a": 1, "b": {"c": (1, 2), "d": None}})
    two = FrameSettings({"b": {"d": None, "c": [1, 2]}, "a": 1})
    assert one == two and one.digest == two.digest and one.canonical() == b'{"a":1,"b":{"c":[1,2],"d":null}}'
    assert FrameSettings({"a": 1}).digest != FrameSettings({"a": 1.0}).digest
    with pytest.raises(ValueError):
        FrameSettings({"a": float("nan")})
    with pytest.raises(TypeError):
        FrameSettings({"a": object()})


def test_the_same_in_every_process() -> None:
    code = (
        "from tests.frames.store_kit import *; from landmark_batch.frames.fingerprint import *\n"
        "import sys; sys.stdout.write(flight_fingerprints(make_settings(), make_flight())[3])"
    )
    said = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "7", "PYTHONPATH": ":".join(sys.path)},
    )
    assert said.stdout == flight_fingerprints(SETTINGS, FLIGHT)[3]


def test_differences_in_words() -> None:
    old = {"scene": "a" * 32, "sampling": {"samples": 256, "near": 0.5}, "background": "white", "gone": True, "aabb": [[0, 0], [1, 1]]}
    new = {"scene": "b" * 32, "sampling": {"samples": 128, "near": 0.5, "far": 4}, "background": "black", "aabb": [[0, 0], [1, 2]]}
    assert settings_difference(old, new) == [
        "aabb [[0, 0], [1, 1]] → [[0, 0], [1, 2]]",
        "background white → black",
        "gone true → not set",
        "sampling.far not set → 4",
        "sampling.samples 256 → 128",
        "scene content changed",
    ]
    assert settings_difference(old, old) == []
    assert settings_difference({"scene": {"digest": "a" * 64}}, {"scene": {"digest": "b" * 64}}) == ["scene content changed"]
    assert settings_difference({"m": {}}, {"m": {"k": 1}}) == ["m {} → not set", "m.k not set → 1"]
    assert settings_difference({}, {"parallel.tensor_parallel": 2}) == ["parallel.tensor_parallel 1 → 2"]
    assert settings_difference({"parallel.tensor_parallel": 4}, {}) == ["parallel.tensor_parallel 4 → 1"]


def test_flight_digest_covers_what_the_store_keeps() -> None:
    base = flight_digest(FLIGHT)
    assert flight_digest(dataclasses.replace(FLIGHT, source="elsewhere")) == base
    for change in (
        {"time": FLIGHT.time + 1},
        {"fps": 25.0},
        {"names": FLIGHT.names[::-1]},
        {"c2w": FLIGHT.c2w + 1},
        {"intrinsics": FLIGHT.intrinsics * 2},
    ):
        assert flight_digest(dataclasses.replace(FLIGHT, **change)) != base


def test_only_frames_that_see_a_block_depend_on_it() -> None:
    seen = [[0], [0, 1], [1], [2], [2, 0], []]
    digests = ["a" * 64, "b" * 64, "c" * 64]
    before = SETTINGS.seeing(FLIGHT, seen, digests)
    after = SETTINGS.seeing(FLIGHT, seen, [digests[0], "d" * 64, digests[2]])
    prints, others = flight_fingerprints(before, FLIGHT), flight_fingerprints(after, FLIGHT)
    assert [a == b for a, b in zip(prints, others, strict=True)] == [True, False, False, True, True, True]
    assert prints == [frame_fingerprint(before, FLIGHT.c2w[i], FLIGHT.intrinsics[i]) for i in range(6)]
    assert not set(prints) & set(flight_fingerprints(SETTINGS, FLIGHT)) and before.digest == SETTINGS.digest
