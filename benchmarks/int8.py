"""INT8: deploykit's quantizer beside ONNX Runtime's and NNCF's, on the same graph and photos.

    python benchmarks/int8.py BUNDLE [BUNDLE ...] CALIBRATION IMAGES [--isa native avx2]
        [--calibration-images 64] [--max-images N] [--draws 1] [--batch 32] [--rounds 7] [--json]

Each quantizer gets the bundle's FP32 graph, which takes pixels and is told to leave the
preprocessing alone, and the same photos of CALIBRATION; all are judged on the photos of IMAGES
that are not among those. The two may be one folder. Of some hundred photos a few flip, too few to
tell quantizers apart: ``--draws 5`` draws from CALIBRATION five times, four of them at random, and
adds up. Prints a table a bundle:

- deploykit: every node in INT8, without its search, once as it is made for ONNX Runtime and once as
  for OpenVINO; and with weights of 7 bits, which CPUs without VNNI get.
- ONNX Runtime: ``quantize_static``, min-max, int8 tensors as by default, per channel; and with
  ``reduce_range``, whose weights have 7 bits, so that sums of products cannot saturate on CPUs
  without VNNI.
- NNCF: ``nncf.quantize`` as it is by default. Where it is not importable, it is installed into an
  environment of its own (--nncf-environment), which later runs use again.

What it is compared with is the FP32 graph on ONNX Runtime. Computed is each graph

- exactly: by ONNX Runtime without graph optimisation, which rounds where the graph says so, and
  computes in FP32 between. This is what the quantizer is to blame for.
- by ONNX Runtime and by OpenVINO, in a process of its own, as they do by default. With ``--isa
  avx2`` also as on a CPU without AVX-512, VNNI and AMX: see ``without_avx512.c``, which needs a C
  compiler, Linux, and a CPU that has ``cpuid_fault``.

The change of a photo is that of its most changed probability. The accuracy is told of photos in
folders, or with file names, that are called like classes. Images/s are the median of the rounds, in
which the graphs take turns; the last column compares them with those of the FP32 graph on ONNX
Runtime with the same instruction sets.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import openvino as ov
from int8_answers import RUNTIMES
from int8_quantizers import Source, drawn, quantizers, run

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.images.scan import scan_images
from deploykit.parity.measures import percentile
from deploykit.proof.images import ImageSample, folder_sample, read_sample
from deploykit.specs.model import Labels
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.cpu import describe_cpu
from deploykit.system.text import table_text
from deploykit.system.threads import usable_cpus

FP32 = "FP32"
EXACT = "exact"
_SUMS = ("flips", "right", "known", "photos")
_MEANS = ("mean", "percentile", "images_per_second", "times_fp32")
HERE = Path(__file__).parent
NNCF_ENVIRONMENT = Path(tempfile.gettempdir()) / "deploykit-nncf"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        bundle: The bundle's name.
        quantizer: Who made the graph.
        arithmetic: ``exact``, or the runtime that computed it.
        isa: The instruction sets: all of the CPU's, or AVX2's.
        flips: How many photos are decided otherwise than in FP32.
        mean: The mean change of a photo.
        percentile: The 99th percentile of the changes.
        largest: The largest.
        right: How many of the photos with a known class are decided rightly.
        known: How many these are.
        photos: How many photos there are.
        images_per_second: None where rounding is simulated; the mean of the draws.
        times_fp32: How many times that of the FP32 graph on ONNX Runtime.
    """

    bundle: str
    quantizer: str
    arithmetic: str
    isa: str
    flips: int
    mean: float
    percentile: float
    largest: float
    right: int
    known: int
    photos: int
    images_per_second: float | None = None
    times_fp32: float | None = None


@dataclass(frozen=True)
class Trial:
    """A bundle, the photos that quantizers get, and those that judge them.

    Attributes:
        source: What a quantizer is given.
        photos: (M, H, W, 3) other photos.
        truth: (M,) their classes; -1 where they are not known.
    """

    source: Source
    photos: ImageBatch
    truth: npt.NDArray[np.intp]

    @property
    def bundle(self) -> Bundle:
        """The bundle."""
        return self.source.bundle

    def row(self, quantizer: str, arithmetic: str, isa: str, found: Logits, right: Logits) -> Row:
        """Compare answers.

        Args:
            quantizer: Who made the graph.
            arithmetic: What computed it.
            isa: With which instruction sets.
            found: (M, K) its logits.
            right: (M, K) those of the FP32 graph.
        """
        head = self.bundle.manifest.labels.head
        changes = np.abs(head.probabilities(found) - head.probabilities(right)).max(axis=1)
        decided = head.decide(found)
        return Row(
            self.bundle.name,
            quantizer,
            arithmetic,
            isa,
            flips=int((decided != head.decide(right)).any(axis=1).sum()),
            mean=float(changes.mean()),
            percentile=percentile(changes.astype(np.float64), 99),
            largest=float(changes.max()),
            right=int((decided[:, 0] == self.truth).sum()),
            known=int((self.truth >= 0).sum()),
            photos=len(self.photos),
        )


def prepared(bundle: Bundle, options: argparse.Namespace, draw: int) -> Trial:
    """Read the photos.

    Args:
        bundle: What they are for.
        options: Which, and how many.
        draw: 0 for the fixed sample that ``quantize`` takes, else the seed of another one.
    """
    manifest = bundle.manifest
    calibration, others = (
        folder_sample(folder, manifest.preprocessing, labels=manifest.labels, limit=limit)
        for folder, limit in (
            (options.calibration, options.calibration_images),
            (options.images, options.max_images),
        )
    )
    if draw:
        scan = scan_images(options.calibration, manifest.labels.folder_names)
        files = random.Random(draw).sample(scan.files, options.calibration_images)
        calibration = read_sample(options.calibration, files, manifest.preprocessing)
    source = Source(bundle, calibration)
    others.skip(calibration.digests)
    names, photos = drawn(others)
    truth = np.array([class_of(name, others, manifest.labels) for name in names])
    return Trial(source, photos, truth)


