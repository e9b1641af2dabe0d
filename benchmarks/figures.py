"""All figures that README.md may quote, from one run: deploykit beside what others use.

    python benchmarks/figures.py BUNDLE IMAGES [--repeats 5] [--write]
        [--parts export start predict session int8] [--nncf-environment DIR]

BUNDLE is of one of timm's networks (so that timm's exporter and timmx can have it, too), with its
checkpoint where the manifest says, on the CPU; ``deploykit quantize`` may have added INT8. IMAGES
has a labelled folder a class. Prints one table, and with --write puts it into benchmarks/README.md.

The ways of each part take turns, and a row compares two of them: the time that the one takes as a
multiple of the other's, turn by turn; the median of the turns, and from the least to the most of
them. More than 1 is slower than deploykit.

- export: a whole process from a checkpoint to a file. deploykit writes and proves both graphs on
  photos; timm's exporter (``timm.utils.onnx``) and timmx (where installed) write one, timmx
  compares it on one batch of noise. ``torch.onnx.export`` alone is measured beside the job in one
  process, without start-up: see ``export.py``.
- start: a fresh process each. The first answer of torch is that of the tutorials' script: load,
  one photo, print. The first row of the whole folder is only told on the way, in seconds.
- predict: the folder from files to rows, without start-up: see ``predict.py``, also for what the
  limit is.
- session: a batch in memory to logits in memory: see ``figures_session.py``. Plain is what the
  runtimes' own documentation shows: the exported graph, no options. Plain OpenVINO computes in BF16
  without being asked, where the CPU has it: its counterpart is in BF16 there, too. Where the CPU
  can hide them, all of it once more without AVX-512, VNNI and AMX: see ``without_avx512.c``.
- int8: the quantizers on the same graph and photos: see ``int8.py``, which this runs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import importlib.metadata
import importlib.util
import itertools
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from export import Pair
from figures_session import OURS, PLAIN_OPENVINO, PLAIN_ORT, TORCH
from int8 import NNCF_ENVIRONMENT, hidden
from int8_quantizers import run
from predict import deploykit_rate, limit, seconds_to_first_row
from predict_baselines import baselines, plain_rate

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.images.scan import scan_images
from deploykit.system.cpu import describe_cpu
from deploykit.system.threads import usable_cpus

HERE = Path(__file__).parent
CPU_INFO = Path("/proc/cpuinfo")
PAGE = HERE / "README.md"
BEGIN, END = "<!-- figures -->", "<!-- end of figures -->"
PARTS = ("export", "start", "predict", "session", "int8")
PYTHON = [sys.executable]
PACKAGES = (
    *("deploykit", "torch", "timm", "timmx", "ultralytics"),
    *("onnxruntime", "onnxruntime-gpu", "openvino"),
)
PREDICT = "deploykit predict"

TIMM_EXPORT = """
import sys, timm, torch
from timm.utils.onnx import onnx_export
name, classes, checkpoint, output, dynamo = sys.argv[1:]
model = timm.create_model(
    name, num_classes=int(classes), checkpoint_path=checkpoint, exportable=True
)
onnx_export(model, output, batch_size=2, use_dynamo=dynamo == "dynamo")
"""
TORCH_ANSWER = """
import sys, timm, torch
from PIL import Image
from torchvision import transforms
name, classes, checkpoint, photo = sys.argv[1:]
model = timm.create_model(name, num_classes=int(classes))
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
        part: What is done, as the table says it.
        name: Who does it.
        seconds: Does it once, and tells how long it took.
        against: The ways of deploykit, in the same part, that it is held against.
    """

    part: str
    name: str
    seconds: Callable[[], float]
    against: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ratio:
    """A line of the table.

    Attributes:
        part: What is done.
        name: Who does it.
        against: The way of deploykit that it is held against.
        turns: What it takes as a multiple of that one's time, turn by turn.
    """

    part: str
    name: str
    against: str
    turns: list[float]


@dataclass(frozen=True)
class Subject:
    """What is measured.

    Attributes:
        bundle: The bundle.
        images: The folder of photos.
        scratch: A folder for what is written.
    """

    bundle: Bundle
    images: Path
    scratch: Path

    @property
    def network(self) -> str:
        """Its name in timm."""
        name = self.bundle.manifest.architecture.name
        if not name.startswith("timm/"):
            raise SystemExit(f"{name} is not one of timm's networks (--arch timm/NAME)")
        return name.removeprefix("timm/")

    @property
    def checkpoint(self) -> Path:
        """The file that the bundle was exported from."""
        return Path(self.bundle.manifest.checkpoint.path)

    @property
    def classes(self) -> int:
        """The number of logits."""
        return self.bundle.manifest.architecture.classes


def process(*command: object) -> Callable[[], float]:
    """Time a whole process, which must end well."""
    words = [*map(str, command)]

    def run() -> float:
        start = time.perf_counter()
        done = subprocess.run(words, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{' '.join(words)} failed:\n{done.stderr}")
        return time.perf_counter() - start

    return run


def installed(package: str) -> bool:
    """Whether a package can be measured; says so where it cannot."""
    found = importlib.util.find_spec(package) is not None
    if not found:
        print(f"{package} is not installed, and not measured", file=sys.stderr)
    return found


def export_ways(subject: Subject) -> Iterable[Way]:
    """From a checkpoint to a file."""
    network, classes, checkpoint = subject.network, subject.classes, subject.checkpoint
    artifacts, part = subject.scratch / "artifacts", "checkpoint to graph"
    ours, named = "deploykit export, proven", f"timm/{network}"
    options = ["--images", subject.images, "--artifacts", artifacts, "--overwrite"]
    command = [*PYTHON, "-m", "deploykit", "export", "--arch", named, "--ckpt", checkpoint]
    yield Way(part, ours, process(*command, *options, "--preset", "tutorial"))
    for exporter in ("TorchScript", "dynamo"):
        file = subject.scratch / f"{exporter}.onnx"
        theirs = process(
            *PYTHON, "-c", TIMM_EXPORT, network, classes, checkpoint, file, exporter.lower()
        )
        yield Way(part, f"timm, its {exporter} exporter", theirs, (ours,))
    if installed("timmx"):
        command = [*PYTHON, "-m", "timmx", "export", "onnx", network, "--checkpoint", checkpoint]
        options = ["--num-classes", classes, "--dynamic-batch", "--batch-size", 2, "--no-slim"]
        theirs = process(*command, *options, "--output", subject.scratch / "timmx.onnx")
        yield Way(part, "timmx export onnx", theirs, (ours,))
    pair = Pair(named, classes, subject.images, subject.scratch / "pair")
    part = "the same without start-up"
    yield Way(part, ours, pair.whole)
    yield Way(part, "torch.onnx.export, unproven", pair.alone, (ours,))


def start_ways(subject: Subject) -> Iterable[Way]:
    """From nothing to something, each in a process of its own."""
    if installed("timmx"):
        ours, theirs = (process(*PYTHON, "-m", each, "--help") for each in ("deploykit", "timmx"))
        yield Way("--help", "deploykit", ours)
        yield Way("--help", "timmx", theirs, ("deploykit",))
    photo = scan_images(subject.images).files[0].path
    options = ["--bundle", subject.bundle.folder, "--output", "-", "--quiet"]
    part = "start to the first answer"
    yield Way(part, PREDICT, process(*PYTHON, "-m", "deploykit", "predict", photo, *options))
    torch = (subject.network, subject.classes, subject.checkpoint, photo)
    yield Way(part, "torch", process(*PYTHON, "-c", TORCH_ANSWER, *torch), (PREDICT,))
    first = partial(seconds_to_first_row, subject.bundle, subject.images)
    yield Way(part, f"{PREDICT}, the first row of the folder", first)


def predict_ways(subject: Subject) -> Iterable[Way]:
    """From the files of a folder to rows, without start-up."""
    bundle, images = subject.bundle, subject.images
    files = scan_images(images).files

    def taking(rate: Callable[[], float]) -> Callable[[], float]:
        return lambda: len(files) / rate()

    part = "files to rows, in FP32"
    yield Way(part, PREDICT, taking(lambda: deploykit_rate(bundle, images)))
    others = {
        "the limit of the machine": lambda: limit(bundle, files),
        "a loop around ONNX Runtime": lambda: plain_rate(bundle, files),
        **baselines(bundle, images),
    }
    for name, rate in others.items():
        yield Way(part, name, taking(rate), (PREDICT,))


def session_ways(
    subject: Subject, batch: int, stack: contextlib.ExitStack, hiding: dict[str, str]
) -> Iterable[Way]:
    """From images in memory to logits in memory.

    Args:
        subject: The bundle.
        batch: How many images.
        stack: Ends the processes.
        hiding: The environment that hides instruction sets; empty for all that the CPU has.
    """
    turns = {}
    for name in (*OURS, TORCH, PLAIN_ORT, PLAIN_OPENVINO):
        if turn := started(stack, hiding, name, subject.bundle.folder, batch):
            turns[name] = turn
    fp32, bf16 = "deploykit openvino fp32", "deploykit openvino bf16"
    held_against = {
        TORCH: ("deploykit onnxruntime-cpu fp32",),
        PLAIN_ORT: tuple(OURS),
        PLAIN_OPENVINO: (bf16 if bf16 in turns else fp32,),
    }
    part = f"session, batch of {batch}{', with AVX2 alone' if hiding else ''}"
    for name, turn in turns.items():
        ours = (each for each in held_against.get(name, ()) if each in turns)
        yield Way(part, name, turn, tuple(ours))


def started(
    stack: contextlib.ExitStack, hiding: dict[str, str], *facts: object
) -> Callable[[], float] | None:
    """Start what computes a batch; None where it cannot run here."""
    running = subprocess.Popen(
        [*map(str, (*PYTHON, HERE / "figures_session.py", *facts))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **hiding},
    )
    stack.enter_context(running)
    requests, answers = running.stdin, running.stdout
    if requests is None or answers is None:
        raise RuntimeError("no pipes")
    if answers.readline() != "ready\n":
        print(f"{facts[0]} is not measured: see above", file=sys.stderr)
        return None

    def turn() -> float:
        requests.write("go\n")
        requests.flush()
        return float(answers.readline())

    return turn


def all_session_ways(subject: Subject, stack: contextlib.ExitStack) -> Iterable[Way]:
    """In batches of 8 and of 32, and of 8 with AVX2 alone where the CPU can hide the rest."""
    for batch in (8, 32):
        yield from session_ways(subject, batch, stack, {})
    if CPU_INFO.exists() and "cpuid_fault" in CPU_INFO.read_text():
        yield from session_ways(subject, 8, stack, hidden("avx2", subject.scratch))
    else:
        print("this CPU cannot hide its instruction sets: no figures of AVX2", file=sys.stderr)


def ratios_of(ways: Iterable[Way], repeats: int) -> Iterator[Ratio]:
    """Let the ways of each part take turns, and compare those that are held against another."""
    for _, each in itertools.groupby(ways, key=lambda way: way.part):
        group = [*each]
        taken: dict[str, list[float]] = {way.name: [] for way in group}
        for _ in range(repeats):
            for way in group:
                taken[way.name].append(way.seconds())
        for way in group:
            print(f"{way.part}: {way.name}: {statistics.median(taken[way.name]):.3f} s", flush=True)
            for ours in way.against:
                pairs = zip(taken[way.name], taken[ours], strict=True)
                yield Ratio(way.part, way.name, ours, [theirs / own for theirs, own in pairs])


def int8_text(subject: Subject, options: argparse.Namespace) -> str:
    """What ``int8.py`` prints of the bundle."""
    photos = (subject.images, subject.images)
    command = (sys.executable, HERE / "int8.py", subject.bundle.folder, *photos)
    return run(*command, "--nncf-environment", options.nncf_environment)


def page_of(subject: Subject, ratios: list[Ratio], int8: str, repeats: int) -> str:
    """The figures as Markdown."""
    cpu = describe_cpu()
    known = {each.name: each.version for each in importlib.metadata.distributions()}
    versions = ", ".join(f"{name} {known[name]}" for name in PACKAGES if name in known)
    photos = len(scan_images(subject.images).files)
    lines = [
        f"{dt.date.today()}, {cpu.name} ({', '.join(cpu.instruction_sets or ())}), "
        f"{usable_cpus()} cores; {subject.bundle.manifest.architecture.name}, {photos} photos, "
        f"{repeats} turns; {versions}.",
        "",
        "| what | who | takes, by deploykit's time: median (least to most) | deploykit's way |",
        "|---|---|---|---|",
        *(
            f"| {each.part} | {each.name} | {statistics.median(each.turns):.2f} "
            f"({min(each.turns):.2f} to {max(each.turns):.2f}) | {each.against} |"
            for each in ratios
        ),
    ]
    return "\n".join([*lines, *(["", "```", int8.strip(), "```"] if int8 else []), ""])


def main() -> None:
    """Measure, print the table, and write it where that is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path)
    parser.add_argument("images", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--nncf-environment", type=Path, default=NNCF_ENVIRONMENT)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    # As users have it: what a process has imported, later ones need not compile.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

    ratios, int8 = list[Ratio](), ""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        subject = Subject(open_bundle(options.bundle), options.images, Path(folder))
        ways: dict[str, Callable[[], Iterable[Way]]] = {
            "export": lambda: export_ways(subject),
            "start": lambda: start_ways(subject),
            "predict": lambda: predict_ways(subject),
            "session": lambda: all_session_ways(subject, stack),
        }
        for part in options.parts:
            if part in ways:
                ratios += ratios_of(ways[part](), options.repeats)
            else:
                int8 = int8_text(subject, options)
        page = page_of(subject, ratios, int8, options.repeats)
    print(page)
    if options.write:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        PAGE.write_text(f"{before}{BEGIN}\n\n{page}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
