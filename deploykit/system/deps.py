"""Optional dependencies: import one, or say how to install it."""

from __future__ import annotations

import contextlib
import importlib
import sys
from typing import TYPE_CHECKING

from deploykit.errors import DependencyError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

#: The extra of deploykit that installs a module.
EXTRAS = {
    "matplotlib": "train",
    "onnx": "graph",
    "onnx_ir": "graph",
    "onnxscript": "graph",
    "openvino": "openvino",
    "pyarrow": "parquet",
    "safetensors": "export",
    "skimage": "demo",
    "tensorrt": "tensorrt",
    "tensorrt_rtx": "rtx",
    "timm": "timm",
    "torch": "export",
    "torchvision": "export",
}
#: What installs a module that no extra is for: both flavours of TensorRT need it.
REQUIREMENTS = {"cuda": "cuda-bindings>=12.9.1"}
#: What a module tells its makers through, at once when it is imported, that it is in use. It does
#: its work without.
REPORTERS = {"openvino": "openvino_telemetry"}


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
