"""Frames rounded on their device: bit for bit what frames.pixels.quantise makes of the same floats."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from landmark_batch.errors import PixelError
from landmark_batch.frames.pixels import quantise
from landmark_batch.frames.spec import OutputSpec
from landmark_batch.kernels import build
from landmark_batch.model.output import RenderOutput
from landmark_batch.model.transfer import pinned_array

SIZE = (5, 7)
LAYOUTS = {
    "rgb": lambda dtype: [OutputSpec("rgb", dtype, 3)],
    "rgba": lambda dtype: [OutputSpec("rgb", dtype, 4)],
    "all": lambda dtype: [OutputSpec("rgb", dtype, 3), OutputSpec("depth", "float16"), OutputSpec("alpha", dtype)],
    "depth first": lambda dtype: [OutputSpec("depth", "float32"), OutputSpec("rgb", dtype, 4), OutputSpec("alpha", "uint16")],
}
DTYPES = ["uint8", "uint16", "float16", "float32"]
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def output_of(rendered: dict[str, NDArray[np.float32]], device: str) -> RenderOutput:
    if device == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        assert build.load("cuda").loaded
    return RenderOutput(*(torch.from_numpy(rendered[name].copy()).to(device) for name in ("rgb", "depth", "alpha")), counters={})


def compare(rendered: dict[str, NDArray[np.float32]], outputs: list[OutputSpec], device: str) -> None:
    """Same arrays, or the same error."""
    output = output_of(rendered, device)
    try:
        expected = quantise(rendered, outputs, frame=3)
    except PixelError as error:
        with pytest.raises(PixelError) as raised:
            output.quantised(outputs, frame=3)
        assert str(raised.value) == str(error)
        return
    found = output.quantised(outputs, frame=3)
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].flags.c_contiguous
        assert found[name].tobytes() == array.tobytes(), name


def frames(values: st.SearchStrategy[float]) -> st.SearchStrategy[dict[str, NDArray[np.float32]]]:
    def of(*shape: int) -> Any:
        return arrays.arrays(np.float32, shape, elements=values)

    return st.fixed_dictionaries({"rgb": of(*SIZE, 3), "depth": of(*SIZE), "alpha": of(*SIZE)})


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_level_and_its_halves(layout: str, dtype: str, device: str) -> None:
    top = {"uint8": 255, "uint16": 65535}.get(dtype, 2047)
    middle = ((np.arange(top) + 0.5) / top).astype(np.float32)  # half-way between two levels
    edge = np.concatenate([np.nextafter(middle, np.float32(0)), middle, np.nextafter(middle, np.float32(1))])
    values = np.concatenate([edge, np.arange(top + 1, dtype=np.float32) / top, np.array([-0.0, -1, 1e-45, 1.5, 600, 65504, 65519.9], "f4")])
    if dtype == "float16" or layout != "rgb":
        values = np.minimum(values, 65504)
    values = np.resize(values, (-(-len(values) // 60) * 60,)).reshape(-1, 60)
    rgb = np.stack([values, values[::-1], values[:, ::-1]], axis=-1)
    compare(
        {"rgb": np.ascontiguousarray(rgb), "depth": values, "alpha": np.ascontiguousarray(values[::-1])}, LAYOUTS[layout](dtype), device
    )


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(rendered=frames(st.floats(-0.25, 1.25, width=32)), dtype=st.sampled_from(DTYPES))
def test_usual_values(layout: str, device: str, rendered: dict[str, NDArray[np.float32]], dtype: str) -> None:
    compare(rendered, LAYOUTS[layout](dtype), device)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=40, deadline=None)
@given(rendered=frames(st.floats(width=32) | st.floats(0, 1, width=32)), dtype=st.sampled_from(DTYPES))
def test_whatever_floats_there_are(layout: str, device: str, rendered: dict[str, NDArray[np.float32]], dtype: str) -> None:
    compare(rendered, LAYOUTS[layout](dtype), device)


@pytest.mark.parametrize("device", ["cpu", GPU])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 65505.0, -70000.0])
@pytest.mark.parametrize("where", ["rgb", "depth", "alpha"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_same_refusals(bad: float, where: str, dtype: str, device: str) -> None:
    """One wrong value, in each place, for outputs that store it and outputs that do not."""
    for outputs in (layout(dtype) for layout in LAYOUTS.values()):
        rendered = {"rgb": np.full((4, 6, 3), 0.5, "f4"), "depth": np.full((4, 6), 2.0, "f4"), "alpha": np.ones((4, 6), "f4")}
        rendered[where][2, 5] = bad
        compare(rendered, outputs, device)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_arrays_are_the_callers_own(device: str) -> None:
    """Neither the next frame nor the frame's own tensors change what was returned."""
    outputs = LAYOUTS["depth first"]("float32")
    rng = np.random.default_rng(0)
    first, second = (
        {name: rng.random((9, 8, *(3,) * (name == "rgb")), dtype="f4") for name in ("rgb", "depth", "alpha")} for _ in range(2)
    )
    output = output_of(first, device)
    found = output.quantised(outputs, frame=0)
    kept = {name: array.copy() for name, array in found.items()}
    output.rgb.zero_()
    output.depth.zero_()
    output_of(second, device).quantised(outputs, frame=1)
    for name, array in kept.items():
        np.testing.assert_array_equal(found[name], array)


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_into_given_arrays(device: str) -> None:
    outputs = LAYOUTS["all"]("uint16")
    rendered = {"rgb": np.full((4, 6, 3), 0.3, "f4"), "depth": np.full((4, 6), 2.0, "f4"), "alpha": np.ones((4, 6), "f4")}
    chunk = {"rgb": np.zeros((2, 4, 6, 3), "u2"), "depth": np.zeros((2, 4, 6), "f2"), "alpha": np.zeros((2, 4, 6), "u2")}
    into = {name: array[1] for name, array in chunk.items()}
    found = output_of(rendered, device).quantised(outputs, frame=0, into=into)
    for name, array in quantise(rendered, outputs, frame=0).items():
        assert found[name] is into[name]
        np.testing.assert_array_equal(chunk[name][1], array)
        assert not chunk[name][0].any()
    before = {name: array.copy() for name, array in into.items()}
    rendered["alpha"][0, 0] = np.nan
    rendered["rgb"][:] = 1
    with pytest.raises(PixelError, match="alpha holds 1 values"):
        output_of(rendered, device).quantised(outputs, frame=0, into=into)
    for name, array in before.items():
        np.testing.assert_array_equal(into[name], array)
    with pytest.raises(TypeError):
        output_of({**rendered, "alpha": np.ones((4, 6), "f4")}, device).quantised(
            outputs, frame=0, into=into | {"rgb": np.zeros((4, 6, 3), "u1")}
        )


