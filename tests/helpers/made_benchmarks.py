"""A benchmark with a candidate of every status, as if a machine had been measured."""

from __future__ import annotations

import msgspec
from made_proofs import PROOF

from deploykit.bundle.accepted import MachineIdentity
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.bench.results import (
    PLAIN,
    TORCH,
    Benchmark,
    Measured,
    Skipped,
    Timing,
)
from deploykit.inference.candidates import Candidate
from deploykit.proof.policy import Status, StatusWord
from deploykit.specs.session import SessionSpec

FP32 = "deploy/fp32.onnx"
MACHINE = MachineIdentity(
    cpu="Some CPU",
    cpus=2,
    instruction_sets=("avx512f", "avx512_vnni"),
    gpu=None,
    versions={"onnxruntime": "1.31.1", "openvino": "2026.4.1"},
)
ORT = Candidate(FP32, "onnxruntime-cpu", "fp32")
OPENVINO = Candidate(FP32, "openvino", "fp32")
BF16 = Candidate(FP32, "openvino", "bf16")
INT8 = Candidate("deploy/int8.onnx", "openvino", "int8")
CUDA = Candidate(FP32, "onnxruntime-cuda", "fp32")


def proof_for(candidate: Candidate, **measured: object) -> KeptVerdict:
    """An executed proof of a candidate."""
    measurement = msgspec.structs.replace(PROOF.measurement, **measured)
    return msgspec.structs.replace(
        PROOF,
        graph=candidate.file,
        runtime=candidate.runtime,
        precision=candidate.precision,
        measurement=measurement,
    )


def status_of(candidate: Candidate, word: StatusWord, reason: str = "") -> Status:
    """A status with the verdict that it needs."""
    flips = {"proven": 0, "within budget": 1}
    proof = proof_for(candidate, flips=flips[word]) if word in flips else None
    return Status(word, proof, reason)


def measured(
    candidate: Candidate,
    rate: float,
    word: StatusWord = "unproven",
    reason: str = "",
    **fields: object,
) -> Measured:
    """A candidate that gives so many images/s, a batch of 8 a tenth more than one of 1."""
    timings = tuple(
        Timing(batch=batch, seconds=tuple(batch / rate / gain * f for f in (1.0, 0.9, 1.2)))
        for batch, gain in ((1, 1.0), (8, 1.1))
    )
    facts = {
        "candidate": candidate,
        "spec": SessionSpec(
            runtime=candidate.runtime,
            graph=candidate.file,
            precision=candidate.precision,
            device="CPU",
            input_size=(16, 16),
            classes=3,
        ),
        "first_answer_seconds": 0.82,
        "peak_memory_bytes": 300 * 2**20,
        "timings": timings,
        "skipped_batches": {},
        "batch_size": 2,
        "rates": (0.9 * rate, rate, rate / 0.9),
        "labelled": 48,
        "correct": 47,
        "status": None if candidate == TORCH else status_of(candidate, word, reason),
    }
    return Measured(**{**facts, **fields})  # type: ignore[arg-type]


def benchmark_of(*candidates: Measured, **fields: object) -> Benchmark:
    """A benchmark of these candidates."""
    facts = {
        "bundle": "birds",
        "folder": "artifacts/my birds",
        "machine": MACHINE,
        "images": "bird_photos",
        "sample": 48,
        "measured": tuple(sorted(candidates, key=lambda each: -each.images_per_second)),
        "skipped": (Skipped(candidate=CUDA, reason="There is no NVIDIA driver on this machine."),),
        "rounds": 3,
        "starting_seconds": 20.0,
        "seconds": 150.0,
        "created": "2026-11-22T03:11:26+00:00",
        "versions": {"numpy": "2.4.6", **MACHINE.versions},
    }
    return Benchmark(**{**facts, **fields})  # type: ignore[arg-type]


BENCHMARK = benchmark_of(
    measured(TORCH, 8.0),
    measured(PLAIN, 10.0, "proven"),
    measured(ORT, 12.0, "proven"),
    measured(OPENVINO, 15.0, "proven"),
    measured(BF16, 60.0, "unproven", "it was never compared"),
    measured(INT8, 45.0, "within budget"),
)
