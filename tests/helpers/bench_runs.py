"""Quick benchmarks of the tests' bundle, and options of it."""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.commands.bench.messages import Begin, Begun, Sample, SamplePredicted
from deploykit.commands.bench.results import CHECKPOINT, TORCH, Benchmark, Option
from deploykit.commands.bench.rounds import Asked, Contender
from deploykit.commands.bench.run import BenchRequest, bench_bundle
from deploykit.specs.session import SessionSpec
from deploykit.system.progress import Note, Step

FP32 = "deploy/fp32.onnx"
ORT = Option(file=FP32, runtime="onnxruntime-cpu", precision="fp32")
OPENVINO = Option(file=FP32, runtime="openvino", precision="fp32")
BF16 = Option(file=FP32, runtime="openvino", precision="bf16")
EAGER = Option(file=CHECKPOINT, runtime=TORCH, precision="fp32")


SPEC = SessionSpec(
    runtime="fake", graph=FP32, precision="fp32", device="CPU", input_size=(8, 8), classes=3,
    largest_batch=4,
)  # fmt: skip
BEGUN = Begun(spec=SPEC, batch_size=2)
SAMPLE = SamplePredicted(peak_memory_bytes=None, images_per_second=4.0, labelled=0, correct=0)


def benched(bundle: Bundle, **fields: object) -> tuple[Benchmark, list[Step | Note]]:
    """What was measured, quickly, and what was said meanwhile."""
    events: list[Step | Note] = []
    request = BenchRequest(**{"batch_sizes": (1, 4), "seconds": 0.1, **fields})  # type: ignore[arg-type]
    return bench_bundle(bundle, request, events.append), events


def contender_of(option: Option, process: Asked) -> Contender:
    """An option that has begun."""
    begin = Begin(bundle=b"bundle", option=option, sample=Sample(root=b"", photos=()))
    return Contender(begin, process, 1.0, BEGUN, SAMPLE)
