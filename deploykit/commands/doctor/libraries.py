"""Native libraries: which ones a compiled module needs, and whether each of them loads."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from deploykit.commands.doctor.elf import linked_libraries
from deploykit.system.gpu import DRIVER_LIBRARY

#: What the names of CUDA's, cuDNN's and TensorRT's libraries begin with, on Linux and Windows.
_NVIDIA = re.compile(r"(lib)?(cu|nv|tensorrt)")
_VERSION = re.compile(r"(?:\.so\.|64_|_)(\d+)")
CUDA_EXTRA = 'pip install "deploykit[cuda]"'
_SYSTEM_LIBRARIES = "the compiler's runtime libraries (libstdc++), from the system's packages"


def needed_by(module: Path, windows_names: Sequence[str]) -> tuple[str, ...]:
    """The libraries that a compiled module needs, without the driver's.

    Args:
        module: A shared library, of Linux or Windows.
        windows_names: What it needs if it is one of Windows.

    Raises:
        InputError: It cannot be read.
    """
    names = windows_names if module.suffix in (".dll", ".pyd") else linked_libraries(module)
    return tuple(name for name in names if name != DRIVER_LIBRARY)


def unloadable(names: Iterable[str], packages: Path) -> dict[str, str]:
    """Try to load each library, as ONNX Runtime and TensorRT find them.

    Those that load stay loaded, so that a library finds those that it needs itself.

    Args:
        names: The libraries, before those that need them.
        packages: The ``site-packages`` whose wheels of NVIDIA's are looked into first.

    Returns:
        What the system says about each that does not load; nothing where it is just not found.
    """
    problems = {}
    for name in names:
        bundled = _bundled(name, packages)
        try:
            if bundled is None:
                _load_by_name(name)
            else:
                ctypes.CDLL(str(bundled))
        except OSError as exc:
            problems[name] = "" if bundled is None and _not_found(name, exc) else str(exc)
    return problems


def describe(problems: Mapping[str, str]) -> str:
    """What :func:`unloadable` gave, in words."""
    not_found = ", ".join(name for name, problem in problems.items() if not problem)
    others = (f"{name} does not load: {problem}" for name, problem in problems.items() if problem)
    return "; ".join((*([f"{not_found} not found"] if not_found else []), *others))


def major_version(name: str) -> int | None:
    """``libcudart.so.13`` and ``cudart64_13.dll`` => 13; None where the name tells none."""
    found = _VERSION.search(name)
    return int(found[1]) if found else None


def cuda_version(names: Iterable[str]) -> int | None:
    """The major version of CUDA among libraries' names; None where there is none."""
    return next((major_version(name) for name in names if "cudart" in name), None)


def remedies_for(missing: Iterable[str], cuda: int | None) -> tuple[str, ...]:
    """What brings missing libraries.

    Args:
        missing: Their names.
        cuda: The major version of CUDA that they are for, where that is known.
    """
    remedies: dict[str, None] = {}  # in order, each once
    for name in missing:
        if "nvinfer" in name or "nvonnxparser" in name:
            package = f"tensorrt-cu{cuda}" if cuda else "tensorrt"
            version = major_version(name)
            remedies[f'pip install "{package}<{version + 1}"' if version else package] = None
        elif _NVIDIA.match(name):
            remedies[CUDA_EXTRA] = None
        else:
            remedies[_SYSTEM_LIBRARIES] = None
    return tuple(remedies)


def _bundled(name: str, packages: Path) -> Path | None:
    """The library in a wheel of NVIDIA's, or on Windows of torch's."""
    patterns = (
        *("nvidia/*/lib", "nvidia/*/bin", "nvidia/*/bin/*", "torch/lib"),
        *("tensorrt_libs", "tensorrt_rtx_libs"),
    )
    files = (folder / name for pattern in patterns for folder in sorted(packages.glob(pattern)))
    return next((file for file in files if file.is_file()), None)


def _not_found(name: str, error: OSError) -> bool:
    """Whether the library itself is not there, as against one that it needs."""
    return isinstance(error, FileNotFoundError) or str(error).startswith(f"{name}: cannot open")


def _load_by_name(name: str) -> None:
    if sys.platform == "win32":
        # Along PATH too, as Windows looks for what a provider of ONNX Runtime's links.
        ctypes.CDLL(name, winmode=0)
    else:
        ctypes.CDLL(name)
