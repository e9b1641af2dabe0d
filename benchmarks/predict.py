"""Predict: images/s end to end against the machine's limit and other ways, on the same photos.

    python benchmarks/predict.py BUNDLE [BUNDLE ...] IMAGES
        [--repeats 5] [--baselines] [--memory] [--many N] [--sources N] [--on-ray N]

Prints one table a bundle. Each row is the median of interleaved repeats, in this run, on this
machine:

- limit: what the stages' single-thread CPU time allows on all cores, if no core ever waited. It
  is measured in each repeat on the same files, one thread, stage after stage.
- deploykit: all that the command does from the first file on: rows into the parts of a run, and
  a CSV table made from them.
- plain ONNX Runtime: decode, resize, run, in one loop, with ONNX Runtime's own threads.
- DataLoader + torch: the tutorials' loop, with one worker a core (with --baselines; needs the
  checkpoint that the bundle records).
- timm: its reader and loader, one worker a core, with the same transforms and torch module (with
  --baselines, where timm is installed).
- ultralytics: its own folder prediction, which runs the bundle's canonical graph on ONNX Runtime,
  one image at a time, with its own resizing (with --baselines, where ultralytics is installed).

Below it: how long the command takes from its start in a fresh process to its first row on stdout.

With --memory: the peak resident memory of a fresh process that predicts 1, 10 and 50 times the
files. With --many N: the rate and the resident memory of each tenth of a run over N small files,
links to the first 1,000 photos shrunk to 64x64; take a small network.

Instead of the table, with --sources N: the peak memory at N / 10 and N such photos in a folder, a
tar archive, a Parquet file and a video without loss, and whether all answer the same. With
--on-ray N: what N files take here and with --on-ray on the same cores, the median of interleaved
repeats, without the start-up.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle, islice
from pathlib import Path

import numpy as np
from PIL import Image
from predict_baselines import baselines, batches_of, open_session, plain_rate

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.predict.job import predict_into
from deploykit.commands.predict.outputs import Outputs
from deploykit.commands.predict.run import PredictRequest
from deploykit.commands.predict.schedulers import Scheduler
from deploykit.commands.predict.tally import PredictionSummary
from deploykit.images.scan import ImageFile, scan_images
from deploykit.inference.pipeline import shared_work
from deploykit.system.deps import need
from deploykit.system.progress import Note, Step
from deploykit.system.threads import StageClock, usable_cpus

# On Linux ru_maxrss begins with what the parent had: VmHWM is the process's own.
MEASURE_MEMORY = """
import re, resource, sys, zlib
from pathlib import Path
import deploykit
rows = answers = 0
for row in deploykit.predict(sys.argv[2], bundle=sys.argv[1], runtime="onnxruntime-cpu"):
    rows, answers = rows + 1, zlib.crc32(f"{row.label} {row.probability:.4f}".encode(), answers)
if sys.platform == "darwin":
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
else:
    peak = 1024 * int(re.search("VmHWM:[^0-9]*([0-9]+)", Path("/proc/self/status").read_text())[1])
print(rows, peak, answers)
"""
MEASURE_MANY = """
import sys, time
import psutil
import deploykit
tenth = int(sys.argv[3]) // 10
before = time.perf_counter()
for i, _ in enumerate(deploykit.predict(sys.argv[2], bundle=sys.argv[1]), 1):
    if i % tenth == 0:
        now = time.perf_counter()
        memory = psutil.Process().memory_info().rss / 2**20
        print(f"row {i:8}: {tenth / (now - before):8.1f} images/s, {memory:7.1f} MiB", flush=True)
        before = now
"""


def limit(bundle: Bundle, files: tuple[ImageFile, ...]) -> float:
    """Images/s if every core did nothing but the stages' work."""
    clock = StageClock()
    with open_session(bundle, threads=1) as session:
        _, batch_size = shared_work(session.spec, threads=None, batch_size=None)
        for images in batches_of(files, bundle, batch_size, clock):
            with clock.computing("session"):
                session.run(images)
    return usable_cpus() * len(files) / sum(clock.seconds.values())


