"""The procedural city: one place looks the same from every block, shadows and masks are right, files are whole."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from landmark_batch.errors import CheckpointError, DiskFullError
from landmark_batch.scene.city_decoder import appearance, encode, fit_decoder, sample_points, sample_views
from landmark_batch.scene.city_field import (
    APP_DIM,
    CEILING,
    FLOOR,
    TERMS,
    WINDOWS,
    CityField,
    FieldSpec,
    pyramid,
    surface_terms,
    window_rows,
)
from landmark_batch.scene.city_flight import city_flight
from landmark_batch.scene.city_layout import City
from landmark_batch.scene.city_light import light, shadow_height
from landmark_batch.scene.city_mask import ShellMask
from landmark_batch.scene.city_noise import value_noise
from landmark_batch.scene.city_quarters import solids
from landmark_batch.scene.city_solids import MAX_HEIGHT
from landmark_batch.scene.city_writer import PlaneFile

CITY = City(seed=4, half_x=150.0, half_y=120.0)


def nodes(low: float, high: float, count: int) -> np.ndarray:
    return np.linspace(low, high, count).astype(np.float32)


def test_noise_is_a_function_of_the_place() -> None:
    x, y = nodes(-40, 40, 81), nodes(-30, 30, 61)
    whole = value_noise(x, y, 7.0, 3)
    assert np.array_equal(value_noise(x[20:50], y[10:40], 7.0, 3), whole[10:40, 20:50])
    assert 0 <= whole.min() < 0.2 and 0.8 < whole.max() <= 1
    assert not np.array_equal(value_noise(x, y, 7.0, 4), whole)


def test_solids_do_not_depend_on_the_rectangle_asked_for() -> None:
    everything = solids(CITY, -150, -120, 150, 120)
    part = solids(CITY, -20, -30, 60, 40)
    touching = [s for s in everything if s.foot[2] > -20 and s.foot[0] < 60 and s.foot[3] > -30 and s.foot[1] < 40]
    assert part == touching
    assert len(part) > 40
    assert all(s.top + s.ridge <= MAX_HEIGHT for s in everything)
    assert all(s.foot[0] > -150 and s.foot[2] < 150 and s.foot[1] > -120 and s.foot[3] < 120 for s in everything)


def test_city_has_what_makes_a_city() -> None:
    city = City(0, 200.0, 200.0)
    kinds = {cell.kind for cell in city.cells(-200, -200, 200, 200)}
    assert {"towers", "park"} <= kinds and len(kinds) >= 5
    shapes = {s.shape for s in solids(city, -200, -200, 200, 200)}
    assert {"box", "gable", "crown", "car"} <= shapes
    assert max(s.top for s in solids(city, -200, -200, 200, 200)) > 55
    assert (city.river_distance(nodes(-200, 200, 99)[None], nodes(-200, 200, 99)[:, None]) < 0).mean() > 0.03


def test_blocks_meet_without_a_seam() -> None:
    step = 1.25
    x, y = (np.arange(97) * step - 60).astype(np.float32), (np.arange(65) * step - 40).astype(np.float32)
    whole, left, right = light(CITY, x, y), light(CITY, x[:49], y), light(CITY, x[48:], y)
    for name in ("height", "facade_top", "top", "wall", "glass", "gain", "shade", "windows", "gloss"):
        value = getattr(whole, name)
        assert np.allclose(getattr(left, name), value[..., :49], atol=2e-5), name
        assert np.allclose(getattr(right, name), value[..., 48:], atol=2e-5), name


def test_shadow_of_a_pillar_falls_away_from_the_sun() -> None:
    height = np.zeros((41, 61), np.float32)
    height[20, 40] = 10.0
    shadow = shadow_height(height, 1.0, (1.0, 0.0), 0.5)  # sun in +x: the shadow lies to its left
    expected = np.array([10 - 0.5 * (40 - x) if x < 40 else -0.5 for x in range(60)])
    assert np.allclose(shadow[20, 20:60], np.maximum(expected, -0.5)[20:60])
    assert np.allclose(shadow[10, 20:59], -0.5)


def test_sun_and_shade_make_a_difference() -> None:
    surface = light(City(0, 200.0, 200.0), nodes(-100, 100, 161), nodes(-100, 100, 161))
    brightness = surface.top.mean(axis=0)[surface.height < 0.1]
    assert np.quantile(brightness, 0.9) > 1.8 * np.quantile(brightness, 0.1)
    assert surface.gain.max() > 1.4 and surface.gain.min() == pytest.approx(1.0)
    for colour in (surface.top, surface.wall, surface.glass):
        assert np.isfinite(colour).all() and colour.min() >= 0 and colour.max() <= 1


@pytest.mark.parametrize("resolutions", [(1,), (1, 2), (1, 2, 4)])
def test_pyramid_sums_to_the_term_at_its_nodes(resolutions: tuple[int, ...]) -> None:
    spec = FieldSpec(64, resolutions)
    term = torch.rand(64, 64, generator=torch.Generator().manual_seed(1)) * 40
    levels = pyramid(term, spec)
    assert [len(p) for p in levels] == [spec.plane_size(i) for i in range(len(resolutions))]
    total = sum(F.interpolate(p[None, None], size=(64, 64), mode="bilinear", align_corners=True)[0, 0] for p in levels)
    assert torch.allclose(torch.as_tensor(total), term, atol=1e-4)


def test_field_gives_back_height_and_features() -> None:
    spec = FieldSpec(64, (1, 2), 4, 26)
    surface = light(CITY, nodes(-50, 50, 64), nodes(-50, 50, 64))
    terms, field = surface_terms(surface), CityField(spec, 7)
    tensors = {(name, channel): plane for name, channel, plane in field.planes(terms)}
    assert len(tensors) == 2 * (4 + 26) and all(p.abs().max() > 0 for (name, _), p in tensors.items() if name.startswith("density"))
    lines = field.lines()
    iy, ix, z = 40, 22, 11.0
    density, products = 0.0, []
    for level in range(2):
        n = spec.line_size(level)
        for kind, channels in (("density", 4), ("app", 26)):
            stack = torch.stack([tensors[f"{kind}_plane.{level}", c] for c in range(channels)])
            at = torch.tensor([[[[ix, iy]]]]) / 63 * 2 - 1
            plane = F.grid_sample(stack[None], at, align_corners=True)[0, :, 0, 0]
            where = (z - FLOOR) / (CEILING - FLOOR) * (n - 1)
            low = int(where)
            line = lines[f"{kind}_line.{level}"][:, low].lerp(lines[f"{kind}_line.{level}"][:, low + 1], where - low)
            if kind == "density":
                density += float((plane * line).sum())
            else:
                products.append(plane * line)
    assert density == pytest.approx(26.0 * (float(surface.height[iy, ix]) - z), abs=0.1)
    features = field.basis_mat() @ torch.cat(products)
    direct = field.features(terms, torch.tensor([[ix / 63 * 2 - 1, iy / 63 * 2 - 1]]), torch.tensor([z]))[0]
    assert features.shape == (APP_DIM,) and torch.allclose(features, direct, atol=1e-4)
    assert float(torch.sigmoid(2 * direct[0])) == pytest.approx(float(surface.top[0, iy, ix]), abs=0.03)
    assert float(direct[9]) * 40 == pytest.approx(float(surface.facade_top[iy, ix]) - z, abs=0.01)


def test_fewest_channels() -> None:
    field = CityField(FieldSpec(32, (1,), 2, TERMS), 0)
    assert field.basis_mat().shape == (APP_DIM, TERMS)


def test_windows_repeat_by_storey() -> None:
    z = torch.linspace(FLOOR, CEILING, 2000)
    rows = window_rows(z)
    assert rows.shape == (WINDOWS, 2000) and rows.min() >= 0 and rows.max() <= 1
    assert (rows[:, z < 0] == 0).all()
    storeys = (torch.diff((rows[0] > 0.5).int()) == 1).sum()
    assert 24 <= storeys <= 30  # 3.5 m each over 97 m


def test_mask_covers_every_surface_and_little_else() -> None:
    x, y = nodes(-150, 150, 301), nodes(-120, 120, 241)
    mask = ShellMask(150.0, 120.0, 1.5, 3.0)
    heights = []
    for part in (slice(0, 151), slice(150, 301)):
        surface = light(CITY, x[part], y)
        heights.append(surface.height)
        mask.add(x[part], y, surface.height)
    packed, share = mask.pack()
    assert 0.03 < share < 0.2
    volume = np.unpackbits(packed).reshape(mask.shape)
    assert volume.mean() == pytest.approx(share)
    height = np.concatenate([heights[0], heights[1][:, 1:]], axis=1)
    rng = np.random.default_rng(0)
    iy, ix = rng.integers(0, 241, 4000), rng.integers(0, 301, 4000)
    u = torch.from_numpy(np.stack([x[ix] / 150, y[iy] / 120, (height[iy, ix] - 0.2 - FLOOR) / (CEILING - FLOOR) * 2 - 1], axis=1)).float()
    value = F.grid_sample(torch.from_numpy(volume)[None, None].float(), u[None, None, None], align_corners=True).flatten()
    assert (value > 0.5).all()
    high = u.clone()
    high[:, 2] = (float(MAX_HEIGHT) + 2.5 - FLOOR) / (CEILING - FLOOR) * 2 - 1
    assert F.grid_sample(torch.from_numpy(volume)[None, None].float(), high[None, None, None], align_corners=True).max() == 0


def test_decoder_is_fitted_and_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    terms = surface_terms(light(City(0, 200.0, 200.0), nodes(-100, 100, 128), nodes(-100, 100, 128)))
    features = sample_points(terms, CityField(FieldSpec(128, (1, 2), 4, 24), 0), 20_000, generator)
    untrained = fit_decoder(features, width=32, fea_pe=1, view_pe=1, seed=3, steps=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = fit_decoder(features, width=32, fea_pe=1, view_pe=1, seed=3, steps=250)
        torch.set_num_threads(2)
        two = fit_decoder(features, width=32, fea_pe=1, view_pe=1, seed=3, steps=250)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert one.psnr > untrained.psnr + 10  # a tenth of the squared error; how well a whole fit does is tested in test_demo
    assert all(torch.equal(a, b) for a, b in zip((*one.weights, *one.biases), (*two.weights, *two.biases), strict=True))


def test_decoder_input_order_is_landmarks() -> None:
    features, view = torch.tensor([[0.1, 0.2]]), torch.tensor([[1.0, 2.0, 3.0]])
    encoded = encode(features, view, 2, 1)[0]
    expected = [0.1, 0.2, 1, 2, 3]
    expected += [np.sin(0.1), np.sin(0.2), np.sin(0.2), np.sin(0.4), np.cos(0.1), np.cos(0.2), np.cos(0.2), np.cos(0.4)]
    expected += [np.sin(v) for v in (1, 2, 3)] + [np.cos(v) for v in (1, 2, 3)]
    assert np.allclose(encoded.numpy(), expected, atol=1e-6)


def test_water_and_windows_shine_at_a_grazing_view() -> None:
    features = torch.zeros(1, APP_DIM)
    features[0, 0:3], features[0, 12], features[0, 9] = -1.0, 1.0, -1.0
    down, along = appearance(features, torch.tensor([[0.0, 0.0, -1.0]])), appearance(features, torch.tensor([[1.0, 0.0, -0.1]]))
    assert (along > down + 0.2).all()
    views = sample_views(500, torch.Generator().manual_seed(0))
    assert (views[:, 2] < 0).all() and (views.norm(dim=1) >= 0.999).all()


@pytest.mark.parametrize(("half", "frames"), [((200.0, 200.0), 480), ((420.0, 420.0), 480), ((1120.0, 840.0), 2400)])
def test_flight_is_smooth_and_sees_the_whole_city(half: tuple[float, float], frames: int) -> None:
    flight = city_flight(*half, frames, 384, 216)
    place, view = flight.c2w[:, :, 3], -flight.c2w[:, :, 2]
    steps = np.linalg.norm(np.diff(place, axis=0), axis=1)
    assert steps.max() < 4 * np.median(steps)
    turn = np.degrees(np.arccos(np.clip((view[1:] * view[:-1]).sum(1), -1, 1)))
    assert turn.max() < 6
    pitch = np.degrees(np.arcsin(-view[:, 2]))
    assert pitch.min() < 30 and pitch.max() > 50 and pitch.max() - pitch.min() > 25
    assert place[:, 2].min() > MAX_HEIGHT / 100 + 0.1
    seen = np.zeros((4, 4), bool)
    focal, width, height = flight.intrinsics[0, 0], flight.width, flight.height
    for i in range(4):
        for j in range(4):
            spot = np.array([(2 * i - 3) / 4 * half[0], (2 * j - 3) / 4 * half[1], 0]) / 100
            local = np.einsum("fij,fi->fj", flight.c2w[:, :, :3], spot - place)
            u, v = local[:, 0] / -local[:, 2] * focal, local[:, 1] / -local[:, 2] * focal
            seen[i, j] = bool(((local[:, 2] < 0) & (np.abs(u) < width / 2) & (np.abs(v) < height / 2)).any())
    assert seen.all()


def fill(file: PlaneFile, values: torch.Tensor) -> None:
    for block in range(values.shape[2]):
        for channel in range(values.shape[1]):
            file.put("app_plane.0", channel, block, values[0, channel, block])


def content() -> dict[str, object]:
    kwargs = {"aabb": torch.rand(2, 3), "near_far": [0.1, 2.0]}
    return {"kwargs": kwargs, "state_dict": {"basis": torch.rand(3, 4)}, "mask": np.arange(9, dtype=np.uint8)}


def test_plane_file_is_what_torch_save_would_write(tmp_path: Path) -> None:
    values, known = torch.rand(1, 3, 2, 5, 6), content()
    with PlaneFile(tmp_path / "a.th", known, {"app_plane.0": (1, 3, 2, 5, 6)}) as file:
        fill(file, values)
    with zipfile.ZipFile(tmp_path / "a.th") as archive:
        assert archive.testzip() is None
    loaded = torch.load(tmp_path / "a.th", weights_only=False)
    assert torch.equal(loaded["state_dict"]["app_plane.0"], values) and loaded["state_dict"]["app_plane.0"].is_contiguous()
    assert torch.equal(loaded["state_dict"]["basis"], known["state_dict"]["basis"])  # type: ignore[index]
    assert torch.equal(loaded["kwargs"]["aabb"], known["kwargs"]["aabb"])  # type: ignore[index]
    assert np.array_equal(loaded["mask"], known["mask"])  # type: ignore[arg-type]
    mapped = torch.load(tmp_path / "a.th", weights_only=False, mmap=True)
    assert torch.equal(mapped["state_dict"]["app_plane.0"], values)
    assert [p.name for p in tmp_path.iterdir()] == ["a.th"]


def test_plane_file_leaves_nothing_behind_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes = {"app_plane.0": (1, 3, 2, 5, 6)}
    with pytest.raises(KeyboardInterrupt), PlaneFile(tmp_path / "a.th", content(), shapes):
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="not filled"), PlaneFile(tmp_path / "a.th", content(), shapes):
        pass
    with pytest.raises(ValueError, match="not a contiguous"):
        PlaneFile(tmp_path / "a.th", {"state_dict": {"x": torch.rand(4, 3).T}}, shapes)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(CheckpointError, match="cannot write it"):
        PlaneFile(tmp_path / "missing" / "a.th", content(), {"app_plane.0": (1, 1, 1, 1, 1)})

    class Full:
        free = 100

    monkeypatch.setattr("shutil.disk_usage", lambda _path: Full)
    with pytest.raises(DiskFullError, match="are free"):
        PlaneFile(tmp_path / "a.th", content(), shapes)
    assert list(tmp_path.iterdir()) == []
