"""Export: deploykit's whole job beside ``torch.onnx.export`` alone, in one run.

    python benchmarks/export.py [--arch dpn92] [--images DIR] [--repeats 3]

Prints one table: the median seconds of each, and the ratio. The job includes reading the
checkpoint, both graphs, the comparison with torch and the bundle; start-up (importing torch) is in
neither.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch

from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.models.registry import resolve_architecture

CLASSES = 4


def seconds_of_torch(module: torch.nn.Module, size: tuple[int, int]) -> float:
    """``torch.onnx.export`` with its defaults, dynamic batch, and nothing else."""
    start = time.perf_counter()
    torch.onnx.export(
        module,
        (torch.zeros(2, 3, *size),),
        dynamo=True,
        dynamic_shapes=({0: "N"},),
        verbose=False,
    )
    return time.perf_counter() - start


def main() -> None:
    """Measure interleaved and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="dpn92")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    warnings.simplefilter("ignore")

    architecture = resolve_architecture(options.arch, allow_user_code=True)
    torch.manual_seed(0)
    module = architecture.build(CLASSES).eval()
    known = architecture.preprocessing
    size = known.input_size if known else (224, 224)
    alone, whole, stages = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "best_model.pth"
        torch.save(module.state_dict(), checkpoint)
        request = ExportRequest(
            arch=options.arch,
            checkpoint=checkpoint,
            images=options.images,
            artifacts=Path(folder) / "artifacts",
            overwrite=True,
        )
        seconds_of_torch(torch.nn.Conv2d(3, 3, 1).eval(), (8, 8))  # what only a first export pays
        for _ in range(options.repeats):
            alone.append(seconds_of_torch(module, size))
            start = time.perf_counter()
            result = export_bundle(request)
            whole.append(time.perf_counter() - start)
            stages.append(result.seconds)
    first, second = statistics.median(alone), statistics.median(whole)
    print(f"{options.arch}, median of {options.repeats}, {torch.get_num_threads()} threads")
    print(f"torch.onnx.export alone   {first:6.2f} s")
    print(f"deploykit export          {second:6.2f} s   {second / first:.2f} x")
    for stage in stages[0]:
        print(f"  {stage:<23} {statistics.median(s[stage] for s in stages):6.2f} s")


if __name__ == "__main__":
    main()
