"""deploykit: from a trained PyTorch image classifier to a model that is proven to decide the same.

The functions below are commands, with their options as keyword arguments; see docs/python.md.
Each is loaded when it is first used, so that importing deploykit costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.bench.api import bench
    from deploykit.commands.build.api import build_engine
    from deploykit.commands.collect.run import collect
    from deploykit.commands.diagnose.api import diagnose
    from deploykit.commands.export.api import export
    from deploykit.commands.identify.run import identify
    from deploykit.commands.inspect.run import inspect
    from deploykit.commands.package.api import package
    from deploykit.commands.predict.api import predict
    from deploykit.commands.predict.model import Model, load
    from deploykit.commands.quantize.api import quantize
    from deploykit.commands.train.run import train
    from deploykit.commands.verify.api import verify
    from deploykit.errors import DeploykitError
    from deploykit.specs.prediction import Prediction

__version__ = "0.2.0"

# ONNX Runtime reads it when it is first imported; else it keeps a device id and a database of
# events in the user's home and sends them to its makers (docs/security.md). Set here, it holds
# before any module of deploykit can import it, and in the processes that deploykit starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "Bundle": "deploykit.bundle.folder",
    "DeploykitError": "deploykit.errors",
    "Model": "deploykit.commands.predict.model",
    "Prediction": "deploykit.specs.prediction",
    "bench": "deploykit.commands.bench.api",
    "build_engine": "deploykit.commands.build.api",
    "collect": "deploykit.commands.collect.run",
    "diagnose": "deploykit.commands.diagnose.api",
    "export": "deploykit.commands.export.api",
    "identify": "deploykit.commands.identify.run",
    "inspect": "deploykit.commands.inspect.run",
    "load": "deploykit.commands.predict.model",
    "package": "deploykit.commands.package.api",
    "predict": "deploykit.commands.predict.api",
    "quantize": "deploykit.commands.quantize.api",
    "train": "deploykit.commands.train.run",
    "verify": "deploykit.commands.verify.api",
}

__all__ = [
    "Bundle",
    "DeploykitError",
    "Model",
    "Prediction",
    "bench",
    "build_engine",
    "collect",
    "diagnose",
    "export",
    "identify",
    "inspect",
    "load",
    "package",
    "predict",
    "quantize",
    "train",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(_HOMES[name]), name)
    if name.islower():
        from deploykit.commands.python import verb

        found = verb(found)
    globals()[name] = found  # so that it is resolved once
    return found


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
