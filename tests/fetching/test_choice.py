"""How a scene in blocks is held, from numbers alone: resident, or how many slots; what is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from landmark_batch.errors import ConfigError
from landmark_batch.fetching.choice import BATCH_SHARE, DEVICE_SHARE, HOST_SHARE, MIN_BATCH, SceneSize, choose_fetching
from landmark_batch.job_sections import FetchingSection

MIB = 2**20
SIZE = SceneSize(blocks=48, block=100 * MIB, rest=50 * MIB, batch=200 * MIB)


def choose(device: str = "cuda", memory: int = 80 * 1024 * MIB, host: int = 64 * 1024 * MIB, **section: Any) -> Any:
    return choose_fetching(FetchingSection(**section), SIZE, device=device, memory=memory, host=host)


def test_a_scene_that_fits_is_held_whole() -> None:
    found = choose()
    assert (found.mode, found.slots, found.host_bytes, found.batch) == ("resident", 48, 0, None)
    assert found.reason == "48 blocks of 100.0 MiB and 250.0 MiB beside them fit into 68.0 GiB that a GPU may use"


def test_the_edge_of_what_fits() -> None:
    """48 blocks and what stays beside them need exactly so much of the device's share."""
    need = SIZE.whole()
    enough = int(need / DEVICE_SHARE) + 2
    assert choose(memory=enough).mode == "resident"
    found = choose(memory=enough - 2 * MIB)
    assert (found.mode, found.slots) == ("dynamic", 47)
    assert "do not fit into" in found.reason


def test_frames_that_are_begun_ahead_count_where_the_whole_scene_is_held() -> None:
    """With slots no frame is: they have the room that it would take."""
    limit = f"{SIZE.whole() // MIB}MiB"
    assert choose(gpu_memory=limit).mode == "resident"
    ahead = replace(SIZE, ahead=MIB)
    found = choose_fetching(FetchingSection(gpu_memory=limit), ahead, device="cuda", memory=80 * 1024 * MIB, host=64 * 1024 * MIB)
    assert (found.mode, found.slots) == ("dynamic", 48)
    assert "251.0 MiB beside them do not fit" in found.reason


def test_slots_are_what_is_left_of_the_memory() -> None:
    found = choose(gpu_memory="2GiB")
    batch = min(SIZE.batch, max(MIN_BATCH, int(2048 * MIB * BATCH_SHARE)))
    assert found.batch == batch == 200 * MIB
    assert found.slots == (2048 - 50 - 200) // 100 == 17
    assert found.reason.endswith("do not fit into fetching.gpu_memory = 2GiB")
    small = choose(gpu_memory="400MiB")
    assert (small.batch, small.slots) == (100 * MIB, 2)
    assert choose(gpu_memory="8GiB").mode == "resident"


def test_slots_as_asked() -> None:
    assert choose(gpu_blocks=9).slots == 9
    assert choose(gpu_blocks=9).reason == "48 blocks of 100.0 MiB come into 9 slots as frames need them (fetching.gpu_blocks = 9)"
    assert choose(mode="dynamic", gpu_blocks=100).slots == 48
    assert choose(mode="dynamic").slots == 48
    assert choose(mode="dynamic").reason == "asked for"
    assert choose(gpu_blocks=48).mode == "resident"


def test_more_slots_asked_for_than_the_device_holds_do_not_make_the_scene_resident() -> None:
    found = choose(gpu_blocks=60, memory=1024 * MIB)
    assert (found.mode, found.slots) == ("dynamic", 48)
    assert "do not fit into" in found.reason


@pytest.mark.parametrize(
    ("section", "message", "remedy"),
    [
        ({"mode": "resident", "gpu_blocks": 9}, r'gpu_blocks = 9 and fetching.mode = "resident" contradict', "dynamic"),
        ({"mode": "resident", "gpu_memory": "1GiB"}, "gpu_memory = 1GiB and", "leave the limit out"),
        (
            {"gpu_blocks": 40, "gpu_memory": "1GiB"},
            "gpu_blocks = 40 and .*gpu_memory = 1GiB contra.* 7 blocks",
            "leave one of them out",
        ),
        ({"gpu_memory": "120MiB"}, "gpu_memory = 120MiB: not one block fits", "smaller blocks"),
        ({"mode": "dynamic", "gpu_memory": "1MiB"}, "not one block fits", "gpu_memory"),
        ({"mode": "dynamic", "gpu_blocks": 4, "host_memory": "50MiB"}, "host_memory = 50MiB: less than one block", "200.0 MiB"),
    ],
)
def test_what_contradicts_itself_is_refused(section: dict[str, Any], message: str, remedy: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        choose(**section)
    assert caught.value.remedy is not None
    assert remedy in caught.value.remedy


def test_a_limit_that_holds_the_whole_scene_goes_with_resident() -> None:
    assert choose(mode="resident", gpu_memory="8GiB").mode == "resident"
    assert choose(mode="resident", gpu_blocks=48).mode == "resident"


def test_host_memory_is_asked_for_or_a_share_and_never_more_than_the_scene() -> None:
    assert choose(gpu_blocks=4, host_memory="300MiB").host_bytes == 300 * MIB
    assert choose(gpu_blocks=4, host=2048 * MIB).host_bytes == int(2048 * MIB * HOST_SHARE)
    assert choose(gpu_blocks=4).host_bytes == 48 * 100 * MIB
    assert choose(gpu_blocks=4, host_memory="300MiB").host_spare == 0
    assert choose(gpu_blocks=4, host_memory="6000MiB").host_spare == 1200 * MIB
    with pytest.raises(ConfigError, match=r"fetching.host_memory = 50.0 MiB: less than one block"):
        choose(gpu_blocks=4, host=100 * MIB)
