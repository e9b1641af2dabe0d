"""TensorRT of both flavours: whether it is installed with the libraries that its bindings need."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from deploykit.commands.doctor.findings import Finding
from deploykit.commands.doctor.libraries import describe, needed_by, unloadable
from deploykit.commands.doctor.packages import UNREADABLE, folder_of, reinstall_command, version_of
from deploykit.errors import InputError
from deploykit.specs.engine import Flavour

_CUDA_VERSIONS = (13, 12)
_EXTRAS: dict[Flavour, str] = {"tensorrt": "tensorrt", "tensorrt_rtx": "rtx"}


@dataclass(frozen=True)
class Installation:
    """A flavour's packages.

    Attributes:
        packages: Those that are installed and their versions; the first is the one that a user
            installs, or stands for it.
        cuda: The major version of CUDA that they are for; None where their names do not tell.
    """

    packages: dict[str, str]
    cuda: int | None

    @property
    def version(self) -> str:
        """The version of the first that tells one."""
        known = (version for version in self.packages.values() if version != UNREADABLE)
        return next(known, UNREADABLE)


def installation(flavour: Flavour) -> Installation:
    """Which of a flavour's packages are installed."""
    base = flavour.replace("_", "-")
    names = [base, *(f"{base}-{part}" for part in ("bindings", "libs"))]
    for cuda in _CUDA_VERSIONS:
        names += (f"{base}-cu{cuda}{part}" for part in ("", "-bindings", "-libs"))
    packages = {name: version for name in names if (version := version_of(name)) is not None}
    cudas = (cuda for cuda in _CUDA_VERSIONS if any(f"-cu{cuda}" in name for name in packages))
    return Installation(packages=packages, cuda=next(cudas, None))


def flavour_finding(flavour: Flavour) -> Finding:
    """Whether a flavour of TensorRT is installed, and its libraries load."""
    installed = installation(flavour)
    extra = f'pip install "deploykit[{_EXTRAS[flavour]}]"'
    folder = folder_of(flavour)
    if folder is None:
        there = ", ".join(f"{name} {version}" for name, version in installed.packages.items())
        detail = f"not installed; only {there} is" if there else "not installed"
        return Finding(name=flavour, status="absent-but-fine", detail=detail, remedies=(extra,))
    remedies = (reinstall_command(*installed.packages) if installed.packages else extra,)
    bindings = _bindings_of(flavour, folder)
    if bindings is None:
        detail = f"{installed.version}, but its compiled module is not in {folder.parent}"
        return Finding(name=flavour, status="broken", detail=detail, remedies=remedies)
    try:
        needed = needed_by(bindings, _windows_names(flavour, installed.version))
    except InputError as exc:
        return Finding(name=flavour, status="broken", detail=exc.message, remedies=remedies)
    problems = unloadable(needed, packages=bindings.parents[1])
    if problems:
        detail = f"{installed.version}, but its libraries do not load: {describe(problems)}"
        return Finding(name=flavour, status="broken", detail=detail, remedies=remedies)
    return Finding(name=flavour, status="ok", detail=installed.version)


def _bindings_of(flavour: Flavour, folder: Path) -> Path | None:
    """The compiled module: in a package of its own, or in the flavour's where both are one."""
    found = (
        file
        for home in (folder.parent / f"{flavour}_bindings", folder)
        for pattern in (f"{flavour}*.so", f"{flavour}*.pyd")
        for file in sorted(home.glob(pattern))
    )
    return next(found, None)


def _windows_names(flavour: Flavour, version: str) -> tuple[str, ...]:
    found = re.match(r"(\d+)\.(\d+)", version)
    if found is None:
        return ()
    major, minor = found.groups()
    if flavour == "tensorrt":
        return (f"nvinfer_{major}.dll", f"nvinfer_plugin_{major}.dll", f"nvonnxparser_{major}.dll")
    return (f"tensorrt_rtx_{major}_{minor}.dll", f"tensorrt_onnxparser_rtx_{major}_{minor}.dll")
