"""The driver is asked for its GPUs: a stand-in of C here, the real one where there is a GPU."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from landmark_batch.kernels import toolchain
from landmark_batch.kernels.cuda_driver import DriverGpu, driver_gpus

SOURCE = """
#include <stdio.h>
#include <stddef.h>
int cuInit(unsigned flags) { return INIT; }
int cuDriverGetVersion(int *v) { *v = 13020; return 0; }
int cuDeviceGetCount(int *n) { *n = COUNT; return 0; }
int cuDeviceGet(int *d, int n) { *d = 40 + n; return 0; }
int cuDeviceGetName(char *name, int room, int d) { snprintf(name, room, "GPU number %d", d); return 0; }
int cuDeviceGetAttribute(int *value, int which, int d) { *value = which == 75 ? d - 31 : which == 76 ? d % 2 * 5 : -1; return 0; }
int cuDeviceTotalMem_v2(size_t *size, int d) { *size = (size_t)d << 30; return LAST == d ? 999 : 0; }
"""

FIRST = DriverGpu("GPU number 40", 40 << 30, (9, 0))


@pytest.fixture
def driver(tmp_path: Path) -> Path:
    """Folder in which `made` puts drivers."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler, which makes a stand-in for the driver")
    (tmp_path / "driver.c").write_text(SOURCE)
    return tmp_path


def made(folder: Path, *, init: int = 0, count: int = 2, last: int = 0) -> str:
    library = folder / f"driver-{init}-{count}-{last}.so"
    words = [f"-DINIT={init}", f"-DCOUNT={count}", f"-DLAST={last}"]
    subprocess.run(["cc", "-shared", "-fPIC", *words, "-o", str(library), str(folder / "driver.c")], check=True)
    return str(library)


def test_names_and_memory_come_in_the_drivers_order(driver: Path) -> None:
    assert driver_gpus("13.0", made(driver)) == (FIRST, DriverGpu("GPU number 41", 41 << 30, (10, 5)))
    assert driver_gpus("12.8", made(driver, count=1)) == (FIRST,)


def test_torch_is_asked_where_the_driver_says_nothing(driver: Path, tmp_path: Path) -> None:
    assert driver_gpus("14.0", made(driver)) is None, "torch may bring what makes it newer"
    assert driver_gpus("13.0", made(driver, init=100)) is None
    assert driver_gpus("13.0", made(driver, count=0)) is None
    assert driver_gpus("13.0", made(driver, last=41)) is None
    assert driver_gpus("13.0", str(tmp_path / "none.so")) is None
    assert driver_gpus("unknown", made(driver)) is None
    (tmp_path / "half.c").write_text("int cuInit(unsigned flags) { return 0; }")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", str(tmp_path / "half.so"), str(tmp_path / "half.c")], check=True)
    assert driver_gpus("13.0", str(tmp_path / "half.so")) is None


def test_kernels_are_built_for_the_gpus_that_the_driver_tells_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolchain, "torch_build", lambda: SimpleNamespace(cuda="13.0"))
    monkeypatch.setattr(
        toolchain, "driver_gpus", lambda cuda: (FIRST, FIRST, FIRST._replace(capability=(8, 0))) if cuda == "13.0" else None
    )
    assert toolchain.visible_architectures() == ("80", "90a")
    monkeypatch.setattr(toolchain, "driver_gpus", lambda cuda: None)
    monkeypatch.setattr(toolchain, "_capabilities", lambda: {(10, 0)})
    assert toolchain.visible_architectures() == ("100",)
    monkeypatch.setattr(toolchain, "_capabilities", lambda: set())
    assert toolchain.visible_architectures() == toolchain.ARCHITECTURES


@pytest.mark.gpu
def test_the_real_driver_tells_what_torch_does() -> None:
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        pytest.skip("no CUDA device")
    known = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    assert driver_gpus(torch.version.cuda) == tuple(DriverGpu(each.name, each.total_memory, (each.major, each.minor)) for each in known)


@pytest.mark.gpu
def test_a_client_looks_for_gpus_without_torch() -> None:
    look = "from landmark_batch.kernels.build import status; from landmark_batch.workflows.machine import describe_machine; "
    look += "status('cuda'); print(len(describe_machine().gpus), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", f"import sys; {look}"], capture_output=True, text=True, check=True)
    assert done.stdout.split()[1] == "False" and int(done.stdout.split()[0]) > 0, done.stdout
