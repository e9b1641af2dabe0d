"""Inference on an NVIDIA GPU: every way that is installed, beside torch, in one run.

    python benchmarks/gpu.py BUNDLE [--batches 1 8 32] [--seconds 1]
    python benchmarks/gpu.py --all [--dry-run]

Prints one table: images/s from uint8 images on the host to logits on the host, copies included, and
the ratio to torch eager in FP32. The ways take turns, and the median counts; each turn ends when
the logits are on the host, so that no work is left on the device. Engines are those of the bundle;
`deploykit build-trt` adds them. Exit code 5: there is no GPU.

`--all` makes a bundle and runs everything that needs a GPU, this too, without a
network, and writes `docs/gpu-results.md` (see `gpu_steps.py`); `--dry-run` only prints the steps.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from gpu_steps import prepare_and_run, steps_in

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.errors import DeploykitError
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.inference.engines import engines_of, open_bundle_engine
from deploykit.runtime._base import normalised
from deploykit.specs.session import ImageBatch, Logits, PipelinedSession
from deploykit.system.gpu import need_gpu
from deploykit.system.text import command_line, table_text

#: How many batches one turn takes, so that two can be in flight.
BATCHES_A_TURN = 4
#: Before what is measured: kernels are compiled and chosen, graphs captured.
WARM_UP_TURNS = 3

Run = Callable[[ImageBatch], Logits]
Turn = Callable[[ImageBatch], object]


@dataclass
class Way:
    """A way to compute a network.

    Attributes:
        name: What the table calls it.
        turn: Computes the logits of a batch, :data:`BATCHES_A_TURN` times.
        largest_batch: The most images a batch; None for any number.
        seconds: Of each turn that counts, by batch size.
    """

    name: str
    turn: Turn
    largest_batch: int | None = None
    seconds: dict[int, list[float]] = field(default_factory=dict)

    def images_per_second(self, batch: int) -> float | None:
        """The median; None for a batch that it does not take."""
        taken = self.seconds.get(batch)
        return batch * BATCHES_A_TURN / statistics.median(taken) if taken else None


def one_by_one(run: Run) -> Turn:
    """Turns of a way that computes a batch while the caller waits."""

    def turn(images: ImageBatch) -> None:
        for _ in range(BATCHES_A_TURN):
            run(images)

    return turn


def overlapped(session: PipelinedSession) -> Turn:
    """Turns of an engine's session with two batches in flight."""

    def turn(images: ImageBatch) -> None:
        waiting = session.submit(images)
        for _ in range(BATCHES_A_TURN - 1):
            following = session.submit(images)
            session.collect(waiting)
            waiting = following
        session.collect(waiting)

    return turn


def torch_ways(bundle: Bundle) -> list[Way]:
    """Eager torch, in FP32 without TF32 and in FP16 channels-last; the weights are random."""
    import torch

    from deploykit.models.registry import resolve_architecture

    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    manifest, device = bundle.manifest, torch.device("cuda")
    recorded = manifest.architecture
    architecture = resolve_architecture(recorded.name, allow_user_code=False)

    def way(name: str, **form: Any) -> Way:
        module = architecture.build(recorded.classes, recorded.args).eval().to(device, **form)

        def run(images: ImageBatch) -> Logits:
            with torch.inference_mode():
                batch = torch.from_numpy(normalised(images, manifest.preprocessing)).to(
                    device, **form
                )
                logits: Logits = module(batch).float().cpu().numpy()
                return logits

        return Way(name, one_by_one(run))

    return [
        way("torch eager fp32", dtype=torch.float32),
        way("torch channels-last fp16", dtype=torch.float16, memory_format=torch.channels_last),
    ]


def session_ways(bundle: Bundle, stack: contextlib.ExitStack) -> list[Way]:
    """What the bundle has for this GPU; what cannot be opened is said on stderr."""
    ways = []
    for precision in ("fp32", "fp16"):
        name = f"onnxruntime-cuda {precision}"
        with saying_why_not(name):
            graph = bundle.deploy_graph(precision)
            session = stack.enter_context(
                open_candidate(bundle, Candidate(graph, "onnxruntime-cuda", precision))
            )
            ways.append(Way(name, one_by_one(session.run)))
    for engine in engines_of(bundle):
        with saying_why_not(engine.file):
            session = stack.enter_context(open_bundle_engine(bundle, engine))
            name = f"{session.spec.runtime} {session.spec.precision}"
            largest = session.spec.largest_batch
            ways.append(Way(name, one_by_one(session.run), largest))
            if isinstance(session, PipelinedSession):
                ways.append(Way(f"{name}, two in flight", overlapped(session), largest))
    return ways


@contextlib.contextmanager
def saying_why_not(name: str) -> Iterator[None]:
    """Go on without a way that does not work here, and say so."""
    try:
        yield
    except DeploykitError as exc:
        print(f"without {name}: {exc.message}", file=sys.stderr)


def measure(ways: list[Way], batch: int, images: ImageBatch, seconds: float) -> None:
    """Let the ways take turns for about so many seconds each."""
    able = [way for way in ways if way.largest_batch is None or batch <= way.largest_batch]
    for way in able:
        for _ in range(WARM_UP_TURNS):
            way.turn(images)
    deadline = time.perf_counter() + seconds * len(able)
    while time.perf_counter() < deadline:
        for way in able:
            start = time.perf_counter()
            way.turn(images)
            way.seconds.setdefault(batch, []).append(time.perf_counter() - start)


def table(ways: list[Way], batches: list[int]) -> str:
    """A row a way: images/s and, after it, the ratio to the first way."""
    rows = []
    for way in ways:
        row = [way.name]
        for batch in batches:
            found, base = way.images_per_second(batch), ways[0].images_per_second(batch)
            row.append(f"{found:8.0f}  {found / base:5.2f} x" if found and base else "-")
        rows.append(row)
    return table_text(["images/s", *(f"batch {batch}" for batch in batches)], rows)


def measure_bundle(folder: Path, batches: list[int], seconds: float) -> None:
    """Measure a bundle and print the table."""
    gpu, bundle = need_gpu(), open_bundle(folder)
    with contextlib.ExitStack() as stack:
        ways = [*torch_ways(bundle), *session_ways(bundle, stack)]
        rng = np.random.default_rng(0)
        for batch in batches:
            shape = (batch, *bundle.manifest.preprocessing.input_size, 3)
            images = rng.integers(0, 256, shape, dtype=np.uint8)
            measure(ways, batch, images, seconds)
    print(
        f"{bundle.manifest.architecture.name} on {gpu.name}, CUDA {gpu.cuda_version[0]}."
        f"{gpu.cuda_version[1]} driver, torch {version('torch')}, {time.strftime('%Y-%m-%d')}"
    )
    print(table(ways, batches))


def main() -> int:
    """Measure a bundle, or run everything."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--seconds", type=float, default=1.0, help="for each way and batch size")
    parser.add_argument("--all", action="store_true", help="everything that needs a GPU")
    parser.add_argument("--dry-run", action="store_true", help="only print the steps of --all")
    options = parser.parse_args()
    if options.all == (options.bundle is not None) or (options.dry_run and not options.all):
        parser.error("give a BUNDLE, or --all with or without --dry-run")
    try:
        if options.dry_run:
            for step in steps_in(Path("WORK")):
                print(f"# {step.name}, at most {step.limit_s:g} s\n{command_line(step.command)}")
        elif options.all:
            return prepare_and_run(need_gpu())
        else:
            measure_bundle(options.bundle, options.batches, options.seconds)
    except DeploykitError as exc:
        print(exc, file=sys.stderr)
        return exc.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
