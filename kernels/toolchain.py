"""What compiles the kernels here: a C++ compiler, ninja, nvcc, torch's headers. Only looks; starts nothing."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

from .cuda_driver import driver_gpus
from .torch_build import torch_build

CXX_NAMES = ("c++", "g++", "clang++")
ARCHITECTURES = ("80", "86", "89", "90a", "100")  # of a library for any machine
X86 = ("x86_64", "amd64")


class ToolchainError(RuntimeError):
    """A tool that a build needs is missing; the message says which, `remedy` how to get it."""

    def __init__(self, message: str, remedy: str) -> None:
        super().__init__(message)
        self.remedy = remedy


@dataclass(frozen=True)
class Toolchain:
    """Paths of the tools; nvcc: for the CUDA kernels alone."""

    compiler: Path
    ninja: Path
    nvcc: Path | None = None


def find_toolchain(device: str, *, cuda_home: Path | None = None) -> Toolchain:
    """The tools that build the kernels of `device` ('cpu', 'cuda', 'png'). cuda_home: a toolkit to prefer to the PATH's nvcc.

    Raises ToolchainError naming the first that is missing.
    """
    compiler = next((found for name in CXX_NAMES if (found := shutil.which(name))), None)
    if compiler is None:
        names = ", ".join(CXX_NAMES)
        raise ToolchainError(f"no C++ compiler: none of {names} is on the PATH", "install a C++ compiler (Debian: apt install g++)")
    ninja = _find_ninja()
    if ninja is None:
        raise ToolchainError("no ninja: neither the Python package nor the program is installed", "pip install ninja")
    if device != "png" and not (torch_include() / "torch" / "library.h").is_file():
        raise ToolchainError(f"torch has no headers in {torch_include()}", "install torch from a wheel, which has them: pip install torch")
    nvcc = None
    if device == "cuda":
        if torch_build().cuda is None:
            version = torch_build().version
            release = version.partition("+")[0]
            raise ToolchainError(
                f"torch {version} was built without CUDA: the CUDA kernels link to its libraries",
                f"install torch with CUDA, which PyPI has for Linux: pip install --force-reinstall torch=={release}",
            )
        nvcc = find_nvcc(cuda_home)
        if nvcc is None:
            raise ToolchainError(
                "no nvcc: no CUDA compiler is on the PATH, in CUDA_HOME or among the Python packages",
                "install landmark-batch[cuda], which brings the CUDA compiler",
            )
    return Toolchain(Path(compiler), ninja, nvcc)


def find_nvcc(cuda_home: Path | None = None) -> Path | None:
    """nvcc of a toolkit, of the PATH, of the Python package nvidia-cuda-nvcc, or of the usual place; None if there is none."""
    candidates = [cuda_home / "bin" / "nvcc"] if cuda_home else []
    on_path = shutil.which("nvcc")
    candidates += [Path(on_path)] if on_path else []
    spec = importlib.util.find_spec("nvidia")
    for folder in sorted(spec.submodule_search_locations or () if spec else ()):
        candidates += sorted(Path(folder).glob("cu*/bin/nvcc"), reverse=True) + sorted(Path(folder).glob("cuda_nvcc/bin/nvcc"))
    candidates.append(Path("/usr/local/cuda/bin/nvcc"))
    return next((path for path in candidates if path.is_file()), None)


def _find_ninja() -> Path | None:
    spec = importlib.util.find_spec("ninja")
    if spec is not None:
        import ninja

        found = Path(ninja.BIN_DIR) / "ninja"
        if found.is_file():
            return found
    on_path = shutil.which("ninja") or shutil.which("ninja-build")
    return Path(on_path) if on_path else None


def torch_include() -> Path:
    """Folder of torch's headers."""
    return torch_build().folder / "include"


def torch_libraries() -> Path:
    """Folder of torch's shared libraries."""
    return torch_build().folder / "lib"


def visible_architectures() -> tuple[str, ...]:
    """Architectures of the visible GPUs ('90a', '100', ...); of a library for any machine if there are none. Imports torch only where the
    driver does not tell.
    """
    cuda = torch_build().cuda
    told = driver_gpus(cuda) if cuda is not None else None
    found = _capabilities() if told is None else {gpu.capability for gpu in told}
    if not found:
        return ARCHITECTURES
    return tuple("90a" if capability == (9, 0) else f"{capability[0]}{capability[1]}" for capability in sorted(found))


def _capabilities() -> set[tuple[int, int]]:
    """Of the GPUs that torch sees."""
    import torch

    if not torch.cuda.is_available():
        return set()
    return {torch.cuda.get_device_capability(ordinal) for ordinal in range(torch.cuda.device_count())}


def is_x86() -> bool:
    """Whether the AVX2 and AVX-512 kernels are built here."""
    return platform.machine().lower() in X86
