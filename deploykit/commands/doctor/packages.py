"""Python packages: what is installed, asked of its metadata, so that nothing heavy is imported."""

from __future__ import annotations

import importlib.metadata
import platform
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from deploykit.commands.doctor.findings import Finding, Status
from deploykit.errors import DependencyError
from deploykit.system.deps import REQUIREMENTS, need

if TYPE_CHECKING:
    from deploykit.system.gpu import Gpu

UNREADABLE = "unreadable metadata"
#: The packages that all bring the module ``onnxruntime``, each over the files of the others.
ONNX_RUNTIMES = (
    *("onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"),
    *("onnxruntime-qnn", "onnxruntime-rocm", "onnxruntime-silicon", "onnxruntime-training"),
    *("ort-nightly", "ort-nightly-gpu"),
)


def version_of(package: str) -> str | None:
    """A package's version; None when it is not installed, :data:`UNREADABLE` when nothing tells."""
    try:
        return importlib.metadata.version(package) or UNREADABLE
    except importlib.metadata.PackageNotFoundError:
        return None
    except (OSError, KeyError, TypeError, ValueError):
        return UNREADABLE


def folder_of(module: str) -> Path | None:
    """A top-level package's folder, without importing it; None when there is none."""
    spec = PathFinder.find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin else None


def imported(module: str) -> ModuleType:
    """Import a small module, whatever that shows.

    Raises:
        DependencyError: It is not installed, or does not import.
    """
    try:
        return need(module)
    except DependencyError:
        raise
    except Exception as exc:  # a broken installation may raise anything
        raise DependencyError(
            f"{module} is installed but does not import: {type(exc).__name__}: {exc}"
        ) from exc


def reinstall_command(*packages: str) -> str:
    """The command that writes packages anew, and not numpy, torch and all else that they need."""
    return f"pip install --force-reinstall --no-deps {' '.join(packages)}"


def onnx_runtime_packages() -> tuple[str, ...]:
    """Those of ONNX Runtime's packages that are installed; more than one is one too many."""
    return tuple(name for name in ONNX_RUNTIMES if version_of(name) is not None)


def has_gpu_package() -> bool:
    """Whether onnxruntime-gpu is published for this system."""
    return (sys.platform, platform.machine()) in (("linux", "x86_64"), ("win32", "AMD64"))


def one_onnx_runtime() -> tuple[str, ...]:
    """The commands that leave the one package of ONNX Runtime that deploykit asks for here."""
    wanted = "onnxruntime-gpu" if has_gpu_package() else "onnxruntime"
    unwanted = [name for name in onnx_runtime_packages() if name != wanted]
    install = reinstall_command(wanted)
    return (f"pip uninstall -y {' '.join(unwanted)}", install) if unwanted else (install,)


def onnx_runtime_packages_finding() -> Finding:
    """Whether ONNX Runtime is installed once."""
    name = "onnxruntime package"
    installed = onnx_runtime_packages()
    versions = ", ".join(f"{package} {version_of(package)}" for package in installed)
    if not installed:
        return Finding(name=name, status="missing", detail="none", remedies=one_onnx_runtime())
    if len(installed) > 1:
        return Finding(
            name=name,
            status="broken",
            detail=f"{versions}: they have overwritten each other's files",
            remedies=one_onnx_runtime(),
        )
    if has_gpu_package() and "onnxruntime-gpu" not in installed:
        detail = (
            f"{versions}, where deploykit asks for onnxruntime-gpu, which has the CPU provider too"
        )
        return Finding(name=name, status="missing", detail=detail, remedies=one_onnx_runtime())
    return Finding(name=name, status="ok", detail=versions)


def cuda_bindings_finding(gpu: Gpu | None) -> Finding:
    """Whether device memory can be managed, which running an engine takes."""
    name, remedies = "cuda-bindings", (f'pip install "{REQUIREMENTS["cuda"]}"',)
    version = version_of(name)
    if version is None:
        status: Status = "missing" if gpu else "absent-but-fine"
        return Finding(name=name, status=status, detail="not installed", remedies=remedies)
    try:
        imported("cuda.bindings.runtime")
    except DependencyError as exc:
        reinstall = (reinstall_command(name),)
        return Finding(name=name, status="broken", detail=exc.message, remedies=reinstall)
    return Finding(name=name, status="ok", detail=version)


def torch_finding(gpu: Gpu | None) -> Finding:
    """The training side: torch, what it is built for, and whether torchvision fits it."""
    name, remedies = "torch", ('pip install "deploykit[export]"',)
    folder, version = folder_of(name), version_of(name)
    if version is None:
        detail = "not installed; only export, training and comparing with a checkpoint need it"
        return Finding(name=name, status="absent-but-fine", detail=detail, remedies=remedies)
    if folder is None:
        detail = f"the record of {version} is there, its files are not"
        reinstall = (reinstall_command(name),)
        return Finding(name=name, status="broken", detail=detail, remedies=reinstall)
    build, vision = _build_of(folder), _build_of(folder_of("torchvision"))
    if build and vision and build[:4] != vision[:4]:  # cu13, cu12 or cpu
        return Finding(
            name=name,
            status="broken",
            detail=f"torch is built for {build}, torchvision for {vision}: "
            "torchvision does not import",
            remedies=("pip install --force-reinstall torch torchvision",),
        )
    return Finding(name=name, status="ok", detail=f"{version}, {_device_of_torch(build, gpu)}")


def _build_of(folder: Path | None) -> str:
    """What torch or torchvision is built for, ``cu132`` or ``cpu``; empty where nothing tells."""
    try:
        text = (folder / "version.py").read_text(encoding="utf-8") if folder else ""
    except (OSError, ValueError):
        return ""
    found = re.search(r"^__version__ = '[^'+]*\+(\w+)'", text, re.MULTILINE)
    return found[1] if found else ""


def _device_of_torch(build: str, gpu: Gpu | None) -> str:
    """Where torch would compute, as far as its version tells."""
    if not re.fullmatch(r"cu\d{3}", build):
        return "built without CUDA: it computes on the CPU" if build else "its build is not told"
    major, minor = int(build[2:4]), int(build[4:])
    built = f"built for CUDA {major}.{minor}"
    if gpu is None:
        return f"{built}: it computes on the CPU, as no GPU can be used"
    if gpu.cuda_version[0] < major:
        return f"{built}, which the driver does not run: it computes on the CPU"
    return f"{built}: it can use the GPU"