def class_of(name: str, sample: ImageSample, labels: Labels) -> int:
    """A photo's class by its folder or its file's name; -1 where neither tells."""
    classes = [each.lower().replace(" ", "_") for each in labels.names]
    if labels.head.several:
        return -1  # a photo has no one class
    told = (*sample.expected.get(name, ()), Path(name).stem)
    found = (each.lower().replace(" ", "_") for each in told)
    return next((classes.index(each) for each in found if each in classes), -1)


def exact_answers(graph: Path, photos: ImageBatch) -> Logits:
    """(N, K) the logits with each rounding done as the graph has it, and FP32 between."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: photo[None]})[0] for photo in photos])


def hidden(isa: str, folder: Path) -> dict[str, str]:
    """The environment of a process that is to compute with some instruction sets."""
    if isa == "native":
        return {}
    library = folder / "without_avx512.so"
    run("cc", "-shared", "-fPIC", "-O2", HERE / "without_avx512.c", "-o", library)
    return {"LD_PRELOAD": str(library)}


def rows_of(trial: Trial, options: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """Quantize, compute in every way, and compare."""
    names = [FP32]
    shutil.copyfile(trial.source.graph, folder / f"{FP32}.onnx")
    for name, quantize in quantizers(options.nncf_environment).items():
        quantize(trial.source, folder / f"{name}.onnx")
        names.append(name)
    right = exact_answers(folder / f"{FP32}.onnx", trial.photos)
    for name in names:
        found = exact_answers(folder / f"{name}.onnx", trial.photos)
        yield trial.row(name, EXACT, "", found, right)
    np.save(folder / "photos.npy", trial.photos)
    for isa in options.isa:
        script = (sys.executable, HERE / "int8_answers.py", folder)
        told = run(*script, str(options.batch), str(options.rounds), **hidden(isa, folder))
        rates = json.loads(told)
        base = rates[f"{FP32}.{RUNTIMES[0]}"]
        for runtime in RUNTIMES:
            for name in names:
                key = f"{name}.{runtime}"
                if key not in rates:
                    print(f"{trial.bundle.name}: {runtime} does not open {name}", file=sys.stderr)
                    continue
                row = trial.row(name, runtime, isa, np.load(folder / f"{key}.npy"), right)
                yield replace(row, images_per_second=rates[key], times_fp32=rates[key] / base)


def added_up(draws: list[list[Row]]) -> Iterator[Row]:
    """The rows of all draws as one each: sums of photos, means of what is told of one photo."""
    found = [{(row.quantizer, row.arithmetic, row.isa): row for row in rows} for rows in draws]
    for key in found[0]:
        rows = [each[key] for each in found if key in each]
        if len(rows) < len(draws):
            continue  # of one of the draws a runtime did not open it
        sums: dict[str, Any] = {name: sum(getattr(row, name) for row in rows) for name in _SUMS}
        means: dict[str, Any] = {
            name: statistics.fmean(getattr(row, name) for row in rows)
            for name in _MEANS
            if getattr(rows[0], name) is not None
        }
        yield replace(rows[0], largest=max(row.largest for row in rows), **sums, **means)


def text_of(row: Row) -> tuple[str, ...]:
    """A row as the table shows it."""
    return (
        row.quantizer,
        f"{row.arithmetic} {'' if row.isa == 'native' else row.isa}".strip(),
        str(row.flips),
        *(f"{value:.3f}" for value in (row.mean, row.percentile, row.largest)),
        f"{100 * row.right / row.known:.1f} %" if row.known else "",
        f"{row.images_per_second:.1f}" if row.images_per_second else "",
        f"{row.times_fp32:.2f} x" if row.times_fp32 else "",
    )


def main() -> None:
    """Measure each bundle, and print its table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("calibration", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--draws", type=int, default=1)
    parser.add_argument("--isa", nargs="*", choices=("native", "avx2"), default=["native"])
    parser.add_argument("--calibration-images", type=int, default=64)
    parser.add_argument("--max-images", type=int)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--nncf-environment", type=Path, default=NNCF_ENVIRONMENT)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()

    cpu, rows = describe_cpu(), []
    sets = ", ".join(cpu.instruction_sets or ("unknown instruction sets",))
    header = ("quantizer", "computed by", "flips", "mean |dp|", "99 %", "largest", "accuracy")
    for path in options.bundles:
        with tempfile.TemporaryDirectory() as folder:
            trials = [prepared(open_bundle(path), options, draw) for draw in range(options.draws)]
            found = [*added_up([[*rows_of(each, options, Path(folder))] for each in trials])]
        rows += found
        if not options.json:
            photos = f"{len(trials[0].source.photos)} calibration photos, {found[0].photos} others"
            drawn = f", {options.draws} draws" if options.draws > 1 else ""
            print(f"{path.name}: {photos}{drawn}, batch {options.batch}, {usable_cpus()} cores of")
            print(f"{cpu.name} ({sets})")
            print(table_text((*header, "images/s", "times FP32"), map(text_of, found)), end="\n\n")
    if options.json:
        packages = {"onnxruntime": ort.__version__, "openvino": ov.__version__}
        print(json.dumps({"cpu": asdict(cpu), **packages, "rows": [*map(asdict, rows)]}))


if __name__ == "__main__":
    main()
