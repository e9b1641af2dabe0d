"""The NVIDIA GPU of this machine, asked through its driver: no CUDA toolkit, no package needed."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from deploykit.errors import DeviceError

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
#: What is said of all that needs a GPU, until docs/gpu-results.md has a result.
EXPERIMENTAL = "experimental, not run on a GPU"
# CUdevice_attribute, CUDA driver API reference, "Device Management".
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
#: What to do about some of the errors of ``cuInit``: CUresult, CUDA driver API reference, "Data
#: types used by CUDA driver".
_REMEDIES = {
    34: "Take the CUDA toolkit's folder of stubs out of LD_LIBRARY_PATH",
    46: "Wait for the process that has the GPU to itself, which nvidia-smi shows",
    100: "Unset CUDA_VISIBLE_DEVICES, and start a container with --gpus all",
    802: "Start the service that the GPUs of this machine need, NVIDIA's Fabric Manager",
    803: "Restart the machine, as every update of NVIDIA's driver demands",
    804: "Update NVIDIA's driver, or take CUDA's compatibility libraries out of LD_LIBRARY_PATH",
}
_RESTART = "Restart the machine, and update NVIDIA's driver if that does not help"


@dataclass(frozen=True)
class Gpu:
    """GPU 0.

    Attributes:
        name: ``NVIDIA GeForce RTX 4070``.
        compute_capability: Major and minor, ``(8, 9)``.
        cuda_version: The newest CUDA that the driver runs, major and minor, ``(13, 0)``.
    """

    name: str
    compute_capability: tuple[int, int]
    cuda_version: tuple[int, int]

    @property
    def target(self) -> str:
        """The compute capability as ``--target`` takes it: ``sm89``."""
        major, minor = self.compute_capability
        return f"sm{major}{minor}"


def find_gpu() -> Gpu | None:
    """GPU 0, or None on a machine that cannot use one."""
    try:
        return need_gpu()
    except DeviceError:
        return None


def need_gpu() -> Gpu:
    """GPU 0, from the CUDA driver API.

    Raises:
        DeviceError: There is no driver, it does not start, or it finds no GPU.
    """
    try:
        driver = ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as exc:
        raise DeviceError(
            f"There is no NVIDIA driver on this machine: {DRIVER_LIBRARY} does not load.",
            hint="Install NVIDIA's driver, or start the container with --gpus all; "
            "or see what runs without: deploykit doctor",
        ) from exc
    status = driver.cuInit(0)
    if status:
        raise _failure(driver, "does not start", status)
    device, version, major, minor = (ctypes.c_int() for _ in range(4))
    name = ctypes.create_string_buffer(256)
    attribute = driver.cuDeviceGetAttribute
    status = (
        driver.cuDeviceGet(ctypes.byref(device), 0)
        or driver.cuDeviceGetName(name, len(name), device)
        or driver.cuDriverGetVersion(ctypes.byref(version))
        or attribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device)
        or attribute(ctypes.byref(minor), _COMPUTE_CAPABILITY_MINOR, device)
    )
    if status:
        raise _failure(driver, "does not tell of its GPU", status)
    return Gpu(
        name=name.value.decode(),
        compute_capability=(major.value, minor.value),
        cuda_version=(version.value // 1000, version.value % 1000 // 10),
    )


def _failure(driver: ctypes.CDLL, what: str, status: int) -> DeviceError:
    """The error for a call of the driver's that failed, in the driver's own words."""
    words = ctypes.c_char_p()
    driver.cuGetErrorString(status, ctypes.byref(words))  # null for an error that it does not know
    reason = f"error {status}" if words.value is None else f"{words.value.decode()} ({status})"
    return DeviceError(
        f"The NVIDIA driver {what}: {reason}.",
        hint=f"{_REMEDIES.get(status, _RESTART)}; or see what is here: deploykit doctor",
    )
