"""deploykit: from a trained PyTorch image classifier to a model that is proven to decide the same.

The names below are loaded when they are first used, so that importing deploykit costs nothing.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from deploykit.bundle import Bundle, open_bundle
    from deploykit.errors import DeploykitError
    from deploykit.jobs.bench import BenchRequest, bench_bundle
    from deploykit.jobs.bench_results import Benchmark
    from deploykit.jobs.export import ExportResult, export_bundle
    from deploykit.jobs.export_request import ExportRequest
    from deploykit.jobs.predict import PredictionRun, PredictRequest, predict_folder
    from deploykit.jobs.preprocessing import PreprocessingOptions
    from deploykit.jobs.train import TrainingResult, train_classifier
    from deploykit.jobs.verification import Verification
    from deploykit.jobs.verify import VerifyRequest, verify_bundle
    from deploykit.specs import Labels, Prediction, Preprocessing

__version__ = "0.1.0"

# ONNX Runtime reads it when it is first imported; else it keeps a device id and a database of
# events in the user's home and sends them to its makers (docs/security.md). Set here, it holds
# before any module of deploykit can import it, and in the processes that deploykit starts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_HOMES = {
    "BenchRequest": "deploykit.jobs.bench",
    "Benchmark": "deploykit.jobs.bench_results",
    "Bundle": "deploykit.bundle",
    "DeploykitError": "deploykit.errors",
    "ExportRequest": "deploykit.jobs.export_request",
    "ExportResult": "deploykit.jobs.export",
    "Labels": "deploykit.specs",
    "PredictRequest": "deploykit.jobs.predict",
    "Prediction": "deploykit.specs",
    "PredictionRun": "deploykit.jobs.predict",
    "Preprocessing": "deploykit.specs",
    "PreprocessingOptions": "deploykit.jobs.preprocessing",
    "TrainingResult": "deploykit.jobs.train",
    "Verification": "deploykit.jobs.verification",
    "VerifyRequest": "deploykit.jobs.verify",
    "bench_bundle": "deploykit.jobs.bench",
    "export_bundle": "deploykit.jobs.export",
    "open_bundle": "deploykit.bundle",
    "predict_folder": "deploykit.jobs.predict",
    "train_classifier": "deploykit.jobs.train",
    "verify_bundle": "deploykit.jobs.verify",
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