@pytest.mark.parametrize(
    ("device", "given"),
    [
        ("cpu", "none"),
        ("cpu", "pageable"),
        *(pytest.param("cuda", given, marks=pytest.mark.gpu) for given in ("none", "pageable", "pinned")),
    ],
)
def test_frames_on_their_way_at_once(device: str, given: str) -> None:
    """Several are begun before the first is finished, by another thread and in any order; only the one with a NaN is refused."""
    outputs = LAYOUTS["depth first"]("uint16")
    rng = np.random.default_rng(1)
    rendered = [{name: rng.random((9, 8, *(3,) * (name == "rgb")), dtype="f4") for name in ("rgb", "depth", "alpha")} for _ in range(6)]
    rendered[4]["depth"][8, 7] = np.nan
    expected = [quantise(frame, outputs, frame=i) if i != 4 else {} for i, frame in enumerate(rendered)]
    frames = [output_of(frame, device) for frame in rendered]  # skips where there is no GPU
    places = [_places(given, outputs, (9, 8)) for _ in rendered]
    pending = [frame.quantise_begin(outputs, frame=i, into=places[i]) for i, frame in enumerate(frames)]
    del frames  # what is on its way keeps what it needs
    assert {one.stage for one in pending} == {"copy" if device == "cuda" else "quantise"}
    found: dict[int, Any] = {}

    def finish() -> None:
        for i in (1, 0, 2, 5, 3, 4):
            try:
                found[i] = pending[i].finish()
            except PixelError as error:
                found[i] = str(error)

    thread = threading.Thread(target=finish)
    thread.start()
    thread.join()
    assert found.pop(4).startswith("frame 4: depth holds 1 values that are NaN or infinite, the first at (8, 7)")
    for i, arrays_found in found.items():
        for name, array in expected[i].items():
            np.testing.assert_array_equal(arrays_found[name], array)
            assert places[i] is None or arrays_found[name] is places[i][name]  # type: ignore[index]


