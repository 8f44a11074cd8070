"""Stores against photographs: who is matched with whom, at which size, and what comes out."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from landmark_batch.errors import ConfigError, StoreError
from landmark_batch.workflows import evaluate as module
from landmark_batch.workflows.evaluate import evaluate, evaluate_source
from landmark_batch.workflows.photographs import PhotographIndex, area_resize, load_photograph
from tests.frames.export_sources import MemorySource, pictures, write_store


@pytest.fixture
def brighton(reference_dir: Path) -> Path:
    return reference_dir / "brighton"


def test_test_photographs_with_known_noise(tmp_path: Path, brighton: Path) -> None:
    names = [frame["file_path"] for frame in json.loads((brighton / "transforms_test.json").read_text())["frames"]]
    assert names == ["./images/DJI_0025.jpg", "./images/DJI_0033.jpg"]
    shots = np.stack([np.asarray(Image.open(brighton / name)) for name in names])
    random = np.random.default_rng(0)
    noisy = np.clip(shots + random.normal(0, [[[[4]]], [[[20]]]], shots.shape), 0, 255).astype(np.uint8)
    store = write_store(tmp_path / "test.zarr", {"rgb": noisy}, names=names)
    seen: list[tuple[int, int]] = []
    found = evaluate(store.path, brighton, lpips=False, progress=lambda *counts: seen.append(counts))
    by_hand = [-10 * math.log10(np.mean((a.astype(float) - b.astype(float)) ** 2) / 255**2) for a, b in zip(noisy, shots, strict=True)]
    assert [score.psnr for score in found.scores] == pytest.approx(by_hand, abs=1e-4)
    assert found.psnr == pytest.approx(sum(by_hand) / 2, abs=1e-4) and 34 < by_hand[0] < 37 and 21 < by_hand[1] < 24
    assert found.scores[0].ssim is not None and found.scores[1].ssim is not None and found.scores[0].ssim > found.scores[1].ssim
    assert [score.photograph.name for score in found.scores] == ["DJI_0025.jpg", "DJI_0033.jpg"]
    assert (found.unmatched, found.unfinished, seen) == ((), (), [(1, 2), (2, 2)])

    headings, rows = found.table()
    assert headings == ("frame", "photograph", "PSNR dB", "SSIM") and len(rows) == 3
    assert rows[0][:3] == ("0", "DJI_0025.jpg", f"{by_hand[0]:.2f}") and rows[2][0] == "mean"
    values = json.loads(json.dumps(found.as_dict(), allow_nan=False))
    assert values["mean"]["frames"] == 2 and values["frames"][1]["psnr"] == pytest.approx(by_hand[1], abs=1e-4)
    assert any("sigma 1.5" in note for note in values["notes"])


def test_identical_frames_are_json(tmp_path: Path, brighton: Path) -> None:
    shot = np.asarray(Image.open(brighton / "images" / "DJI_0018.jpg"))
    source = MemorySource({"rgb": shot[None]}, names=["images/DJI_0018.jpg"])
    found = evaluate_source(source, brighton, lpips=False)
    assert found.psnr == math.inf and found.ssim == pytest.approx(1)
    frame = json.loads(json.dumps(found.as_dict(), allow_nan=False))["frames"][0]
    assert frame["psnr"] is None and frame["identical"] is True


@pytest.mark.parametrize(
    ("name", "matched"),
    [
        ("./images/DJI_0025.jpg", True),
        ("images/DJI_0025", True),
        ("../../images/DJI_0025.jpg", True),
        ("/home/somebody/drone/images/DJI_0025.jpg", True),
        ("images\\DJI_0025.jpg", True),
        ("DJI_0025.jpg", True),
        ("renders/DJI_0025.png", True),
        ("images/DJI_0099.jpg", False),
        ("frame_00000", False),
        ("", False),
    ],
)
def test_names_of_the_same_photograph(brighton: Path, name: str, matched: bool) -> None:
    expected = {0: brighton / "images" / "DJI_0025.jpg"} if matched else {}
    assert PhotographIndex(brighton).match({0: name}) == expected
    assert PhotographIndex(brighton / "transforms_test.json").match({0: name}) == expected
    if matched:
        assert PhotographIndex(brighton / "images").match({0: name}) == expected


def test_made_up_names_match_only_real_paths(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "frame_00003.png")
    index = PhotographIndex(tmp_path)
    assert index.match({3: "frame_00003"}) == {}
    assert list(index.match({3: "images/frame_00003.png", 4: "images/frame_00003"})) == [3, 4]


def test_a_stem_found_twice_is_an_error(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / folder / "one.png")
    with pytest.raises(ConfigError, match=r"a/one\.png, b/one\.png"):
        PhotographIndex(tmp_path).match({0: "images/one.png"})
    assert PhotographIndex(tmp_path).match({0: "b/one.png"}) == {0: tmp_path / "b" / "one.png"}


def test_nothing_matches(tmp_path: Path, brighton: Path) -> None:
    source = MemorySource({"rgb": pictures(5)}, names=[f"aerial/{i}.png" for i in range(5)])
    with pytest.raises(
        ConfigError, match=r"aerial/0\.png, aerial/1\.png, aerial/2\.png, \.\.\., the photographs images/DJI_0018\.jpg"
    ) as caught:
        evaluate_source(source, brighton)
    assert caught.value.exit_code == 2
    with pytest.raises(ConfigError, match="there are none"):
        evaluate_source(source, tmp_path)
    with pytest.raises(ConfigError, match="no such dataset folder"):
        evaluate_source(source, tmp_path / "nowhere")


def test_unfinished_and_unmatched_frames_are_told(brighton: Path) -> None:
    names = ["images/DJI_0018.jpg", "other.jpg", "images/DJI_0019.jpg"]
    source = MemorySource({"rgb": pictures(3, 54, 96)}, names=names, done=[0, 1])
    found = evaluate_source(source, brighton, lpips=False)
    assert ([score.frame for score in found.scores], found.unmatched, found.unfinished) == ([0], (1,), (2,))
    assert evaluate_source(source, brighton, frames=[0], lpips=False).unmatched == ()
    source.done = {1}
    with pytest.raises(StoreError, match=r"2 frames have a photograph, but none of them is rendered: 0,2"):
        evaluate_source(source, brighton)


def test_sizes_of_one_aspect_are_averaged_down(brighton: Path) -> None:
    shot = np.asarray(Image.open(brighton / "images" / "DJI_0018.jpg"))
    halved = shot.reshape(270, 2, 480, 2, 3).mean((1, 3)) / 255
    small = MemorySource({"rgb": halved[None].astype(np.float32)}, names=["DJI_0018.jpg"])
    found = evaluate_source(small, brighton, lpips=False)
    assert found.psnr > 100 and found.scores[0].note == "photograph of 960×540 averaged down to 480×270"
    large = MemorySource({"rgb": np.repeat(np.repeat(shot, 2, 0), 2, 1)[None]}, names=["DJI_0018.jpg"])
    found = evaluate_source(large, brighton, lpips=False)
    assert found.psnr > 100 and found.scores[0].note == "rendering averaged down to the photograph's 960×540"
    other = MemorySource({"rgb": pictures(1, 300, 400)}, names=["DJI_0018.jpg"])
    with pytest.raises(ConfigError, match=r"DJI_0018\.jpg: the photograph is 960×540, the rendering 400×300"):
        evaluate_source(other, brighton, lpips=False)


def test_area_resize_is_a_mean() -> None:
    picture = pictures(1, 12, 18, dtype="float32")[0]
    assert np.abs(area_resize(picture, 6, 4) - picture.reshape(4, 3, 6, 3, 3).mean((1, 3))).max() < 1e-6


def test_photographs_of_any_kind(tmp_path: Path) -> None:
    rgba = pictures(1, 20, 30, 4)[0]
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    alpha = rgba[..., 3:] / 255
    assert np.abs(load_photograph(tmp_path / "rgba.png", "black") - rgba[..., :3] / 255 * alpha).max() < 1e-6
    assert np.abs(load_photograph(tmp_path / "rgba.png", "white") - (rgba[..., :3] / 255 * alpha + 1 - alpha)).max() < 1e-6
    deep = pictures(1, 20, 30, 1, "uint16")[0][..., 0]
    Image.fromarray(deep).save(tmp_path / "deep.png")
    assert np.abs(load_photograph(tmp_path / "deep.png") - deep[..., None] / 65535).max() < 1e-6
    Image.fromarray(rgba[..., 0]).save(tmp_path / "grey.png")
    assert np.array_equal(load_photograph(tmp_path / "grey.png")[..., 2], rgba[..., 0].astype(np.float32) / np.float32(255))


@pytest.mark.parametrize("content", [b"", b"not a picture", None])
def test_a_photograph_that_cannot_be_read(tmp_path: Path, brighton: Path, content: bytes | None) -> None:
    path = tmp_path / "DJI_0018.jpg"
    shutil.copyfile(brighton / "images" / "DJI_0018.jpg", path)
    path.write_bytes(path.read_bytes()[:9000] if content is None else content)
    source = MemorySource({"rgb": pictures(1, 54, 96)}, names=["DJI_0018.jpg"])
    with pytest.raises(ConfigError, match=r"DJI_0018\.jpg"):
        evaluate_source(source, tmp_path, lpips=False)


def test_transparent_stores_are_laid_over_the_matte(tmp_path: Path) -> None:
    rgba = np.zeros((1, 16, 16, 4), np.float32)
    rgba[..., :] = (0.2, 0.2, 0.2, 0.5)
    Image.fromarray(np.full((16, 16, 3), round(0.7 * 255), np.uint8)).save(tmp_path / "0.png")
    source = MemorySource({"rgb": rgba}, background="transparent", names=["0.png"])
    assert evaluate_source(source, tmp_path, lpips=False).psnr > 45
    assert evaluate_source(source, tmp_path, lpips=False, matte="black").psnr < 10


def test_lpips_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(pictures(1)[0]).save(tmp_path / "0.png")
    source = MemorySource({"rgb": pictures(1)}, names=["0.png"])
    monkeypatch.setattr(module, "lpips_is_installed", lambda: False)
    found = evaluate_source(source, tmp_path)
    assert found.lpips is None and any("not installed" in note for note in found.notes)

    class Half:
        net = "alex"

        def __call__(self, a: Any, b: Any) -> float:
            return 0.5

    monkeypatch.setattr(module, "lpips_is_installed", lambda: True)
    monkeypatch.setattr(module, "Lpips", Half)
    found = evaluate_source(source, tmp_path)
    assert found.lpips == 0.5 and found.table()[0][-1] == "LPIPS" and "LPIPS: network alex" in found.notes
    assert found.as_dict()["mean"]["lpips"] == 0.5

    def broken() -> None:
        raise ConfigError("LPIPS: its network 'alex' cannot be loaded (offline)")

    monkeypatch.setattr(module, "Lpips", broken)
    assert any("offline" in note for note in evaluate_source(source, tmp_path).notes)
    with pytest.raises(ConfigError, match="offline"):
        evaluate_source(source, tmp_path, lpips=True)


def test_a_store_without_rgb(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no 'rgb'"):
        evaluate_source(MemorySource({"alpha": pictures(1)[..., 0]}), tmp_path)
