"""Where a store lies: paths and URLs, before any server is asked."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.frames.store import FrameStore
from landmark_batch.object_path import ObjectPath, as_store_path


def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "obstore", None)
    with pytest.raises(StoreError, match=r"need the package obstore"):
        FrameStore.open("s3://bucket/city.zarr")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://b/a//c.zarr/", ObjectPath("s3://b", "a/c.zarr")),
        ("S3://Bucket/c.zarr", ObjectPath("s3://Bucket", "c.zarr")),
        ("gs://b/c.zarr", ObjectPath("gs://b", "c.zarr")),
        ("file:///tmp/a%20b.zarr", Path("/tmp/a b.zarr")),
        ("out/c.zarr", Path("out/c.zarr")),
    ],
)
def test_places(text: str, expected: Any) -> None:
    assert as_store_path(text) == expected


@pytest.mark.parametrize("text", ["ftp://b/c.zarr", "https://host/c.zarr", "s3://b", "s3:///c.zarr", "s3://b/../c.zarr"])
def test_no_places(text: str) -> None:
    with pytest.raises(ConfigError, match=r"cannot be written there|no place in a bucket"):
        as_store_path(text)


def test_it_is_never_taken_for_a_file() -> None:
    with pytest.raises(TypeError), suppress(OSError):
        os.stat(ObjectPath("s3://b", "c.zarr"))  # type: ignore[arg-type]  # noqa: PTH116
