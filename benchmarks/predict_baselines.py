"""The other ways to predict a folder that ``predict.py`` measures.

They take the same photos in batches of ``BATCH``, prepared as the bundle's preprocessing says; but
ultralytics takes one at a time and resizes in its own way.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.images.batches import read_batch
from deploykit.images.scan import ImageFile
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.proof.reference import ReferenceRequest, module_reason, module_reference
from deploykit.specs.session import ImageBatch, Session
from deploykit.system.threads import StageClock, usable_cpus

BATCH = 8
FP32 = "deploy/fp32.onnx"


def open_session(bundle: Bundle, threads: int | None) -> Session:
    """The bundle's FP32 graph on ONNX Runtime; without ``threads`` it takes all cores."""
    return open_candidate(bundle, Candidate(FP32, "onnxruntime-cpu", "fp32"), threads=threads)


def batches_of(
    files: tuple[ImageFile, ...], bundle: Bundle, batch_size: int, clock: StageClock
) -> Iterator[ImageBatch]:
    """Read files one after the other, so many at a time; the buffer is used again."""
    preprocessing = bundle.manifest.preprocessing
    buffer = np.empty((batch_size, *preprocessing.input_size, 3), np.uint8)
    for start in range(0, len(files), batch_size):
        group = files[start : start + batch_size]
        yield read_batch(group, preprocessing, buffer, clock).images


def plain_rate(bundle: Bundle, files: tuple[ImageFile, ...]) -> float:
    """Images/s of one loop with ONNX Runtime's own threads."""
    with open_session(bundle, threads=None) as session:
        start = time.perf_counter()
        for images in batches_of(files, bundle, BATCH, StageClock()):
            session.run(images)
        return len(files) / (time.perf_counter() - start)


def load_module(bundle: Bundle) -> Any:
    """The bundle's network in torch, with the recorded checkpoint's weights."""
    if reason := module_reason(bundle):
        raise SystemExit(reason)
    session: Any = module_reference(bundle, ReferenceRequest()).session  # torch's
    return session.module


def transforms_of(bundle: Bundle) -> Any:
    """The bundle's preprocessing as torchvision's transforms."""
    from torchvision import transforms

    preprocessing = bundle.manifest.preprocessing
    interpolation = transforms.InterpolationMode(preprocessing.interpolation)
    steps = [transforms.Resize(preprocessing.resize, interpolation)]
    if preprocessing.crop_size is not None:
        steps.append(transforms.CenterCrop(preprocessing.crop_size))
    normalize = transforms.Normalize(preprocessing.mean, preprocessing.std)
    return transforms.Compose([*steps, transforms.ToTensor(), normalize])


def torch_loader(bundle: Bundle, folder: Path) -> Any:
    """The tutorials' loader over an ImageFolder, one worker a core."""
    import torch
    from torchvision import datasets

    dataset = datasets.ImageFolder(str(folder), transforms_of(bundle))
    return torch.utils.data.DataLoader(dataset, BATCH, num_workers=usable_cpus())


def timm_loader(bundle: Bundle, folder: Path) -> Any:
    """The loader with which timm evaluates a folder, one worker a core."""
    from timm.data.dataset_factory import create_dataset
    from timm.data.loader import create_loader

    loader = create_loader(
        create_dataset("", root=str(folder)),
        input_size=(3, *bundle.manifest.preprocessing.input_size),
        batch_size=BATCH,
        use_prefetcher=False,
        num_workers=usable_cpus(),
    )
    loader.dataset.transform = transforms_of(bundle)  # its own have no word for some of them
    return loader


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
    """The ways that need more than deploykit does; those that are not installed are told."""
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
