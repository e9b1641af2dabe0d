"""deploykit beside what others use, each measured in the same run: ratios, not records.

    python benchmarks/others.py IMAGES [--network efficientnet_b0] [--bundle DIR] [--batch 8]
        [--repeats 5] [--parts session start-up export]

Prints one table. The ways of each part take turns, each in a process of its own; the median counts,
and the last columns are how many times the time of its counterpart of deploykit it takes:

- export: a whole process from a checkpoint to a file. deploykit writes and proves both graphs on
  photos; timm's exporter (``timm.utils.onnx``) and timmx (where installed) write one, timmx
  compares it on one batch of noise.
- session: see ``other_session.py``. Plain is what the runtimes' own documentation shows: the
  exported graph, no options. Plain OpenVINO computes in BF16 without being asked, where the CPU
  has it: its counterpart is in BF16 there, too. That of torch and of ONNX Runtime is in FP32. INT8
  has none; it is there where the bundle has a graph for it.
- start-up: a fresh process each. The first answer of torch is that of the tutorials' script: load,
  one photo, print.

The network is one of timm's, with random weights and four classes; IMAGES has four labelled
folders, or any photos. With --bundle the sessions are those of a bundle with trained weights, to
which ``deploykit quantize`` may have added INT8.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from other_session import OURS, PLAIN_OPENVINO, PLAIN_ORT, TORCH

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.images.scan import scan_images
from deploykit.system.text import table_text
from deploykit.system.threads import usable_cpus

CLASSES = 4
EXPORT = "deploykit export, proven"
PARTS = ("export", "session", "start-up")
PYTHON = [sys.executable]

TIMM_EXPORT = """
import sys, timm, torch
from timm.utils.onnx import onnx_export
name, checkpoint, output, dynamo = sys.argv[1:]
model = timm.create_model(name, num_classes=4, checkpoint_path=checkpoint, exportable=True)
onnx_export(model, output, batch_size=2, use_dynamo=dynamo == "dynamo")
"""
TORCH_ANSWER = """
import sys, timm, torch
from PIL import Image
from torchvision import transforms
name, checkpoint, photo = sys.argv[1:]
model = timm.create_model(name, num_classes=4)
model.load_state_dict(torch.load(checkpoint, weights_only=True))
model.eval()
transform = transforms.Compose([
    transforms.Resize([224, 224]),
    transforms.ToTensor(),
    transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
])
with torch.inference_mode():
    print(model(transform(Image.open(photo).convert("RGB"))[None]).argmax().item())
