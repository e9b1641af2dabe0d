"""What docs/scale.md reckons with: what a photo, a row and a shard cost one core here.

    python benchmarks/scale_costs.py BUNDLE IMAGES [--rows 100000]

Times are CPU time of one thread (of photos the least of five passes), so that what others do on the
machine does not count; that it takes caches and memory does. Rows are made, in parts as large
as a plan makes them; the files that are listed are empty.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.collect.run import collect
from deploykit.commands.predict.ledger import Ledger, Work
from deploykit.commands.predict.outputs import Outputs
from deploykit.commands.predict.run import PredictionRun, PredictRequest
from deploykit.commands.predict.schedulers.one_of_many import OneOfMany
from deploykit.images.decode import decode_rgb
from deploykit.images.preprocess import preprocess
from deploykit.images.scan import scan_images
from deploykit.inference.candidates import all_candidates, open_candidate
from deploykit.specs.prediction import Prediction, Ranked
from deploykit.specs.session import ImageBatch, Session
from deploykit.system.threads import usable_cpus

BATCH = 2


def cpu_seconds(work: Callable[[], object]) -> float:
    """Of this process, the least of five passes: what others do only adds to it."""
    spent = []
    for _ in range(5):
        before = time.process_time()
        work()
        spent.append(time.process_time() - before)
    return min(spent)


def run_all(session: Session, batches: ImageBatch) -> None:
    """Compute batch after batch."""
    for batch in batches:
        session.run(batch)


def print_photos(bundle: Bundle, folder: Path) -> None:
    """Bytes, decoding, resizing and computing of a photo."""
    files = [file.path for file in scan_images(folder).files]
    preprocessing = bundle.manifest.preprocessing
    for path in files:
        path.read_bytes()  # into the system's cache
    read = cpu_seconds(lambda: [path.read_bytes() for path in files])
    decode = cpu_seconds(lambda: [decode_rgb(path) for path in files])
    images = [decode_rgb(path) for path in files[:200]]
    resize = cpu_seconds(lambda: [preprocess(image, preprocessing) for image in images])
    size = sum(path.stat().st_size for path in files)
    pixels = statistics.mean(image.width * image.height for image in images)
    print(f"{len(files)} photos, {size / len(files) / 1e3:.0f} kB, {pixels / 1e6:.2f} megapixels")
    for stage, seconds, count in (
        ("read, cached", read, len(files)),
        ("decode", decode, len(files)),
        ("resize", resize, len(images)),
    ):
        print(f"{stage:44} {1e3 * seconds / count:8.2f} ms {count / seconds:8.0f} photos/s")
    batches = np.stack([preprocess(image, preprocessing) for image in images]).reshape(
        -1, BATCH, *preprocessing.input_size, 3
    )
    for candidate in all_candidates(bundle):
        if candidate.runtime not in ("onnxruntime-cpu", "openvino"):
            continue
        with open_candidate(bundle, candidate, threads=1) as session:
            session.run(batches[0])
            seconds = cpu_seconds(partial(run_all, session, batches))
        name = f"{candidate.file} on {candidate.runtime}, {candidate.precision}"
        count = len(images)
        print(f"{name:44} {1e3 * seconds / count:8.2f} ms {count / seconds:8.0f} photos/s")


def made_row(path: str, labels: tuple[str, ...]) -> Prediction:
    """A row with up to five classes."""
    top = tuple(Ranked(label, 0.123456789) for label in labels[:5])
    return Prediction(path, label=labels[0], probability=0.123456789, margin=1.23456789, top=top)


def print_rows(bundle: Bundle, count: int) -> None:
    """What a row costs those who list, keep the books and collect; of a shard, the driver."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, table = Path(scratch) / "photos", Path(scratch) / "rows.csv"
        for i in range(0, count, 1000):
            (folder / f"{i:09}").mkdir(parents=True)
            first = folder / f"{i:09}" / "IMG_000.jpg"
            first.touch()
            for j in range(1, 1000):  # one file may not have many more names
                os.link(first, first.with_name(f"IMG_{j:03}.jpg"))
        request = PredictRequest(folder, runtime="onnxruntime-cpu", threads=1)
        scheduler = OneOfMany(1, 1)
        with (
            PredictionRun(bundle, request) as run,
            Outputs([table], source=folder, scheduler=scheduler) as outputs,
        ):
            before = time.process_time()
            outputs.begin(run)
            tell_row("list", time.process_time() - before, count)
        ledger = Ledger(Path(f"{table}.run"))
        size = sum(path.stat().st_size for path in ledger.folder.glob("list-*"))
        print(f"a line of the list has {size / count:.0f} bytes")
        shards = [*ledger.missing()]
        before = time.process_time()
        for shard in shards:
            files = [*ledger.files([shard], folder)]
        tell_row("find a shard's files in the list", time.process_time() - before, count)
        labels = bundle.manifest.labels.names
        before = time.process_time()
        for shard in shards:
            rows = [(made_row(file.name, labels), None) for file in ledger.files([shard], folder)]
            ledger.write(shard.start, rows, Work(host="host", seconds=1.0, stages={}))
        tell_row("make and write a part", time.process_time() - before, count)
        size = sum(path.stat().st_size for path in (ledger.folder / "parts").iterdir())
        print(f"{len(files)} rows a part, {size / count:.0f} bytes a row")
        before = time.process_time()
        collect(ledger.folder)
        tell_row("collect into a CSV", time.process_time() - before, count)
        print(f"a row of the CSV has {table.stat().st_size / count:.0f} bytes")


def tell_row(what: str, seconds: float, count: int) -> None:
    """Per row."""
    print(
        f"{what:44} {1e6 * seconds / count:8.2f} us a row {seconds / count * 1e6 / 60:8.2f} min/M"
    )


def main() -> None:
    """Print what photos and rows cost."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("--rows", type=int, default=100_000)
    options = parser.parse_args()
    bundle = open_bundle(options.bundle)
    print(
        f"{bundle.manifest.architecture.name}, {usable_cpus()} cores, load {os.getloadavg()[0]:.1f}"
    )
    print_photos(bundle, options.images)
    if options.rows:
        print_rows(bundle, options.rows)


if __name__ == "__main__":
    main()
