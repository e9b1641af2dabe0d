"""Predict: images/s end to end against the machine's limit and other ways, on the same photos.

    python benchmarks/predict.py BUNDLE IMAGES [--repeats 5] [--baselines] [--memory] [--many N]

Prints one table. Each row is the median of interleaved repeats, in this run, on this machine:

- limit: what the stages' single-thread CPU time allows on all cores, if no core ever waited. It
  is measured in each repeat on the same files, one thread, stage after stage.
- deploykit: files in, rows out.
- plain ONNX Runtime: decode, resize, run, in one loop, with ONNX Runtime's own threads.
- DataLoader + torch: the tutorials' loop, with one worker a core (with --baselines; needs the
  checkpoint that the bundle records).
- timm: its reader, loader and transforms, one worker a core, with the same torch module (with
  --baselines, where timm is installed).
- ultralytics: its own folder prediction, which runs the bundle's canonical graph on ONNX Runtime,
  one image at a time, with its own resizing (with --baselines, where ultralytics is installed).

With --memory: the peak resident memory of a fresh process that predicts 1, 10 and 50 times the
files. With --many N: the rate and the resident memory of each tenth of a run over N small files,
links to the first 1,000 photos shrunk to 64x64; take a small network.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from deploykit.bundle import CANONICAL_GRAPH, Bundle, open_bundle
from deploykit.images.batches import default_threads, read_into
from deploykit.images.scan import ImageFile, scan_images
from deploykit.jobs.predict import PredictionRun, PredictRequest
from deploykit.jobs.sessions import open_bundle_graph
from deploykit.stages import StageClock

BATCH = 8
FP32 = "deploy/fp32.onnx"
MEASURE_MEMORY = """
import resource, sys
from deploykit.jobs.predict import predict_folder
rows = sum(1 for _ in predict_folder(sys.argv[1], sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(rows, peak if sys.platform == "darwin" else peak * 1024)
"""
MEASURE_MANY = """
import sys, time
import psutil
from deploykit.jobs.predict import predict_folder
tenth = int(sys.argv[3]) // 10
before = time.perf_counter()
for i, _ in enumerate(predict_folder(sys.argv[1], sys.argv[2]), 1):
    if i % tenth == 0:
        now = time.perf_counter()
        memory = psutil.Process().memory_info().rss / 2**20
        print(f"row {i:8}: {tenth / (now - before):8.1f} images/s, {memory:7.1f} MiB", flush=True)
        before = now
"""


def batches_of(files: tuple[ImageFile, ...], bundle: Bundle, clock: StageClock) -> np.ndarray:
    """Read files one after the other, BATCH at a time; the buffer is used again."""
    preprocessing = bundle.manifest.preprocessing
    buffer = np.empty((BATCH, *preprocessing.input_size, 3), np.uint8)
    for start in range(0, len(files), BATCH):
        readable = 0
        for file in files[start : start + BATCH]:
            readable += read_into(file, preprocessing, buffer[readable], clock) is None
        yield buffer[:readable]


def limit(bundle: Bundle, files: tuple[ImageFile, ...]) -> float:
    """Images/s if every core did nothing but the stages' work."""
    clock = StageClock()
    cores = default_threads()
    with open_bundle_graph(
        bundle, FP32, runtime="onnxruntime-cpu", precision="fp32", threads=1
    ) as session:
        for images in batches_of(files, bundle, clock):
            with clock.computing("session"):
                session.run(images)
    return cores * len(files) / sum(clock.seconds.values())


def deploykit_rate(bundle: Bundle, folder: Path) -> float:
    """Images/s of deploykit's own run, from the first file to the last row; opening is start-up."""
    request = PredictRequest(folder, runtime="onnxruntime-cpu", batch_size=BATCH)
    with PredictionRun(bundle, request) as run:
        start = time.perf_counter()
        count = sum(1 for _ in run)
        return count / (time.perf_counter() - start)


def plain_rate(bundle: Bundle, files: tuple[ImageFile, ...]) -> float:
    """Images/s of one loop with ONNX Runtime's own threads."""
    with open_bundle_graph(bundle, FP32, runtime="onnxruntime-cpu", precision="fp32") as session:
        start = time.perf_counter()
        for images in batches_of(files, bundle, StageClock()):
            session.run(images)
        return len(files) / (time.perf_counter() - start)


def load_module(bundle: Bundle) -> Any:
    """The bundle's network in torch, with the recorded checkpoint's weights."""
    from deploykit.models.loading import load_model
    from deploykit.models.registry import resolve_architecture

    manifest = bundle.manifest
    architecture = resolve_architecture(manifest.architecture.name)
    checkpoint = Path(manifest.checkpoint.path)
    return load_model(architecture, checkpoint, arch_args=manifest.architecture.args).module


def torch_loader(bundle: Bundle, folder: Path) -> Any:
    """The tutorials' loader: ImageFolder and torchvision's transforms."""
    import torch
    from torchvision import datasets, transforms

    preprocessing = bundle.manifest.preprocessing
    steps = transforms.Compose(
        [
            transforms.Resize(preprocessing.input_size),
            transforms.ToTensor(),
            transforms.Normalize(preprocessing.mean, preprocessing.std),
        ]
    )
    dataset = datasets.ImageFolder(str(folder), steps)
    return torch.utils.data.DataLoader(dataset, BATCH, num_workers=default_threads())


def timm_loader(bundle: Bundle, folder: Path) -> Any:
    """The loader with which timm evaluates a folder."""
    from timm.data import create_dataset, create_loader

    preprocessing = bundle.manifest.preprocessing
    return create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, *preprocessing.input_size),
        batch_size=BATCH,
        use_prefetcher=False,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
        crop_mode="squash",
        crop_pct=1.0,
        num_workers=default_threads(),
    )


