"""What is compiled, with which flags, as a ninja file. One library a device, landmark_cpu.so and landmark_cuda.so, and one for PNGs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from .toolchain import Toolchain, is_x86, torch_include, torch_libraries

SOURCES = Path(__file__).parent / "csrc"

# No -ffast-math and no contraction: coordinates and mask values are formed in LandMark's order of operations.
_CPU_FLAGS = "-std=c++17 -fPIC -ffp-contract=off -fno-math-errno -fvisibility=hidden"
_AVX2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt"
_VARIANTS = {
    "avx512": f"-O3 {_AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl",
    "avx2": f"-O3 {_AVX2}",
    "portable": "-O2",
}
_PNG_VARIANTS = {
    "avx512": "-O3 -mavx2 -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vbmi",
    "avx2": "-O3 -mavx2 -mbmi -mbmi2",
    "portable": "-O3",
}
_BINDING_FLAGS = "-O2 -std=c++20 -fPIC -fvisibility=hidden"  # torch's headers are C++20
_CUDA_FLAGS = "-O3 -std=c++17 -Xcompiler -fPIC"


def library_name(device: str) -> str:
    """'landmark_cpu.so', 'landmark_cuda.so', 'landmark_png.so'."""
    return f"landmark_{device}.so"


def source_files(device: str) -> list[Path]:
    """Every file that the library of `device` is made from."""
    return sorted(path for path in (SOURCES / device).iterdir() if path.suffix in (".cpp", ".cu", ".cuh", ".h"))


def write_recipe(device: str, tools: Toolchain, architectures: Sequence[str] = ()) -> str:
    """The build.ninja of a library, built in the current folder. architectures: of the CUDA kernels ('80', '90a', ...)."""
    if device == "cuda":
        return _cuda(tools, architectures)
    variants = _PNG_VARIANTS if device == "png" else _VARIANTS
    chosen = variants if is_x86() else {"portable": "-O3"}
    objects = {f"variant_{name}": f"{_CPU_FLAGS} {flags}" for name, flags in chosen.items()}
    if device == "png":
        return _compiled(tools, device, {"png": f"{_CPU_FLAGS} -O2", **objects}, "")
    return _compiled(tools, device, {"binding": f"{_BINDING_FLAGS} {_torch_headers()}", **objects}, f"{_torch_path()} -ltorch_cpu -lc10")


def _compiled(tools: Toolchain, device: str, objects: Mapping[str, str], libraries: str) -> str:
    """objects: name of a .cpp -> flags."""
    lines = [
        f"src = {_plain(SOURCES / device)}",
        f"cxx = {_escape(tools.compiler)}",
        "rule compile",
        "  command = $cxx $flags -c $in -o $out",
        "  description = $in",
    ]
    for name, flags in objects.items():
        lines += [f"build {name}.o: compile $src/{name}.cpp", f"  flags = {flags}"]
    return _finish(lines, device, [f"{name}.o" for name in objects], libraries)


def _cuda(tools: Toolchain, architectures: Sequence[str]) -> str:
    assert tools.nvcc is not None
    targets = " ".join(f"-gencode arch=compute_{name},code=sm_{name}" for name in architectures)
    sources = [path for path in source_files("cuda") if path.suffix == ".cu"]
    lines = [
        f"src = {_plain(SOURCES / 'cuda')}",
        f"cxx = {_escape(tools.compiler)}",
        f"nvcc = {_escape(tools.nvcc)}",
        "rule kernels",
        f"  command = $nvcc -ccbin $cxx {_CUDA_FLAGS} {targets} -c $in -o $out",
        "  description = $in",
        "rule binding",
        # nvcc hands a .cpp to the host compiler, with the toolkit's headers
        f"  command = $nvcc -ccbin $cxx -x c++ -O2 -std=c++20 -Xcompiler -fPIC,-fvisibility=hidden {_torch_headers()} -c $in -o $out",
        "  description = $in",
    ]
    lines += [f"build {path.stem}.o: kernels $src/{path.name}" for path in sources]
    bindings = [path for path in source_files("cuda") if path.suffix == ".cpp"]
    lines += [f"build {path.stem}.o: binding $src/{path.name}" for path in bindings]
    objects = [f"{path.stem}.o" for path in (*sources, *bindings)]
    return _finish(lines, "cuda", objects, f"{_torch_path()} -Wl,--no-as-needed -lc10_cuda -ltorch_cuda -ltorch_cpu -lc10")


def _finish(lines: list[str], device: str, objects: Sequence[str], libraries: str) -> str:
    """Adds the link step. The CUDA runtime is the one torch has loaded; the library carries no path of this machine."""
    lines += [
        "rule link",
        f"  command = $cxx -shared $in -o $out {libraries}".rstrip(),
        "  description = $out",
        f"build {library_name(device)}: link {' '.join(objects)}",
        f"default {library_name(device)}",
    ]
    return "\n".join(lines) + "\n"


def _torch_path() -> str:
    return f"-L{_escape(torch_libraries())}"


def _torch_headers() -> str:
    include = torch_include()
    return f"-isystem {_escape(include)} -isystem {_escape(include / 'torch' / 'csrc' / 'api' / 'include')}"


def _plain(path: Path) -> str:
    """A path as the value of a ninja variable; ninja itself quotes what it hands to the shell as $in."""
    return str(path).replace("$", "$$")


def _escape(path: Path) -> str:
    """A path inside a command."""
    return shlex.quote(str(path)).replace("$", "$$")
