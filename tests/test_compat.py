"""LandMark's command line, config files and environment become the job they stand for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from landmark_batch.compat import FOCAL_1080P, LandmarkJob, job_from_landmark
from landmark_batch.errors import CameraError, ConfigError, LandmarkError
from landmark_batch.job import RenderJob, job_from_dict
from landmark_batch.landmark_options import ENVIRONMENT, FLAGS, HONOURED, LISTS, MODEL_TYPES, OPTIONS, SCALARS, read_config, split_argv

CONFIG = """\
# a scene trained branch parallel
datadir = park
expname = west_x5   ; names the store
resMode = [1,2,4]
branch_parallel = 1
plane_division = [2, 3]
encode_app = 1
n_importance = 256
alpha_mask_filter_thre = 0.5
render_batch_size = 32768 #65536
render_near_far = [2e-1, 4]
sampling_opt = 0
white_bkgd = 0
rm_weight_mask_thre = 1e-4
ckpt = "city-merged-stack.th"
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "city.txt"
    path.write_text(CONFIG)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """dataroot/park/transforms_test.json of 120 frames in two folders."""
    folder = tmp_path / "data" / "park"
    folder.mkdir(parents=True)
    frames = [{"file_path": f"./images/{'east' if i % 3 else 'west'}/{i:04d}.png"} for i in range(120)]
    (folder / "transforms_test.json").write_text(json.dumps({"fl_x": 50, "w": 64, "h": 48, "frames": frames}))
    return tmp_path / "data"


def translate(words: list[str], environment: Mapping[str, str] | None = None, *overrides: str) -> tuple[RenderJob, LandmarkJob]:
    options, rest = split_argv(words)
    assert rest == []
    found = job_from_landmark(options, environment or {})
    return job_from_dict(found.values, overrides, source=found.source), found


# -- reading


def test_options_are_taken_out_in_both_spellings() -> None:
    words = ["job", "--render_batch_size", "5", "-o", "x.zarr", "--alpha-mask-filter-thre=0.5", "--save-png", "--use_multistream", "--png"]
    found, rest = split_argv(words)
    assert found == {"render_batch_size": "5", "alpha_mask_filter_thre": "0.5", "save_png": True, "use_multistream": True}
    assert rest == ["job", "-o", "x.zarr", "--png"]


def test_lists_are_repeated_or_bracketed() -> None:
    assert split_argv(["--plane_division", "2", "--plane_division", "3"])[0] == {"plane_division": ["2", "3"]}
    assert split_argv(["--plane_division", "[2,3]"])[0] == {"plane_division": ["2", "3"]}


def test_nothing_is_taken_after_two_hyphens_and_debug_stays_ours() -> None:
    assert split_argv(["--debug", "--", "--ckpt", "x"]) == ({}, ["--debug", "--", "--ckpt", "x"])


@pytest.mark.parametrize("words", [["--ckpt"], ["--ckpt", "--save_png"], ["--save_png=maybe"]])
def test_options_without_a_good_value_are_refused(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=words[0].partition("=")[0]):
        split_argv(words)


def test_config_files_are_read_as_configargparse_reads_them(config: Path) -> None:
    values = read_config(config)
    assert values["resMode"] == ["1", "2", "4"]
    assert values["branch_parallel"] is True
    assert values["sampling_opt"] is False
    assert values["expname"] == "west_x5"
    assert values["render_batch_size"] == "32768"
    assert values["ckpt"] == "city-merged-stack.th"
    assert values["rm_weight_mask_thre"] == "1e-4"


def test_reference_configs_are_read(reference_dir: Path) -> None:
    values = read_config(reference_dir / "confs" / "bp0.txt")
    assert values["plane_division"] == ["2", "2"]
    assert values["expname"] == "bp0"
    assert values["subfolder"] == []
    assert set(values) <= OPTIONS