def _places(given: str, outputs: list[OutputSpec], size: tuple[int, int]) -> dict[str, NDArray[Any]] | None:
    if given == "none":
        return None
    make: Callable[..., NDArray[Any]] = pinned_array if given == "pinned" else np.zeros
    # places in a chunk of two frames: the second one's
    return {o.name: make((2, *size, *((o.channels,) if o.channels else ())), o.dtype)[1] for o in outputs}


@pytest.mark.parametrize("device", ["cpu", GPU])
def test_arrays_that_do_not_fit_are_refused(device: str) -> None:
    rendered = {"rgb": np.zeros((4, 6, 3), "f4"), "depth": np.zeros((4, 6), "f4"), "alpha": np.zeros((4, 6), "f4")}
    output, outputs = output_of(rendered, device), [OutputSpec("rgb", "uint8", 4)]
    with pytest.raises(ValueError, match=r"rgb is \[4, 6, 4\], and its array is \[4, 6, 3\]"):
        output.quantise_begin(outputs, frame=0, into={"rgb": np.zeros((4, 6, 3), "u1")})
    with pytest.raises(TypeError, match="rgb is stored as uint8, and its array is uint16"):
        output.quantise_begin(outputs, frame=0, into={"rgb": np.zeros((4, 6, 4), "u2")})


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in Linux's /proc")
def test_a_frame_on_a_cpu_wakes_no_threads_of_torchs() -> None:
    """They spin for a while after their work, on cores that the next frame's tiles need. A thread that torch has not met gets new ones."""
    rgb = torch.linspace(0, 1, 3 * 300 * 400).reshape(300, 400, 3)
    frame = RenderOutput(rgb, rgb[..., 0].contiguous(), rgb[..., 1].contiguous(), {})
    outputs = [layout(dtype) for layout in LAYOUTS.values() for dtype in DTYPES]

    def new_threads(work: Callable[[], object]) -> int:
        found: list[int] = []

        def run() -> None:
            torch.set_num_threads(2)
            before = set(Path("/proc/self/task").iterdir())
            work()
            found.append(len(set(Path("/proc/self/task").iterdir()) - before))

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return found[0]

    threads = torch.get_num_threads()
    try:
        assert new_threads(lambda: [frame.quantised(some, frame=0) for some in outputs]) == 0
        assert new_threads(lambda: rgb.floor()) == 1
    finally:
        new_threads(lambda: torch.set_num_threads(threads))


def test_more_pixels_than_are_converted_at_once() -> None:
    values = np.linspace(-0.1, 1.1, 97 * 211 * 3, dtype="f4").reshape(97, 211, 3)
    rendered = {"rgb": values, "depth": np.ascontiguousarray(values[..., 0]), "alpha": np.ascontiguousarray(values[..., 1])}
    for layout in LAYOUTS.values():
        compare(rendered, layout("uint8"), "cpu")
        compare({**rendered, "alpha": np.where(values[..., 0] > 1.09, np.float32(np.nan), rendered["alpha"])}, layout("uint8"), "cpu")


def test_an_output_that_was_not_rendered() -> None:
    class Normal:
        name, dtype, channels = "normal", "uint8", None

    with pytest.raises(KeyError):
        output_of({"rgb": np.zeros((2, 2, 3), "f4"), "depth": np.zeros((2, 2), "f4"), "alpha": np.zeros((2, 2), "f4")}, "cpu").quantised(
            [Normal()], frame=0
        )