def loop_rate(module: Any, loader: Any) -> float:
    """Images/s of a torch loop: eval, no gradients."""
    import torch

    count, start = 0, time.perf_counter()
    with torch.inference_mode():
        for images, _ in loader:
            module(images)
            count += len(images)
    return count / (time.perf_counter() - start)


def ultralytics_rate(bundle: Bundle, folder: Path) -> float:
    """Images/s of ultralytics' folder prediction with the bundle's canonical graph."""
    from ultralytics import YOLO

    answers = YOLO(str(bundle.folder / CANONICAL_GRAPH), task="classify").predict(
        source=str(folder / "**" / "*.*"),
        imgsz=list(bundle.manifest.preprocessing.input_size),
        device="cpu",
        stream=True,
        verbose=False,
    )
    next(answers)  # opens the graph and warms it up: start-up, as with the others
    start = time.perf_counter()
    count = sum(1 for _ in answers)
    return count / (time.perf_counter() - start)


def baselines(bundle: Bundle, folder: Path) -> dict[str, Callable[[], float]]:
    """The other ways that are installed here; the others are told."""
    module = load_module(bundle)
    ways: dict[str, Callable[[], float]] = {
        "DataLoader + torch": lambda: loop_rate(module, torch_loader(bundle, folder)),
        "timm": lambda: loop_rate(module, timm_loader(bundle, folder)),
        "ultralytics": lambda: ultralytics_rate(bundle, folder),
    }
    for package in ("timm", "ultralytics"):
        if importlib.util.find_spec(package) is None:
            print(f"{package} is not installed, and not measured")
            del ways[package]
    return ways


def print_many(bundle: Bundle, folder: Path, count: int) -> None:
    """Rate and resident memory of each tenth of a run over many small files."""
    with tempfile.TemporaryDirectory() as scratch:
        small, many = Path(scratch) / "small", Path(scratch) / "many"
        small.mkdir()
        photos = scan_images(folder).files[:1000]
        for i, photo in enumerate(photos):
            with Image.open(photo.path) as image:
                image.convert("RGB").resize((64, 64)).save(small / f"{i}.jpg")
        for i in range(count):
            target = many / f"{i // 1000:05}"
            target.mkdir(parents=True, exist_ok=True)
            os.link(small / f"{i % len(photos)}.jpg", target / f"{i:07}.jpg")
        command = [sys.executable, "-c", MEASURE_MANY, str(bundle.folder), str(many), str(count)]
        subprocess.run(command, check=True)


def print_memory(bundle: Bundle, folder: Path) -> None:
    """Peak memory of a fresh process at 1, 10 and 50 times the files."""
    with tempfile.TemporaryDirectory() as scratch:
        for times in (1, 10, 50):
            copies = Path(scratch) / f"{times}"
            for i in range(times):
                # Copies, because of folders that are links to one and the same, one is read.
                shutil.copytree(folder, copies / f"{i:02}", copy_function=os.link)
            command = [sys.executable, "-c", MEASURE_MEMORY, str(bundle.folder), str(copies)]
            answer = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            rows, peak = map(int, answer.split())
            print(f"{times:3} x the files: {rows:6} rows, peak {peak / 2**20:7.1f} MiB")


def main() -> None:
    """Measure interleaved and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--baselines", action="store_true")
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--many", type=int, metavar="N", help="small files; needs psutil")
    options = parser.parse_args()

    bundle = open_bundle(options.bundle)
    files = scan_images(options.images).files
    ways: dict[str, Callable[[], float]] = {
        "limit": lambda: limit(bundle, files),
        "deploykit": lambda: deploykit_rate(bundle, options.images),
        "plain ONNX Runtime": lambda: plain_rate(bundle, files),
    }
    if options.baselines:
        ways |= baselines(bundle, options.images)
    rates: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.repeats):
        for name, measure in ways.items():
            rates[name].append(measure())
            ratios[name].append(rates[name][-1] / rates["limit"][-1])
    print(
        f"{bundle.manifest.architecture.name}, {len(files)} photos, {default_threads()} cores, "
        f"median of {options.repeats}"
    )
    for name in ways:
        print(
            f"{name:20} {statistics.median(rates[name]):8.1f} images/s "
            f"{statistics.median(ratios[name]):6.2f} of the limit"
        )
    if options.memory:
        print_memory(bundle, options.images)
    if options.many:
        print_many(bundle, options.images, options.many)


if __name__ == "__main__":
    main()
