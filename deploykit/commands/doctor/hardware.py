"""What this machine is: system, CPU, memory and GPU."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from types import ModuleType
from typing import ClassVar

from deploykit.commands.doctor.findings import Finding, Machine, Status
from deploykit.commands.doctor.packages import imported
from deploykit.errors import DependencyError, DeviceError
from deploykit.system.cpu import read_cpu
from deploykit.system.gpu import Gpu, need_gpu
from deploykit.system.threads import usable_cpus

_INSTALL_DRIVER = (
    "if there is an NVIDIA GPU: its driver, from nvidia.com, Drivers; in a container, --gpus all"
)
_UPDATE_DRIVER = "a newer driver, from nvidia.com, Drivers"


def describe_machine() -> tuple[Machine, tuple[Finding, ...]]:
    """What the system tells about this machine, and what was found about its GPU."""
    cpu = read_cpu()
    gpu, gpu_finding = _gpu()
    driver_version, gpu_memory_bytes, nvml_finding = _driver_facts(gpu)
    machine = Machine(
        system=platform.platform(),
        python=platform.python_version(),
        executable=sys.executable,
        processor=cpu.name,
        cores=usable_cpus(),
        instruction_sets=cpu.instruction_sets,
        memory_bytes=_memory_bytes(),
        gpu=gpu,
        driver_version=driver_version,
        gpu_memory_bytes=gpu_memory_bytes,
    )
    return machine, (gpu_finding, nvml_finding)


def driver_finding(gpu: Gpu, cuda: int | None, package: str) -> Finding:
    """Whether the driver runs what a package is built for.

    A driver runs what is built for the major version of CUDA that it names, or for an older one:
    "CUDA Compatibility", NVIDIA.

    Args:
        gpu: The GPU, which knows the driver's CUDA version.
        cuda: The major version of CUDA that the package is built for; None where nothing tells.
        package: Its name.
    """
    name, detail = f"driver for {package}", f"it runs CUDA up to {dotted(gpu.cuda_version)}"
    if cuda is not None and gpu.cuda_version[0] < cuda:
        detail += f", and {package} is built for CUDA {cuda}"
        return Finding(name=name, status="broken", detail=detail, remedies=(_UPDATE_DRIVER,))
    return Finding(name=name, status="ok", detail=detail)


def dotted(version: tuple[int, int]) -> str:
    """``(8, 9)`` => ``8.9``."""
    return ".".join(map(str, version))


def _memory_bytes() -> int | None:
    if sys.platform == "win32":
        return _windows_memory_bytes()
    else:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _windows_memory_bytes() -> int | None:
    """``ullTotalPhys`` of ``MEMORYSTATUSEX``, Windows API reference, "sysinfoapi.h"."""

    class MemoryStatus(ctypes.Structure):
        _fields_: ClassVar = [
            ("size", ctypes.c_uint32),
            ("load", ctypes.c_uint32),
            ("total", ctypes.c_uint64),
            ("rest", ctypes.c_uint64 * 6),
        ]

    status = MemoryStatus(size=ctypes.sizeof(MemoryStatus))
    kernel = ctypes.CDLL("kernel32.dll")
    return int(status.total) if kernel.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def _gpu() -> tuple[Gpu | None, Finding]:
    """GPU 0. No driver at all is a machine without a GPU; one that does not start is broken."""
    try:
        gpu = need_gpu()
    except DeviceError as exc:
        hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
        status: Status = "broken"
        if isinstance(exc.__cause__, OSError):
            status, remedy = "absent-but-fine", _INSTALL_DRIVER
        elif hidden is not None:
            remedy = f"unset CUDA_VISIBLE_DEVICES, which is {hidden!r}"
        else:
            remedy = f"see whether nvidia-smi runs; {_UPDATE_DRIVER}"
        return None, Finding(
            name="NVIDIA GPU", status=status, detail=exc.message, remedies=(remedy,)
        )
    detail = f"{gpu.name}, compute capability {dotted(gpu.compute_capability)}"
    return gpu, Finding(name="NVIDIA GPU", status="ok", detail=detail)


def _driver_facts(gpu: Gpu | None) -> tuple[str | None, int | None, Finding]:
    """The driver's version and the GPU's memory, which NVIDIA's management library tells."""
    name = "nvidia-ml-py"
    remedies = (f"pip install --force-reinstall {name}",)
    try:
        nvml = imported("pynvml")
    except DependencyError as exc:
        status: Status = "broken"
        if isinstance(exc.__cause__, ModuleNotFoundError):
            status, remedies = "absent-but-fine", (f"pip install {name}",)
        detail = f"it would tell the driver's version and the GPU's memory; {exc.message}"
        return None, None, Finding(name=name, status=status, detail=detail, remedies=remedies)
    try:
        nvml.nvmlInit()
        driver_version = str(nvml.nvmlSystemGetDriverVersion())
        memory_bytes = None if gpu is None else _memory_of(gpu, nvml)
        nvml.nvmlShutdown()
    except nvml.NVMLError as exc:
        status = "absent-but-fine" if gpu is None else "broken"
        return None, None, Finding(name=name, status=status, detail=f"the driver says: {exc}")
    detail = f"driver {driver_version}"
    return driver_version, memory_bytes, Finding(name=name, status="ok", detail=detail)


def _memory_of(gpu: Gpu, nvml: ModuleType) -> int | None:
    """The memory of a GPU of that name: NVML and CUDA may count several GPUs in another order."""
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        if nvml.nvmlDeviceGetName(handle) == gpu.name:
            return int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    return None
