"""The versions of the packages whose version can change an answer."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import metadata

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
    """What is otherwise in other versions: ``openvino was 2025.2, now 2026.4``."""
    return [
        f"{name} was {before.get(name, 'not installed')}, now {after.get(name, 'not installed')}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


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