def predicted(
    bundle: Bundle, folder: Path, scheduler: Scheduler | None = None
) -> tuple[PredictionSummary, float, float]:
    """Predict into a table; gives the seconds until the first file, and from there to the end."""
    request = PredictRequest(folder, runtime="onnxruntime-cpu")
    begun = time.perf_counter()
    with (
        tempfile.TemporaryDirectory() as scratch,
        Outputs([Path(scratch) / "rows.csv"], source=folder, scheduler=scheduler) as outputs,
    ):
        started: list[float] = []

        def tell(event: Step | Note) -> None:
            if isinstance(event, Step) and event.stage == "predicting" and not started:
                started.append(time.perf_counter())

        summary = predict_into(outputs, bundle, request, tell)
        if not isinstance(summary, PredictionSummary):
            raise TypeError("a shard is no run")
        if scheduler is not None and scheduler.report is not None:  # which tells only what is done
            started[0] = min(started[0], time.perf_counter() - scheduler.report.seconds)
        return summary, started[0] - begun, time.perf_counter() - started[0]


def deploykit_rate(bundle: Bundle, folder: Path) -> float:
    """Images/s of the command's work, from the first file to a whole table; opening is start-up."""
    return len(scan_images(folder).files) / predicted(bundle, folder)[2]


def print_on_ray(bundle: Bundle, folder: Path, count: int, repeats: int) -> None:
    """What Ray adds."""
    from deploykit.commands.predict.schedulers.on_ray import OnRay

    for module in "ray._private.services", "ray.util":  # nobody else is to reach it
        vars(need(module))["get_node_ip_address"] = lambda *_, **__: "127.0.0.1"
    here, ray, busy, ratios = list[float](), list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as scratch:
        photos = [file.path for file in scan_images(folder).files]
        write_folder([*islice(cycle(photos), count)], Path(scratch))
        for _ in range(repeats):
            _, start, seconds = predicted(bundle, Path(scratch))
            print(f"here    {start:5.1f} s start-up, {seconds:7.1f} s", flush=True)
            here.append(seconds)
            scheduler = OnRay("ray")
            summary, start, seconds = predicted(bundle, Path(scratch), scheduler)
            ray.append(seconds)
            worked = sum(work.seconds for work in summary.hosts.values())
            workers = sum(scheduler.report.workers.values())
            busy.append(worked / workers / scheduler.report.seconds)
            ratios.append(seconds / here[-1])
            print(
                f"on Ray  {start:5.1f} s start-up, {seconds:7.1f} s, {workers} workers", flush=True
            )
    print(
        f"{count} files: here {statistics.median(here):.1f} s, on Ray {statistics.median(ray):.1f} "
        f"s, {statistics.median(ratios):.3f} times as long; its workers are at their shards "
        f"{statistics.median(busy):.1%} of it"
    )


def seconds_to_first_row(bundle: Bundle, folder: Path) -> float:
    """From the start of a fresh process to its first row; the rest is not waited for."""
    options = ["--bundle", str(bundle.folder), "--output", "-", "--quiet"]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "deploykit", "predict", str(folder), *options],
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        row = process.stdout.readline()
        seconds = time.perf_counter() - start
        process.kill()
    if not row:
        raise SystemExit("predict ended without a row")
    return seconds


def write_small(photos: Sequence[ImageFile], folder: Path) -> list[Path]:
    """Photos shrunk to 64x64."""
    folder.mkdir()
    for i, photo in enumerate(photos):
        with Image.open(photo.path) as image:
            image.convert("RGB").resize((64, 64)).save(folder / f"{i:03}.jpg")
    return sorted(folder.iterdir())


def write_folder(small: Sequence[Path], target: Path) -> None:
    """Links, a thousand a folder."""
    for i, photo in enumerate(small):
        folder = target / f"{i // 1000:05}"
        folder.mkdir(parents=True, exist_ok=True)
        os.link(photo, folder / f"{i:07}.jpg")


def write_tar(small: Sequence[Path], target: Path) -> None:
    """One archive."""
    with tarfile.open(target, "w", dereference=True) as archive:  # of links, the photos
        for i, photo in enumerate(small):
            archive.add(photo, f"{i:07}.jpg")


def write_parquet(small: Sequence[Path], target: Path) -> None:
    """A column of names and one of bytes."""
    pyarrow, parquet = need("pyarrow"), need("pyarrow.parquet")
    names = [f"{i:07}.jpg" for i in range(len(small))]
    table = {"path": names, "image": [photo.read_bytes() for photo in small]}
    parquet.write_table(pyarrow.table(table), target)


