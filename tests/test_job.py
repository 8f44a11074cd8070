"""The job file: every refusal names key, value and remedy; paths, defaults and --set."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from landmark_batch.errors import ConfigError
from landmark_batch.job import LOOKS, RenderJob, job_from_dict, known_keys, load_job, parse_memory
from landmark_batch.job_overrides import Override
from landmark_batch.job_template import _KEYS, job_text, scene_name, toml_value

REFUSED: list[tuple[dict[str, Any], str, str | None]] = [
    ({"sampling": {"sampels": 3}}, "unknown key sampling.sampels", "did you mean sampling.samples?"),
    ({"samplng": {"samples": 3}}, "unknown key samplng", "did you mean sampling?"),
    ({"samples": 3}, "unknown key samples", "did you mean sampling.samples?"),
    ({"output": {"width": 3}}, "unknown key output.width", "did you mean cameras.width?"),
    ({"output": {"zzz": 1}}, "unknown key output.zzz", "known: output.store"),
    ({"zzz": {"q": 1}}, "unknown key zzz", "[sampling]"),
    ({"cameras": {"frame": [{"c2w": [[1]], "c2x": 1}]}}, "unknown key cameras.frame[0].c2x", "known: c2w"),
    ({"scene": 3}, "scene = 3: not a section", "write [scene]"),
    ({"cameras": {"width": 0}}, "cameras.width = 0: must be greater than or equal to 1", None),
    ({"cameras": {"height": -4}}, "cameras.height = -4", None),
    ({"cameras": {"width": "a"}}, "cameras.width = 'a': must be a whole number", None),
    ({"cameras": {"focal": 0}}, "cameras.focal = 0: must be greater than 0", None),
    ({"cameras": {"frame": [{"c2w": [[1, 2, float("nan")]]}]}}, "cameras.frame[0].c2w[0][2] = nan: must be a finite number", None),
    ({"cameras": {"file": "a.json", "frame": [{"c2w": [[1.0]]}]}}, "file and [[cameras.frame]] are both given", None),
    ({"output": {"rgb": "uint32"}}, "'float32' or false", None),
    ({"output": {"rgb": False}}, "nothing to render", None),
    ({"output": {"chunk_frames": True}}, "output.chunk_frames = True: true and false are no value", None),
    ({"output": {"store": 3}}, "output.store = 3: must be a path in quotes", None),
    ({"output": {"store": " "}}, "output.store is empty", "default"),
    ({"cameras": {"file": "https://host/a.json"}}, "cameras.file = 'https://host/a.json': a URL, where a path is needed", "this machine"),
    ({"scene": {"appearance": [1]}}, "scene.appearance = [1]: must be a whole number or text in quotes", None),
    ({"scene": {"appearance": "dusk"}}, "sunset", None),
    ({"scene": {"appearance": -1}}, "rows are counted from 0", None),
    ({"scene": {"aabb": [[0, 0, 0], [1, 1]]}}, "scene.aabb[1][2]", None),
    ({"scene": {"aabb": [[0, 0, 0], [1, 0, 1]]}}, "first corner must be below its second", None),
    ({"scene": {"plane_division": [0, 2]}}, "at least 1 block", None),
    ({"scene": {"edit": "nw", "edit_block": 1}}, "must be 'reset', 'new' or 'remove'", None),
    ({"scene": {"edit_block": 1}}, "edit_block = 1 without edit", None),
    ({"sampling": {"near": 2, "far": 1}}, "near = 2.0 must be below far = 1.0", None),
    ({"sampling": {"near": 2, "far": 2}}, "near = 2.0 must be below far = 2.0", None),
    ({"sampling": {"samples": 0}}, "sampling.samples = 0: must be greater than or equal to 1", None),
    ({"sampling": {"samples": 12.5, "near": -1}}, "samples = 12.5: must be a whole number; sampling.near = -1", None),
    ({"sampling": {"near": float("inf")}}, "sampling.near = inf: must be a finite number", None),
    ({"fetching": {"gpu_memory": "lots"}}, "write it as '8GiB'", None),
    ({"fetching": {"host_memory": 8}}, "less than 1 MiB", None),
    ({"images": {"pattern": "{frme}"}}, "'frme'", None),
    ({"images": {"pattern": "a.png"}}, "gives every frame the same file name", None),
    ({"images": {"format": "jpeg", "bit_depth": 16}}, "JPEG holds 8 bits", None),
    ({"parallel": {"gpus": [0, 0]}}, "distinct GPU numbers", None),
    ({"parallel": {"gpus": [0], "device": "cpu"}}, "contradict each other", None),
    ({"model": {"runtime": "cuda"}}, "must be 'auto', 'torch' or 'fused'", None),
    ({"video": {"fps": 0}}, "video.fps = 0: must be greater than 0", None),
    ({"name": "a/b"}, "plain file name", None),
    ({"name": ""}, "plain file name", None),
    ({"version": 2}, "version = 2", "reads version 1"),
]


@pytest.mark.parametrize(("raw", "message", "remedy"), REFUSED, ids=[json.dumps(raw) for raw, *_ in REFUSED])
def test_bad_values_are_refused_with_key_value_and_remedy(raw: dict[str, Any], message: str, remedy: str | None) -> None:
    with pytest.raises(ConfigError) as caught:
        job_from_dict(raw, source="x.toml")
    assert message in str(caught.value)
    if remedy is not None:
        assert remedy in (caught.value.remedy or "")
    assert "Input should" not in str(caught.value)


def test_a_file_that_is_no_job_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "broken.toml"
    broken.write_text("name = city\n")
    binary = tmp_path / "scene.toml"
    binary.write_bytes(b"PK\x03\x04\xff\xfe\x80")
    for path, message in (
        (tmp_path / "none.toml", "no such job file"),
        (tmp_path, "is a directory"),
        (broken, "broken TOML"),
        (binary, "is no text file"),
    ):
        with pytest.raises(ConfigError, match=message) as caught:
            load_job(path)
        assert str(path) in str(caught.value)


def test_true_means_the_usual_dtype() -> None:
    output = job_from_dict({"output": {"rgb": True, "depth": True, "alpha": True}}).output
    assert (output.rgb, output.depth, output.alpha) == ("uint8", "float32", "uint8")


def test_paths_in_the_file_are_relative_to_it_and_set_paths_to_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, here = tmp_path / "jobs", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    path = folder / "city.toml"
    path.write_text('[scene]\ncheckpoint = "a.th"\n[output]\nstore = "../s.zarr"\n[cameras]\nfile = "t.json"\n')
    monkeypatch.chdir(here)
    job = load_job(path, ["cameras.file=mine.json"])
    assert job.scene.checkpoint == folder / "a.th"
    assert job.output.store == tmp_path / "s.zarr"
    assert job.cameras.file == here / "mine.json"


def test_default_outputs_follow_the_jobs_name(tmp_path: Path) -> None:
    path = tmp_path / "city.toml"
    path.write_text("")
    job = load_job(path)
    assert job.name == "city"
    assert job.store_path == tmp_path / "city.zarr"
    assert job.video_path == tmp_path / "city.mp4"
    assert job.images_dir == tmp_path / "city"
    assert job.log_path == tmp_path / "city.log"


@pytest.mark.parametrize("store", ["a.zarr", "a.v1", "a", "b.c.zarr"])
def test_default_outputs_never_meet_the_store_or_each_other(tmp_path: Path, store: str) -> None:
    job = job_from_dict({"output": {"store": tmp_path / store}})
    places = [job.store_path, job.video_path, job.images_dir, job.log_path]
    assert len(set(places)) == 4
    other = job_from_dict({"output": {"store": tmp_path / (store + "2")}})
    assert not set(places) & {other.store_path, other.video_path, other.images_dir, other.log_path}


def test_the_film_of_a_codec_that_mp4_does_not_take_has_another_suffix(tmp_path: Path) -> None:
    for codec, name in (("ffv1", "a.mkv"), ("dnxhr", "a.mov"), ("dnxhd", "a.mov"), ("libx264", "a.mp4")):
        assert job_from_dict({"output": {"store": tmp_path / "a.zarr"}, "video": {"codec": codec}}).video_path.name == name


@pytest.mark.parametrize(
    ("text", "section", "key", "value"),
    [
        ("sampling.samples=128", "sampling", "samples", 128),
        ("scene.appearance=sunset", "scene", "appearance", "sunset"),
        ("scene.appearance = 7", "scene", "appearance", 7),
        ("output.depth=true", "output", "depth", "float32"),
        ("cameras.frames=3,5-10", "cameras", "frames", "3,5-10"),
        ("cameras.frames=5", "cameras", "frames", "5"),
        ("scene.plane_division=2x3", "scene", "plane_division", (2, 3)),
        ("scene.plane_division=[2, 3]", "scene", "plane_division", (2, 3)),
        ("images.pattern={name}_{frame:04d}.{ext}", "images", "pattern", "{name}_{frame:04d}.{ext}"),
        ("video.fps=24", "video", "fps", 24.0),
    ],
)
def test_set_changes_one_value(text: str, section: str, key: str, value: object) -> None:
    job = job_from_dict({}, [text])
    assert getattr(getattr(job, section), key) == value


def test_set_reads_a_date_as_the_text_it_is() -> None:
    assert job_from_dict({}, ["name=2026-01-31"]).name == "2026-01-31"


@pytest.mark.parametrize("text", ["sampling.samples", "=3", "a.b.c=3", "name.x=3", ".samples=3"])
def test_set_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        job_from_dict({"name": "x"}, [text])


def test_set_keeps_the_other_values_of_the_section() -> None:
    job = job_from_dict({"sampling": {"samples": 3, "near": 1.0}}, ["sampling.samples=4"])
    assert (job.sampling.samples, job.sampling.near) == (4, 1.0)


@pytest.mark.parametrize(
    ("text", "size"), [("8GiB", 8 * 2**30), ("8G", 8 * 2**30), ("500 MB", 500_000_000), ("1.5k", 1536), ("4096", 4096), ("2kB", 2000)]
)
def test_memory_texts(text: str, size: int) -> None:
    assert parse_memory(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "8 apples", "-8GiB", "8iB", "0", "0GiB", "1e9"])
def test_texts_that_are_no_memory(text: str) -> None:
    with pytest.raises(ValueError, match="memory"):
        parse_memory(text)


def test_looks_are_rows() -> None:
    for name, row in LOOKS.items():
        assert job_from_dict({"scene": {"appearance": name}}).scene.appearance_row == row


# -- the commented job file


def test_the_template_knows_every_key() -> None:
    written = {f"{section}.{key}" for section, keys in _KEYS.items() for key, *_ in keys}
    assert written == {key for key in known_keys() if "." in key} - {"cameras.frame"}


def _uncommented(text: str, *, examples: bool) -> str:
    lines = []
    for line in text.splitlines():
        body, _, comment = line.removeprefix("# ").partition(" # ")
        is_key = line.startswith("# ") and " = " in body and body.split(" = ")[0].isidentifier()
        lines.append(body if is_key and comment.startswith("example") == examples else line)
    return "\n".join(lines)


def test_commented_defaults_are_the_defaults(tmp_path: Path) -> None:
    path = tmp_path / "city.toml"
    path.write_text(job_text({"scene": {"checkpoint": "a.th"}, "cameras": {"file": "t.json"}}, name="city"))
    plain = load_job(path)
    path.write_text(_uncommented(path.read_text(), examples=False))
    spelt_out = load_job(path)
    assert spelt_out.output.store == plain.store_path
    assert spelt_out.images.dir == plain.images_dir
    assert spelt_out.video.file == plain.video_path
    assert spelt_out.scene.appearance == 0  # what the renderer takes where nothing is said
    assert spelt_out.video.fps == 24.0
    ignored = {"output": {"store"}, "images": {"dir"}, "video": {"file", "fps"}, "scene": {"appearance"}}
    assert spelt_out.model_dump(exclude=ignored) == plain.model_dump(exclude=ignored)


def test_commented_examples_are_valid(tmp_path: Path) -> None:
    path = tmp_path / "city.toml"
    path.write_text(_uncommented(job_text({"scene": {"checkpoint": "a.th"}, "cameras": {"file": "t.json"}}, name="city"), examples=True))
    job = load_job(path)
    assert job.scene.edit == "new"
    assert job.fetching.gpu_blocks == 9
    assert job.video.pix_fmt == "yuv420p"


def test_the_template_writes_what_it_is_given(tmp_path: Path) -> None:
    values = {
        "scene": {"checkpoint": 'odd "name".th', "aabb": [[0, 0, 0], [1, 1, 1]]},
        "cameras": {"width": 64, "height": 48, "frame": [{"c2w": [[1.0, 0.0, 0.0, 0.5]], "focal": 50.0, "name": "a"}]},
        "output": {"depth": True},
    }
    path = tmp_path / "odd.toml"
    path.write_text(job_text(values, name="odd"))
    job = load_job(path)
    assert job.scene.checkpoint == tmp_path / 'odd "name".th'
    assert job.cameras.frame[0].focal == 50.0
    assert job.output.depth == "float32"
    with pytest.raises(KeyError, match="sampels"):
        job_text({"sampling": {"sampels": 1}}, name="odd")


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.one_of(
            st.booleans(),
            st.integers(),
            st.floats(allow_nan=False, allow_infinity=False),
            st.text(alphabet=st.characters(exclude_categories=["Cs"])),
        ),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=6,
    )
)
def test_toml_values_come_back(value: Any) -> None:
    assert tomllib.loads(f"v = {toml_value(value)}")["v"] == value


@pytest.mark.parametrize(
    ("file", "name"),
    [("bp0-merged-stack.th", "bp0"), ("bp0-sub12.th", "bp0"), ("seq1.th", "seq1"), ("dir", "dir"), (".th", "flight"), ("a b.th", "a b")],
)
def test_scene_names(file: str, name: str) -> None:
    assert scene_name(Path("/x") / file) == name
    assert RenderJob(name=scene_name(Path(file))).name == name


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/scenes/town.zarr", "town-frames"),
        ("s3://bucket/a%20b.zarr/", "a b-frames"),
        ("memory://town.zarr", "town-frames"),
        ("s3://bucket", "bucket"),
    ],
)
def test_scene_names_of_urls(url: str, name: str) -> None:
    assert scene_name(url) == name


def test_an_error_names_who_said_the_value(tmp_path: Path) -> None:
    job = tmp_path / "city.toml"
    job.write_text("[sampling]\nsamples = -1\n[cameras]\nwidth = 0\n")
    with pytest.raises(ConfigError) as caught:
        load_job(job, ["sampling.samples=0", Override("cameras.height=0", "--height 0")])
    assert {line.split(": must")[0] for line in caught.value.message.split("; ")} == {
        f"{job}: cameras.width = 0",
        "--set sampling.samples=0: sampling.samples = 0",
        "--height 0: cameras.height = 0",
    }
    job.write_text('[scene]\ncheckpoint = ""\n')
    with pytest.raises(ConfigError, match=r"city\.toml: scene\.checkpoint is empty"):
        load_job(job)
    with pytest.raises(ConfigError, match=r"^--set version=7: version = 7"):
        job_from_dict({}, ["version=7"])
