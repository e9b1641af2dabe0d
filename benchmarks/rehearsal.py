"""Rehearsal: images/s of the FP16 rehearsal beside plain FP32, on the same photos, in one run.

    python benchmarks/rehearsal.py BUNDLE IMAGES [--batch 8] [--repeats 15]

The bundle must have deploy/fp16.onnx (deploykit build-trt makes it). Prints one table: the median
images/s of each, and the ratio. Both run on ONNX Runtime's CPU provider, batch after batch in turn.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from deploykit.bundle.folder import open_bundle
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.parity.compare import regroup
from deploykit.proof.images import folder_sample


def main() -> None:
    """Measure interleaved and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=15)
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    manifest = bundle.manifest
    photos = folder_sample(
        options.images,
        manifest.preprocessing,
        labels=manifest.labels,
        limit=options.batch * options.repeats,
    )
    sessions = {
        "plain FP32": open_candidate(
            bundle, Candidate("deploy/fp32.onnx", "onnxruntime-cpu", "fp32")
        ),
        "FP16 rehearsal": open_candidate(
            bundle, Candidate("deploy/fp16.onnx", "rehearsal", "fp16")
        ),
    }
    rates: dict[str, list[float]] = {name: [] for name in sessions}
    for _, images in regroup(photos, [options.batch] * options.repeats):
        for name, session in sessions.items():
            start = time.perf_counter()
            session.run(images)
            rates[name].append(len(images) / (time.perf_counter() - start))
    medians = {name: statistics.median(values[1:]) for name, values in rates.items()}  # 1 warm-up
    baseline = medians["plain FP32"]
    print(f"{manifest.architecture.name}, batch {options.batch}, median of {options.repeats - 1}")
    for name, median in medians.items():
        print(f"{name:16} {median:8.2f} images/s  {median / baseline:5.2f} x")


if __name__ == "__main__":
    main()
