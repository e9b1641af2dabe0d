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
from collections.abc import Mapping
from pathlib import Path

import torch

from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.models.registry import resolve_architecture

CLASSES = 4


def seconds_of_torch(module: torch.nn.Module, size: tuple[int, int]) -> float:
    """``torch.onnx.export`` with its defaults, dynamic batch, and nothing else."""
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module,
            (torch.zeros(2, 3, *size),),
            dynamo=True,
            dynamic_shapes=({0: "N"},),
            verbose=False,
        )
    return time.perf_counter() - start


class Pair:
    """A network of random weights, to export in both ways.

    Args:
        arch: As ``--arch`` takes it.
        classes: How many.
        images: The photos to prove it on; None for made ones.
        folder: Where to write.

    Attributes:
        stages: What the stages of each whole job took, by their names.
    """

    def __init__(self, arch: str, classes: int, images: Path | None, folder: Path) -> None:
        architecture = resolve_architecture(arch, allow_user_code=True)
        torch.manual_seed(0)
        self._module = architecture.build(classes).eval()
        known = architecture.preprocessing
        self._size = known.input_size if known else (224, 224)
        folder.mkdir(exist_ok=True)
        checkpoint = folder / "best_model.pth"
        torch.save(self._module.state_dict(), checkpoint)
        self._request = ExportRequest(
            arch=arch,
            checkpoint=checkpoint,
            images=images,
            artifacts=folder / "artifacts",
            overwrite=True,
        )
        self.stages: list[Mapping[str, float]] = []
        seconds_of_torch(torch.nn.Conv2d(3, 3, 1).eval(), (8, 8))  # what only a first export pays

    def alone(self) -> float:
        """The seconds of torch's exporter."""
        return seconds_of_torch(self._module, self._size)

    def whole(self) -> float:
        """The seconds of deploykit's job."""
        start = time.perf_counter()
        self.stages.append(export_bundle(self._request).seconds)
        return time.perf_counter() - start


def main() -> None:
    """Measure interleaved and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="dpn92")
    parser.add_argument("--images", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(options.arch, CLASSES, options.images, Path(folder))
        alone, whole = zip(
            *((pair.alone(), pair.whole()) for _ in range(options.repeats)), strict=True
        )
    first, second = statistics.median(alone), statistics.median(whole)
    print(f"{options.arch}, median of {options.repeats}, {torch.get_num_threads()} threads")
    print(f"torch.onnx.export alone   {first:6.2f} s")
    print(f"deploykit export          {second:6.2f} s   {second / first:.2f} x")
    for stage in pair.stages[0]:
        print(f"  {stage:<23} {statistics.median(s[stage] for s in pair.stages):6.2f} s")


if __name__ == "__main__":
    main()
