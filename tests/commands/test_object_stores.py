"""URLs of object stores on the command line: every command about a store takes one, and none ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.object_server import every_service

from .conftest import FRAMES, Run


@every_service
@pytest.mark.usefixtures("inline")
def test_a_flight_into_a_bucket_and_out_again(park: Path, run: Run, bucket: str) -> None:
    url = f"{bucket}/park.zarr"
    planned = run("plan", park, "-o", url)
    assert planned.code == 0 and url in planned.out and "free" not in planned.out
    first = run("render", park, "-o", url, "--frames", "0-2")
    assert first.code == 0, first.text
    assert any(line.split()[0] == url and "3 of 3 frames" in line for line in first.out.splitlines() if line.strip())
    assert (park.parent / "park.latest.jpg").is_file() and (park.parent / "park.log").is_file()
    found = json.loads(run("status", url, "--json").out)
    assert (found["store"], found["done"], found["frames"], found["written_by"]) == (url, 3, FRAMES, [])
    text = park.read_text() + f'[output]\nstore = "{url}"\n'
    park.write_text(text)
    rest = run("render", park)
    assert rest.code == 0 and "3 stood already" in rest.out, rest.text
    assert f"{FRAMES} frames checked, all as they were written" in run("verify", url).out
    assert run("export", "images", url, "--frames", "1").code == 0
    assert [path.name for path in (park.parent / "park/rgb").iterdir()] == ["park.00001.png"] or list(
        (park.parent / "park/rgb").glob("*.png")
    )
    assert run("export", "video", url).code == 0
    assert (park.parent / "park.mp4").stat().st_size > 0
    idle = run("pause", url)
    assert idle.code == 2 and f"{url}: no job writes it now" in idle.err
    differing = run("render", park, "--samples", "8")
    assert differing.code == 2 and "finished frames differ" in differing.err


@every_service
@pytest.mark.parametrize("command", [["status"], ["verify"], ["export", "images"], ["cancel"]])
def test_what_is_not_there_is_named(run: Run, bucket: str, command: list[str]) -> None:
    outcome = run(*command, f"{bucket}/none.zarr")
    assert outcome.code == 2
    assert f"{bucket}/none.zarr: no such store" in outcome.err


def test_other_urls_are_refused(park: Path, run: Run) -> None:
    outcome = run("render", park, "-o", "https://host/park.zarr")
    assert outcome.code == 2
    assert "https://host/park.zarr: frames cannot be written there" in outcome.err
    outcome = run("render", park, "--set", "output.store=ftp://host/park.zarr")
    assert outcome.code == 2
    assert "ftp://host/park.zarr: frames cannot be written there" in outcome.err