@pytest.mark.parametrize("text", ["= 3", "branch_parallel = maybe"])
def test_a_bad_line_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.txt"
    path.write_text(f"expname = x\n{text}\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_config(path)


def test_a_config_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        read_config(tmp_path / "none.txt")
    (tmp_path / "scene.th").write_bytes(b"\x80\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_config(tmp_path / "scene.th")
    (tmp_path / "job.toml").write_text("[scene]\nplane_division = [2, 2]\n")
    with pytest.raises(ConfigError, match="a job file is no config of LandMark's"):
        read_config(tmp_path / "job.toml")
    (tmp_path / "path.json").write_text('{"frames": []}')
    with pytest.raises(ConfigError, match=r"path\.json: no line of it is an option"):
        read_config(tmp_path / "path.json")


# -- what it means


def test_multistream_switched_off_means_one_after_the_other(config: Path, data: Path) -> None:
    config.write_text(config.read_text() + "\nuse_multistream = False\n")
    assert not translate(["--config", str(config), "--ckpt", "mine.th", "--dataroot", str(data)])[0].parallel.overlap


def test_a_whole_command_line(config: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(config.parent)
    words = f"--config {config} --ckpt mine.th --model_type MultiBlockTorch --save_png --render_batch_size 4096 --use_multistream"
    job, found = translate([*words.split(), "--dataroot", str(data), "--pose_num", "20", "--aabb", "[[-1,-1,0],[1,1,2]]"])
    assert job.name == "west_x5"
    assert job.scene.checkpoint == config.parent / "mine.th"
    assert job.scene.plane_division == (2, 3)
    assert job.scene.appearance == 2930
    assert job.scene.aabb == ((-1, -1, 0), (1, 1, 2))
    assert job.cameras.file == data / "park" / "transforms_test.json"
    assert job.cameras.frames == "0-19"
    assert (job.sampling.mode, job.sampling.samples) == ("hull", 256)
    assert (job.sampling.near, job.sampling.far) == (None, None), "the checkpoint's, as LandMark takes them"
    assert job.sampling.alpha_mask_threshold == 0.5
    assert job.sampling.rays_per_batch == 4096
    assert job.parallel.overlap
    assert job.output.background == "white", "whatever white_bkgd says"
    assert (job.model.runtime, job.fetching.mode, job.parallel.tensor_parallel) == ("torch", "resident", 1)
    assert found.export_images
    assert not found.stage_times and not found.timeline


def test_it_is_not_cut_at_100_frames(config: Path, data: Path) -> None:
    job, _ = translate(["--config", str(config), "--dataroot", str(data)])
    assert job.cameras.frames is None
    assert translate(["--config", str(config), "--dataroot", str(data), "--pose_num", "500"])[0].cameras.frames is None
    assert translate(["--config", str(config), "--dataroot", str(data), "--pose_num", "-1"])[0].cameras.frames is None
    for none in ("0", "-3"):
        with pytest.raises(ConfigError, match=f"--pose_num {none}: not a number of frames"):
            translate(["--config", str(config), "--dataroot", str(data), f"--pose_num={none}"])


def test_a_subfolder_chooses_frames(config: Path, data: Path) -> None:
    job, _ = translate(["--config", str(config), "--dataroot", str(data), "--subfolder", "west", "--pose_num", "3"])
    assert job.cameras.frames == "0,3,6"
    with pytest.raises(CameraError, match="north"):
        translate(["--config", str(config), "--dataroot", str(data), "--subfolder", "north"])


AXES = {
    "Torch": ("torch", "resident", None),
    "TorchKernelFusion": ("fused", "resident", 2930),
    "MultiBlockTorch": ("torch", "resident", 2930),
    "MultiBlockKernelFusion": ("fused", "resident", 2930),
    "MultiBlockTensorParallelTorch": ("torch", "resident", 2930),
    "MultiBlockTensorParallelKernelFusion": ("fused", "resident", 2930),
    "MovingAreaTorch": ("torch", "dynamic", 0),
    "MovingAreaCudaKernel": ("fused", "dynamic", 0),
}


@pytest.mark.parametrize("name", AXES)
def test_model_types_expand_to_axes(name: str, config: Path, data: Path) -> None:
    text = CONFIG.replace("branch_parallel = 1", "branch_parallel = 0") if name.startswith("Torch") else CONFIG
    config.write_text(text)
    words = ["--config", str(config), "--dataroot", str(data), "--model_type", name]
    job, found = translate(words, {"TENSOR_PARALLEL_SIZE": "4"})
    assert (job.model.runtime, job.fetching.mode, job.scene.appearance) == AXES[name]
    assert (job.parallel.tensor_parallel, job.parallel.data_parallel) == (4 if "TensorParallel" in name else 1, 1)
    told = [note for note in found.notes if note.startswith("TENSOR_PARALLEL_SIZE")]
    assert len(told) == 1
    assert ("--data-parallel N (world size / 4)" if "TensorParallel" in name else "--tensor-parallel 4") in told[0]
    assert any("--runtime torch" in note for note in found.notes) == (AXES[name][0] == "fused")
    assert any("--runtime auto" in note for note in found.notes) == (AXES[name][0] == "torch")


@pytest.mark.usefixtures("config")
def test_frames_of_a_scene_in_blocks_do_not_get_its_name(tmp_path: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`convert city-merged-stack.th city.zarr`, with expname = city in the config: the frames are another store."""
    monkeypatch.chdir(tmp_path)
    Path("city.txt").write_text(CONFIG.replace("west_x5", "city"))
    words = ["--config", "city.txt", "--dataroot", str(data), "--model_type", "MovingAreaTorch", "--ckpt"]
    assert translate([*words, "city.zarr"])[0].store_path == tmp_path / "city-frames.zarr"
    assert translate([*words, "elsewhere/city.zarr"])[0].store_path == tmp_path / "city.zarr"
    (tmp_path / "link").symlink_to(tmp_path)
    assert translate([*words, "link/city.zarr"])[0].store_path == tmp_path / "city-frames.zarr"


def test_all_eight_model_types_are_known() -> None:
    assert set(MODEL_TYPES) == set(AXES)


@pytest.mark.parametrize(("name", "layout"), [("Torch", "1"), ("MultiBlockTorch", "0"), ("MovingAreaTorch", "0")])
def test_a_model_type_that_the_config_contradicts_is_refused(name: str, layout: str, config: Path, data: Path) -> None:
    config.write_text(CONFIG.replace("branch_parallel = 1", f"branch_parallel = {layout}"))
    with pytest.raises(ConfigError, match=f"--model_type {name}"):
        translate(["--config", str(config), "--dataroot", str(data), "--model_type", name])


def test_the_nearest_model_type_is_named(config: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="MultiBlockTorsh") as caught:
        translate(["--config", str(config), "--dataroot", str(data), "--model_type", "MultiBlockTorsh"])
    assert caught.value.remedy == "did you mean MultiBlockTorch?"


def test_the_environment(config: Path, data: Path, tmp_path: Path) -> None:
    environment = {
        "RENDER_1080P": "True",
        "TENSOR_PARALLEL_SIZE": "2",
        "PNG_SAVING_PATH": str(tmp_path / "pictures"),
        "PROFILE_TIMELINE": "1",
        "HALF_PRECISION_PARAM": "ON",
        "ENABLE_EDIT_MODE": "true",
        "PROFILE_STAGES": "OFF",
        "NCCL_TIMEOUT": "600",
    }
    assert set(environment) == set(ENVIRONMENT)
    job, found = translate(["--config", str(config), "--dataroot", str(data)], environment)
    assert (job.cameras.width, job.cameras.height, job.cameras.focal) == (1920, 1080, FOCAL_1080P)
    assert (job.parallel.tensor_parallel, job.parallel.render_timeout) == (2, 600)
    assert job.images_dir == tmp_path / "pictures"
    assert job.images.pattern.format(name="n", frame=7, output="rgb", ext="png") == "7.png"
    assert job.model.precision == "fp16"
    assert found.stage_times and found.timeline
    assert any(note.startswith("ENABLE_EDIT_MODE") for note in found.notes)
    assert not job.scene.edit


def test_a_timeout_without_groups_has_no_meaning(config: Path, data: Path) -> None:
    job, found = translate(["--config", str(config), "--dataroot", str(data)], {"NCCL_TIMEOUT": "600"})
    assert (job.parallel.tensor_parallel, job.parallel.render_timeout) == (1, 0)
    assert any(note.startswith("NCCL_TIMEOUT: one process renders a frame") for note in found.notes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("RENDER_1080P", "yes please"), ("TENSOR_PARALLEL_SIZE", "two"), ("TENSOR_PARALLEL_SIZE", "0"), ("NCCL_TIMEOUT", "-1")],
)
def test_a_bad_environment_is_named(name: str, value: str, config: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match=name):
        translate(["--config", str(config), "--dataroot", str(data)], {name: value})


def test_what_has_no_meaning_is_listed_once(config: Path, data: Path) -> None:
    _, found = translate(["--config", str(config), "--dataroot", str(data), "--lr_init", "0.1", "--wandb"])
    lines = [note for note in found.notes if note.startswith("without meaning here")]
    assert len(lines) == 1
    listed = set(lines[0].partition(": ")[2].split(", "))
    assert listed == {"lr_init", "wandb", "resMode", "render_near_far", "sampling_opt", "white_bkgd", "rm_weight_mask_thre"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--ckpt a.th", "no dataroot"),
        ("--dataroot DATA", "no --ckpt"),
        ("--ckpt a.th --dataroot EMPTY", "no transforms_test.json in"),
        ("--ckpt a.th --dataroot DATA --datadir park --n_importance many", "n_importance = 'many'"),
        ("--ckpt a.th --dataroot DATA --datadir park --aabb exit()", "--aabb exit()"),
        ("--ckpt a.th --dataroot DATA --datadir park --aabb 1", "scene.aabb"),
        ("--ckpt a.th --dataroot DATA --datadir park --dataset Town", "--dataset Town"),
        ("--ckpt a.th --dataroot DATA --datadir park --render_batch_size -5", "rays_per_batch"),
    ],
)
def test_bad_input_names_option_and_value(words: str, message: str, data: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    filled = words.replace("DATA", str(data)).replace("EMPTY", str(tmp_path / "empty")).split()
    with pytest.raises(LandmarkError, match=re.escape(message)):
        translate(filled)


def test_a_broken_camera_file_is_named(data: Path) -> None:
    for text in ("{", "[]", '{"frames": 3}', '{"frames": null}'):
        (data / "park" / "transforms_test.json").write_text(text)
        with pytest.raises(CameraError, match=r"transforms_test\.json"):
            translate(["--ckpt", "a.th", "--dataroot", str(data), "--datadir", "park", "--pose_num", "3"])


# -- the table


def test_the_table_of_the_documentation_is_whole() -> None:
    text = (Path(__file__).resolve().parent.parent / "docs" / "from-landmark.md").read_text()
    words = set(re.findall(r"[A-Za-z0-9_]+", " ".join(re.findall(r"`([^`]*)`", text))))
    assert not (OPTIONS | set(MODEL_TYPES) | set(ENVIRONMENT)) - words


def test_an_option_is_of_one_kind() -> None:
    assert len(OPTIONS) == len(FLAGS) + len(LISTS) + len(SCALARS)
    assert HONOURED <= OPTIONS
