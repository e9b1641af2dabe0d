"""Quick benchmarks of the tests' bundle, and options of it."""

from __future__ import annotations

from deploykit.bundle import Bundle
from deploykit.jobs.bench import BenchRequest, bench_bundle
from deploykit.jobs.bench_results import CHECKPOINT, TORCH, Benchmark, Option
from deploykit.progress import Note, Step

FP32 = "deploy/fp32.onnx"
ORT = Option(file=FP32, runtime="onnxruntime-cpu", precision="fp32")
OPENVINO = Option(file=FP32, runtime="openvino", precision="fp32")
BF16 = Option(file=FP32, runtime="openvino", precision="bf16")
EAGER = Option(file=CHECKPOINT, runtime=TORCH, precision="fp32")


def benched(bundle: Bundle, **fields: object) -> tuple[Benchmark, list[Step | Note]]:
    """What was measured, quickly, and what was said meanwhile."""
    events: list[Step | Note] = []
    request = BenchRequest(**{"batch_sizes": (1, 4), "seconds": 0.1, **fields})  # type: ignore[arg-type]
    return bench_bundle(bundle, request, events.append), events
