"""Packages: import an optional one or say how to install it; versions that can change an answer."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import platform
import sys
from collections.abc import Mapping
from functools import cache
from importlib import metadata
from typing import TYPE_CHECKING

from deploykit.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: The extra of deploykit that installs a module.
EXTRAS = {
    "aiohttp": "cloud",
    "av": "video",
    "fsspec": "cloud",
    "gcsfs": "cloud",
    "gevent": "kserve",
    "h5py": "keras",
    "httptools": "serve",
    "matplotlib": "train",
    "onnx": "graph",
    "onnx_ir": "graph",
    "onnxscript": "graph",
    "openvino": "openvino",
    "prometheus_client": "serve",
    "pyarrow": "parquet",
    "python_multipart": "serve",
    "ray": "ray",
    "s3fs": "cloud",
    "safetensors": "export",
    "skimage": "demo",
    "starlette": "serve",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "timm": "timm",
    "torch": "export",
    "torchvision": "export",
    "tritonclient": "kserve",
    "uvicorn": "serve",
    "yaml": "export",
}
#: What installs a module that no extra is for: both flavours of TensorRT need it.
REQUIREMENTS = {"cuda": "cuda-bindings>=12.9.1"}
#: What a module tells its makers through, at once when it is imported, that it is in use. It does
#: its work without.
REPORTERS = {"openvino": "openvino_telemetry"}


def check_installed(name: str) -> None:
    """Refuse early what will need a module; it is imported when it is needed.

    Args:
        name: The module's name, ``pyarrow``.

    Raises:
        DependencyError: The module is not installed.
    """
    if importlib.util.find_spec(name) is None:
        need(name)


def need(name: str) -> ModuleType:
    """Import a module that not every installation has.

    Args:
        name: The module's name, ``torch`` or ``torchvision.models``.

    Raises:
        DependencyError: The module is not installed, or fails to import (a broken CUDA library is
            an ImportError too, hence the cause in the message).
    """
    top = name.partition(".")[0]
    try:
        with _silenced(REPORTERS.get(top)):
            return importlib.import_module(name)
    except (ImportError, OSError) as exc:
        extra = EXTRAS.get(top)
        requirement = f"deploykit[{extra}]" if extra else REQUIREMENTS.get(top, top)
        if isinstance(exc, ModuleNotFoundError) and exc.name == top:
            message = f"{top} is not installed, and this step needs it."
        else:
            message = f"{top} is installed but does not import: {exc}"
        raise DependencyError(message, hint=f'Install it: pip install "{requirement}"') from exc


@contextlib.contextmanager
def _silenced(reporter: str | None) -> Iterator[None]:
    """Let a module pass for not installed while another is imported."""
    if reporter is None:
        yield
        return
    imported = sys.modules.get(reporter)
    sys.modules[reporter] = None  # type: ignore[assignment]  # importing it is an ImportError now
    try:
        yield
    finally:
        if imported is None:
            del sys.modules[reporter]
        else:
            sys.modules[reporter] = imported


_PACKAGES = (
    *("deploykit", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("pillow", "tensorrt", "tensorrt_rtx", "torch"),
)
#: ONNX Runtime has a package with the GPU's provider and one without; the CPU's is in both.
_RUNTIMES = {
    "onnxruntime-cpu": ("onnxruntime", "onnxruntime-gpu"),
    "onnxruntime-cuda": ("onnxruntime", "onnxruntime-gpu"),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt",),
    "tensorrt_rtx": ("tensorrt_rtx",),
}
RUNTIME_PACKAGES = frozenset(package for packages in _RUNTIMES.values() for package in packages)


def runtime_version(runtime: str, versions: Mapping[str, str]) -> str:
    """The version of a runtime among those of packages; empty where it is not among them."""
    found = {versions[package] for package in _RUNTIMES.get(runtime, ()) if package in versions}
    return " and ".join(sorted(found))


def version_changes(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """The packages in other versions: ``openvino was 2025.2, now 2026.4``."""
    return [
        f"{name} was {before.get(name, 'not installed')}, now {after.get(name, 'not installed')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages whose version can change an answer."""
    found = {name: _installed_version(name) for name in _PACKAGES}
    return {"python": platform.python_version()} | {n: v for n, v in found.items() if v is not None}


@cache
def _installed_version(package: str) -> str | None:
    """Cached: to look takes half a millisecond, and every candidate's status asks for all."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
