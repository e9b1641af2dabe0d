"""deploykit as a wheel: it is on no registry, so what runs it elsewhere gets it as a file."""

from __future__ import annotations

import base64
import hashlib
import zipfile
from importlib import metadata, resources
from importlib.resources.abc import Traversable
from pathlib import Path

from deploykit import __version__
from deploykit.bundle.packed import archived
from deploykit.errors import DependencyError

_TAG = "py3-none-any"


def write_wheel(folder: Path) -> Path:
    """Write the deploykit that runs, as a wheel (packaging.python.org, "Binary distribution
    format"), without its sources' build system or a network.

    Args:
        folder: Where to.

    Returns:
        Its path: ``deploykit-0.2.0-py3-none-any.whl``. Python can import from it as it is.

    Raises:
        DependencyError: This deploykit was never installed, so nothing tells what it needs.
    """  # noqa: D205
    installed = distribution()
    info = f"deploykit-{__version__}.dist-info"
    path = folder / f"deploykit-{__version__}-{_TAG}.whl"
    content = {**_files_of(resources.files("deploykit"), "deploykit")}
    content[f"{info}/METADATA"] = (installed.read_text("METADATA") or "").encode()
    content[f"{info}/WHEEL"] = (
        f"Wheel-Version: 1.0\nGenerator: deploykit {__version__}\nRoot-Is-Purelib: true\n"
        f"Tag: {_TAG}\n"
    ).encode()
    content[f"{info}/entry_points.txt"] = (installed.read_text("entry_points.txt") or "").encode()
    record = [f"{name},sha256={_digest(data)},{len(data)}" for name, data in content.items()]
    record.append(f"{info}/RECORD,,")
    content[f"{info}/RECORD"] = ("\n".join(record) + "\n").encode()
    with zipfile.ZipFile(path, "x") as archive:
        for name, data in content.items():
            archive.writestr(archived(name), data, zipfile.ZIP_DEFLATED)
    return path


def distribution() -> metadata.Distribution:
    """What was installed as deploykit.

    Raises:
        DependencyError: Nothing was.
    """
    try:
        return metadata.distribution("deploykit")
    except metadata.PackageNotFoundError as exc:
        raise DependencyError(
            "deploykit runs from its sources and is not installed, so what it needs is not known.",
            hint='Install it: pip install -e "."',
        ) from exc


def _files_of(folder: Traversable, name: str) -> dict[str, bytes]:
    """All files of a package by their paths, in the order of their names."""
    found: dict[str, bytes] = {}
    for each in sorted(folder.iterdir(), key=lambda each: each.name):
        if each.is_dir() and each.name != "__pycache__":
            found |= _files_of(each, f"{name}/{each.name}")
        elif each.is_file() and not each.name.endswith((".pyc", ".pyo")):
            found[f"{name}/{each.name}"] = each.read_bytes()
    return found


def _digest(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")
