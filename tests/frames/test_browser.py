"""Films in a headless Chromium, by its own HTTP requests: size, length, and that frames advance. Left out where there is none."""

from __future__ import annotations

import json
import os
import queue
import shutil
import subprocess
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from landmark_batch.frames.export_video import VideoSettings, export_video

from .export_sources import MemorySource, pictures

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome-headless-shell")
FRAMES, WIDTH, HEIGHT, FPS = 24, 160, 96, 12
PAGE = """<!doctype html><video id="film" muted playsinline src="FILE"></video><script>
const film = document.getElementById("film"), places = [];
const known = film.canPlayType('TYPE');
const tell = word => fetch("/told", {method: "POST", body: JSON.stringify({word, known, places, width: film.videoWidth,
  height: film.videoHeight, duration: film.duration, shown: film.getVideoPlaybackQuality().totalVideoFrames,
  error: film.error && film.error.message})});
film.addEventListener("timeupdate", () => places.push(film.currentTime));
film.addEventListener("ended", () => tell("ended"));
film.addEventListener("error", () => tell("error"));
if (known) film.play().catch(reason => tell("no play: " + reason)); else tell("unknown");
</script>"""


@pytest.fixture(scope="module")
def browser() -> str:
    """$CHROMIUM, or the first of NAMES on the path."""
    found = os.environ.get("CHROMIUM") or next((path for name in NAMES if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip("no Chromium here: install one, or name it in the variable CHROMIUM")
    return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[tuple[str, Path, queue.Queue[Any]]]:
    """(address, folder that is served, what pages told)."""
    told: queue.Queue[Any] = queue.Queue()
    folder = tmp_path / "site"
    folder.mkdir()

    class Handler(SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(folder))

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            told.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def copyfile(self, source: Any, outputfile: Any) -> None:
            try:
                super().copyfile(source, outputfile)
            except ConnectionError:
                pass  # the browser has seen enough

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}", folder, told
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("file", "codec", "kind"),
    [
        ("a.mp4", "libx264", 'video/mp4; codecs="avc1.640028"'),
        ("a.mp4", "libsvtav1", 'video/mp4; codecs="av01.0.04M.08"'),
        ("a.webm", "libvpx-vp9", 'video/webm; codecs="vp9"'),
    ],
)
def test_a_film_plays(file: str, codec: str, kind: str, browser: str, site: tuple[str, Path, queue.Queue[Any]], tmp_path: Path) -> None:
    address, folder, told = site
    preset = {"libx264": "ultrafast", "libsvtav1": "12", "libvpx-vp9": "8"}[codec]
    shots = MemorySource({"rgb": pictures(FRAMES, HEIGHT, WIDTH)})
    export_video(shots, folder / file, VideoSettings(codec=codec, preset=preset, segment_frames=10), fps=FPS)
    (folder / "page.html").write_text(PAGE.replace("FILE", file).replace("TYPE", kind))
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
    ]
    process = subprocess.Popen(
        [
            browser,
            *options,
            "--autoplay-policy=no-user-gesture-required",
            f"--user-data-dir={tmp_path / 'profile'}",
            f"{address}/page.html",
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        heard = told.get(timeout=60)
    finally:
        process.kill()
        process.wait()
    if heard["word"] == "unknown":
        pytest.skip(f"{browser} does not know {kind}")
    assert (heard["word"], heard["error"]) == ("ended", None)
    assert (heard["width"], heard["height"]) == (WIDTH, HEIGHT)
    assert heard["duration"] == pytest.approx(FRAMES / FPS, abs=0.01)
    assert heard["places"] == sorted(heard["places"])
    assert heard["places"][-1] > heard["places"][0]
    assert heard["shown"] > 1
