"""deploykit: from a trained PyTorch image classifier to a model that is proven to decide the same.

The names below are loaded when they are first used, so that importing deploykit costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle, open_bundle
    from deploykit.commands.bench.results import Benchmark
    from deploykit.commands.bench.run import BenchRequest, bench_bundle
    from deploykit.commands.export.request import ExportRequest
    from deploykit.commands.export.run import ExportResult, export_bundle
    from deploykit.commands.predict.run import PredictionRun, PredictRequest, predict_folder
    from deploykit.commands.train.run import TrainingResult, train_classifier
    from deploykit.commands.verify.result import Verification
    from deploykit.commands.verify.run import VerifyRequest, verify_bundle
    from deploykit.errors import DeploykitError
    from deploykit.specs.model import Labels
    from deploykit.specs.prediction import Prediction
    from deploykit.specs.preprocessing import Preprocessing
    from deploykit.specs.preprocessing_options import PreprocessingOptions

__version__ = "0.1.0"

# ONNX Runtime reads it when it is first imported; else it keeps a device id and a database of
# events in the user's home and sends them to its makers (docs/security.md). Set here, it holds
# before any module of deploykit can import it, and in the processes that deploykit starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "BenchRequest": "deploykit.commands.bench.run",
    "Benchmark": "deploykit.commands.bench.results",
    "Bundle": "deploykit.bundle.folder",
    "DeploykitError": "deploykit.errors",
    "ExportRequest": "deploykit.commands.export.request",
    "ExportResult": "deploykit.commands.export.run",
    "Labels": "deploykit.specs.model",
    "PredictRequest": "deploykit.commands.predict.run",
    "Prediction": "deploykit.specs.prediction",
    "PredictionRun": "deploykit.commands.predict.run",
    "Preprocessing": "deploykit.specs.preprocessing",
    "PreprocessingOptions": "deploykit.specs.preprocessing_options",
    "TrainingResult": "deploykit.commands.train.run",
    "Verification": "deploykit.commands.verify.result",
    "VerifyRequest": "deploykit.commands.verify.run",
    "bench_bundle": "deploykit.commands.bench.run",
    "export_bundle": "deploykit.commands.export.run",
    "open_bundle": "deploykit.bundle.folder",
    "predict_folder": "deploykit.commands.predict.run",
    "train_classifier": "deploykit.commands.train.run",
    "verify_bundle": "deploykit.commands.verify.run",
}

__all__ = [
    "BenchRequest",
    "Benchmark",
    "Bundle",
    "DeploykitError",
    "ExportRequest",
    "ExportResult",
    "Labels",
    "PredictRequest",
    "Prediction",
    "PredictionRun",
    "Preprocessing",
    "PreprocessingOptions",
    "TrainingResult",
    "Verification",
    "VerifyRequest",
    "bench_bundle",
    "export_bundle",
    "open_bundle",
    "predict_folder",
    "train_classifier",
    "verify_bundle",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
