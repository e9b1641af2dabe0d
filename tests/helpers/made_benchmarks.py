"""A benchmark with an option of every standing, as if a machine had been measured."""

from __future__ import annotations

import msgspec
from made_proofs import PROOF

from deploykit.bundle.accepted import MachineIdentity
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.bench.results import (
    CHECKPOINT,
    PLAIN,
    TORCH,
    Benchmark,
    Measured,
    Option,
    Skipped,
    Standing,
    Timing,
)
from deploykit.specs.session import SessionSpec

FP32 = "deploy/fp32.onnx"
MACHINE = MachineIdentity(
    cpu="Some CPU",
    cpus=2,
    instruction_sets=("avx512f", "avx512_vnni"),
    gpu=None,
    versions={"onnxruntime": "1.31.1", "openvino": "2026.4.1"},
)
TORCH_FP32 = Option(file=CHECKPOINT, runtime=TORCH, precision="fp32")
ORT = Option(file=FP32, runtime="onnxruntime-cpu", precision="fp32")
OPENVINO = Option(file=FP32, runtime="openvino", precision="fp32")
BF16 = Option(file=FP32, runtime="openvino", precision="bf16")
INT8 = Option(file="deploy/int8.onnx", runtime="openvino", precision="int8")
CUDA = Option(file=FP32, runtime="onnxruntime-cuda", precision="fp32")


def proof_for(option: Option, **measured: object) -> KeptVerdict:
    """An executed proof of an option."""
    measurement = msgspec.structs.replace(PROOF.measurement, **measured)
    return msgspec.structs.replace(
        PROOF,
        graph=option.file,
        runtime=option.runtime,
        precision=option.precision,
        measurement=measurement,
    )


def measured(
    option: Option, rate: float, standing: Standing = "unproven", **fields: object
) -> Measured:
    """An option that gives so many images/s, a batch of 8 a tenth more than one of 1."""
    timings = tuple(
        Timing(batch=batch, seconds=tuple(batch / rate / gain * f for f in (1.0, 0.9, 1.2)))
        for batch, gain in ((1, 1.0), (8, 1.1))
    )
    facts = {
        "option": option,
        "spec": SessionSpec(
            runtime=option.runtime,
            graph=option.file,
            precision=option.precision,
            device="CPU",
            input_size=(16, 16),
            classes=3,
        ),
        "first_answer_seconds": 0.82,
        "peak_memory_bytes": 300 * 2**20,
        "timings": timings,
        "refusals": {},
        "batch_size": 2,
        "rates": (0.9 * rate, rate, rate / 0.9),
        "labelled": 48,
        "correct": 47,
        "standing": standing,
        "proof": proof_for(option) if standing == "proven" else None,
    }
    return Measured(**{**facts, **fields})  # type: ignore[arg-type]


def benchmark_of(*options: Measured, **fields: object) -> Benchmark:
    """A benchmark of these options."""
    facts = {
        "bundle": "birds",
        "folder": "artifacts/my birds",
        "machine": MACHINE,
        "photos": "bird_photos",
        "sample": 48,
        "options": options,
        "skipped": (Skipped(option=CUDA, reason="There is no NVIDIA driver on this machine."),),
        "rounds": 3,
        "seconds": 150.0,
        "created": "2026-11-22T03:11:26+00:00",
        "versions": {"numpy": "2.4.6", **MACHINE.versions},
    }
    return Benchmark(**{**facts, **fields})  # type: ignore[arg-type]


BENCHMARK = benchmark_of(
    measured(TORCH_FP32, 8.0, "reference"),
    measured(PLAIN, 10.0, "proven"),
    measured(ORT, 12.0, "proven"),
    measured(OPENVINO, 15.0, "proven"),
    measured(BF16, 30.0, "unproven"),
    measured(INT8, 45.0, "flips", proof=proof_for(INT8, flips=1)),
)