def write_video(small: Sequence[Path], target: Path) -> None:
    """A frame a second."""
    import av

    with av.open(target, "w") as video:
        stream = video.add_stream("libx264rgb", rate=1, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "rgb24"
        for photo in small:
            with Image.open(photo) as image:
                frame = av.VideoFrame.from_ndarray(np.asarray(image), format="rgb24")
            video.mux(stream.encode(frame))
        video.mux(stream.encode())


SOURCES = {
    "folder": write_folder,
    "photos.tar": write_tar,
    "photos.parquet": write_parquet,
    "photos.mkv": write_video,
}


def print_many(bundle: Bundle, folder: Path, count: int) -> None:
    """Rate and resident memory of each tenth of a run over many small files."""
    with tempfile.TemporaryDirectory() as scratch:
        small = write_small(scan_images(folder).files[:1000], Path(scratch) / "small")
        many = Path(scratch) / "many"
        write_folder([*islice(cycle(small), count)], many)
        command = [sys.executable, "-c", MEASURE_MANY, str(bundle.folder), str(many), str(count)]
        subprocess.run(command, check=True)


def measured(bundle: Bundle, source: Path) -> tuple[int, float, str]:
    """Rows and peak MiB of a fresh process that predicts a source, and what its answers add up to.

    Raises:
        CalledProcessError: It failed.
    """
    command = [sys.executable, "-c", MEASURE_MEMORY, str(bundle.folder), str(source)]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    rows, peak, answers = answer.split()
    return int(rows), int(peak) / 2**20, answers


def print_sources(bundle: Bundle, folder: Path, count: int) -> None:
    """Peak memory at a tenth of the photos and at all, source by source."""
    with tempfile.TemporaryDirectory() as scratch:
        small = write_small(scan_images(folder).files[:1000], Path(scratch) / "small")
        right: dict[int, str] = {}
        for name, write in SOURCES.items():
            for number in (count // 10, count):
                source = Path(scratch) / f"{number}" / name
                source.parent.mkdir(exist_ok=True)
                write([*islice(cycle(small), number)], source)
                rows, peak, answers = measured(bundle, source)
                same = "the same" if answers == right.setdefault(number, answers) else "OTHERS"
                print(f"{name:16} {rows:8} rows, {same} answers, peak {peak:7.1f} MiB", flush=True)


def print_memory(bundle: Bundle, folder: Path) -> None:
    """Peak memory of a fresh process at 1, 10 and 50 times the files."""
    with tempfile.TemporaryDirectory() as scratch:
        for times in (1, 10, 50):
            copies = Path(scratch) / f"{times}"
            for i in range(times):
                # Copies, because of folders that are links to one and the same, one is read.
                shutil.copytree(folder, copies / f"{i:02}", copy_function=os.link)
            rows, peak, _ = measured(bundle, copies)
            print(f"{times:3} x the files: {rows:6} rows, peak {peak:7.1f} MiB")


def print_table(bundle: Bundle, folder: Path, repeats: int, *, others: bool) -> None:
    """Measure interleaved, and print a row for each way."""
    files = scan_images(folder).files
    ways: dict[str, Callable[[], float]] = {
        "limit": lambda: limit(bundle, files),
        "deploykit": lambda: deploykit_rate(bundle, folder),
        "plain ONNX Runtime": lambda: plain_rate(bundle, files),
    }
    if others:
        ways |= baselines(bundle, folder)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    first_rows = []
    for _ in range(repeats):
        for name, measure in ways.items():
            rates[name].append(measure())
            ratios[name].append(rates[name][-1] / rates["limit"][-1])
        first_rows.append(seconds_to_first_row(bundle, folder))
    print(
        f"{bundle.manifest.architecture.name}, {len(files)} photos, {usable_cpus()} cores, "
        f"median of {repeats}"
    )
    for name in ways:
        print(
            f"{name:20} {statistics.median(rates[name]):8.1f} images/s "
            f"{statistics.median(ratios[name]):6.2f} of the limit"
        )
    print(f"start to first row   {statistics.median(first_rows):8.2f} s", flush=True)


def main() -> None:
    """Print what was asked for, bundle by bundle."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundles", type=Path, nargs="+", metavar="BUNDLE")
    parser.add_argument("images", type=Path, metavar="IMAGES")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--many", type=int, metavar="N", help="small files; needs psutil")
    parser.add_argument("--on-ray", type=int, metavar="N", help="needs ray")
    parser.add_argument("--sources", type=int, metavar="N", help="needs pyarrow and av")
    options = parser.parse_args()
    # As users have it: what a process has imported, later ones need not compile.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for path in options.bundles:
        bundle = open_bundle(path)
        if not (options.sources or options.on_ray):
            print_table(bundle, options.images, options.repeats, others=options.baselines)
        if options.memory:
            print_memory(bundle, options.images)
        if options.many:
            print_many(bundle, options.images, options.many)
        if options.on_ray:
            print_on_ray(bundle, options.images, options.on_ray, options.repeats)
        if options.sources:
            print_sources(bundle, options.images, options.sources)


if __name__ == "__main__":
    main()
