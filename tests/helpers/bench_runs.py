"""Quick benchmarks of the tests' bundle, its candidates, and what their processes may do."""

from __future__ import annotations

import os
import sys
import time

from deploykit.bundle.folder import Bundle
from deploykit.commands.bench.measure import OpenCandidate, peak_memory_bytes
from deploykit.commands.bench.results import Benchmark
from deploykit.commands.bench.run import BenchRequest, bench_bundle
from deploykit.inference.candidates import Candidate
from deploykit.system.progress import Note, Step

FP32 = "deploy/fp32.onnx"
ORT = Candidate(FP32, "onnxruntime-cpu", "fp32")
OPENVINO = Candidate(FP32, "openvino", "fp32")
BF16 = Candidate(FP32, "openvino", "bf16")


def benched(bundle: Bundle, **fields: object) -> tuple[Benchmark, list[Step | Note]]:
    """What was measured, quickly, and what was said meanwhile."""
    events: list[Step | Note] = []
    request = BenchRequest(**{"batch_sizes": (1, 4), "seconds": 0.1, **fields})  # type: ignore[arg-type]
    return bench_bundle(bundle, request, events.append), events


# What follows runs in a candidate's process, instead of a method of the open candidate.


def die(opened: OpenCandidate, *given: object) -> None:
    """End as a library that aborts does."""
    print("out of luck", file=sys.stderr, flush=True)
    os._exit(7)


def hang(opened: OpenCandidate) -> None:
    """Never answer."""
    time.sleep(600)


def chatter(opened: OpenCandidate) -> int:
    """Print, from Python and past it."""
    print("I am a library", flush=True)
    os.write(1, b"written past Python\n")
    return os.getpid()


def grow(opened: OpenCandidate, size: int) -> tuple[int | None, int | None, int | None]:
    """The peak of the memory before, while and after so many bytes are held."""
    before = peak_memory_bytes()
    taken = bytearray(b"x") * size
    held = peak_memory_bytes()
    del taken
    return before, held, peak_memory_bytes()


def imported(opened: OpenCandidate, name: str) -> str | None:
    """The file of a module that was imported."""
    return sys.modules[name].__file__
