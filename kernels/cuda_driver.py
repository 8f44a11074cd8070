"""The GPUs that CUDA's driver shows this process, asked directly: torch asks the same driver, but its import takes seconds.

CUDA driver API: initialization, version management, device management. Nothing is made on a device.
"""

from __future__ import annotations

import ctypes
import logging
from typing import NamedTuple

logger = logging.getLogger(__name__)

LIBRARY = "libcuda.so.1"
_NAME_BYTES = 256
_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR, _MINOR


class DriverGpu(NamedTuple):
    """memory: bytes. capability: such as (9, 0)."""

    name: str
    memory: int
    capability: tuple[int, int]


def driver_gpus(cuda: str, library: str = LIBRARY) -> tuple[DriverGpu, ...] | None:
    """The GPUs by the numbers that torch gives them. cuda: release that torch was built with, such as '13.0'.

    None where torch has to be asked: no driver, one that reports an error or no device, or one that is older than that release.
    """
    try:
        found = _ask(ctypes.CDLL(library), int(cuda.split(".")[0]))
    except (OSError, AttributeError, ValueError, _DriverError) as error:
        logger.debug("%s does not say what GPUs there are: %s", library, error)
        return None
    return found or None


class _DriverError(RuntimeError):
    """A call returned another code than 0."""


def _ask(driver: ctypes.CDLL, major: int) -> tuple[DriverGpu, ...]:
    version, count, device, size = ctypes.c_int(), ctypes.c_int(), ctypes.c_int(), ctypes.c_size_t()
    high, low = ctypes.c_int(), ctypes.c_int()
    name = ctypes.create_string_buffer(_NAME_BYTES)

    def call(function: str, *arguments: object) -> None:
        code = getattr(driver, function)(*arguments)
        if code:
            raise _DriverError(f"{function} returned {code}")

    call("cuInit", 0)
    call("cuDriverGetVersion", ctypes.byref(version))
    if version.value // 1000 < major:
        raise _DriverError(f"CUDA {version.value // 1000} is older than torch's {major}")
    call("cuDeviceGetCount", ctypes.byref(count))
    found = []
    for number in range(count.value):
        call("cuDeviceGet", ctypes.byref(device), number)
        call("cuDeviceGetName", name, _NAME_BYTES, device)
        call("cuDeviceTotalMem_v2", ctypes.byref(size), device)
        call("cuDeviceGetAttribute", ctypes.byref(high), _MAJOR, device)
        call("cuDeviceGetAttribute", ctypes.byref(low), _MINOR, device)
        found.append(DriverGpu(name.value.decode("utf-8", "replace"), size.value, (high.value, low.value)))
    return tuple(found)