"""


@dataclass(frozen=True)
class Way:
    """A way to do something.

    Attributes:
        part: What is done: ``export``.
        name: Who does it.
        seconds: Does it once, and tells how long it took.
        against: The way of deploykit that it is held against; empty for those.
        images: How many images that computes; None where it computes none.
    """

    part: str
    name: str
    seconds: Callable[[], float]
    against: str = ""
    images: int | None = None


def process(*command: str | Path) -> Callable[[], float]:
    """Time a whole process, which must end well."""

    def run() -> float:
        start = time.perf_counter()
        done = subprocess.run([*map(str, command)], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(map(str, command))} failed:\n{done.stderr}")
        return time.perf_counter() - start

    return run


def export_ways(network: str, checkpoint: Path, images: Path, scratch: Path) -> list[Way]:
    """From a checkpoint to a file, each in a process of its own."""

    def onnx(name: str) -> Path:
        return scratch / f"{name}.onnx"

    ways = [
        Way("export", EXPORT, process(*deploykit_export(
            network, checkpoint, images, scratch / "again"
        ))),
        Way("export", "timm, TorchScript exporter", process(
            *PYTHON, "-c", TIMM_EXPORT, network, checkpoint, onnx("script"), "script"
        ), EXPORT),
        Way("export", "timm, dynamo exporter", process(
            *PYTHON, "-c", TIMM_EXPORT, network, checkpoint, onnx("dynamo"), "dynamo"
        ), EXPORT),
    ]  # fmt: skip
    if importlib.util.find_spec("timmx") is None:
        print("timmx is not installed, and not measured", file=sys.stderr)
        return ways
    options = ["--num-classes", CLASSES, "--dynamic-batch", "--batch-size", 2, "--no-slim"]
    command = [*PYTHON, "-m", "timmx", "export", "onnx", network, "--checkpoint", checkpoint]
    timmx = process(*map(str, [*command, *options, "--output", onnx("timmx")]))
    return [*ways, Way("export", "timmx export onnx", timmx, EXPORT)]


def deploykit_export(network: str, checkpoint: Path, images: Path, artifacts: Path) -> list[str]:
    """The command that exports a bundle, as the tutorials prepare photos."""
    command = [*PYTHON, "-m", "deploykit", "export", "--arch", f"timm/{network}", "--ckpt"]
    options = ["--images", images, "--artifacts", artifacts, "--name", "bundle", "--overwrite"]
    preset = ["--preset", "tutorial"]
    return list(map(str, [*command, checkpoint, *options, *preset]))


def session_ways(bundle: Bundle, batch: int, stack: contextlib.ExitStack) -> list[Way]:
    """From images in memory to logits in memory."""
    ours = {}
    for name in OURS:
        if turn := started(stack, name, bundle.folder, batch):
            ours[name] = turn
    fp32, bf16 = "deploykit openvino fp32", "deploykit openvino bf16"
    held_against = {
        TORCH: "deploykit onnxruntime-cpu fp32",
        PLAIN_ORT: "deploykit onnxruntime-cpu fp32",
        PLAIN_OPENVINO: bf16 if bf16 in ours else fp32,
    }
    part = f"{bundle.name}, batch of {batch}"
    ways = [Way(part, name, turn, images=batch) for name, turn in ours.items()]
    for name, against in held_against.items():
        if turn := started(stack, name, bundle.folder, batch):
            ways.append(Way(part, name, turn, against, batch))
    return ways


def started(
    stack: contextlib.ExitStack, way: str, *facts: int | Path
) -> Callable[[], float] | None:
    """Start what computes a batch; None where it cannot run here."""
    command = [*PYTHON, Path(__file__).with_name("other_session.py"), way, *facts]
    running = subprocess.Popen(
        [*map(str, command)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.enter_context(running)
    requests, answers = running.stdin, running.stdout
    if requests is None or answers is None:
        raise RuntimeError("no pipes")
    if answers.readline() != "ready\n":
        print(f"{way} is not measured: see above", file=sys.stderr)
        return None

    def turn() -> float:
        requests.write("go\n")
        requests.flush()
        return float(answers.readline())

    return turn


def start_ways(bundle: Bundle, network: str, checkpoint: Path, images: Path) -> list[Way]:
    """From nothing to something, each in a process of its own."""
    photo = scan_images(images).files[0].path
    predict: list[str | Path] = [
        *PYTHON,
        "-m",
        "deploykit",
        "predict",
        photo,
        "--bundle",
        bundle.folder,
    ]
    ways = []
    if importlib.util.find_spec("timmx") is not None:
        ours, theirs = (process(*PYTHON, "-m", each, "--help") for each in ("deploykit", "timmx"))
        ways = [
            Way("--help", "deploykit --help", ours),
            Way("--help", "timmx --help", theirs, "deploykit --help"),
        ]
    return [
        *ways,
        Way("first answer", "deploykit predict", process(*predict, "--output", "-", "--quiet")),
        Way("first answer", "torch", process(
            *PYTHON, "-c", TORCH_ANSWER, network, checkpoint, photo
        ), "deploykit predict"),
    ]  # fmt: skip


def print_table(ways: list[Way], repeats: int) -> None:
    """Let the ways of each part take turns, and print a row for each."""
    rows = []
    for part in dict.fromkeys(way.part for way in ways):
        group = [way for way in ways if way.part == part]
        taken: dict[str, list[float]] = {way.name: [] for way in group}
        for _ in range(repeats):
            for way in group:
                taken[way.name].append(way.seconds())
        medians = {name: statistics.median(seconds) for name, seconds in taken.items()}
        for way in group:
            seconds = medians[way.name]
            rate = "" if way.images is None else f"{way.images / seconds:.1f} images/s"
            ratio = f"{seconds / medians[way.against]:.2f} x" if way.against else ""
            rows.append((part, way.name, f"{1000 * seconds:,.0f} ms", rate, ratio, way.against))
    print(table_text(("part", "way", "median", "", "takes", "the time of"), rows))


def main() -> None:
    """Prepare a network, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", type=Path)
    parser.add_argument("--network", default="efficientnet_b0")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()

    network = options.network
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        scratch, checkpoint = Path(folder), Path(folder) / "best_model.pth"
        torch.save(timm.create_model(network, num_classes=CLASSES).state_dict(), checkpoint)
        ways = []
        if "export" in options.parts:
            ways += export_ways(network, checkpoint, options.images, scratch)
        if {"session", "start-up"} & {*options.parts}:
            process(*deploykit_export(network, checkpoint, options.images, scratch / "artifacts"))()
            bundle = open_bundle(scratch / "artifacts" / "bundle")
        if "session" in options.parts:
            measured = open_bundle(options.bundle) if options.bundle else bundle
            ways += session_ways(measured, options.batch, stack)
        if "start-up" in options.parts:
            ways += start_ways(bundle, network, checkpoint, options.images)
        print(f"timm {network}, {usable_cpus()} cores, median of {options.repeats}")
        print_table(ways, options.repeats)


if __name__ == "__main__":
    main()
