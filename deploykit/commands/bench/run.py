"""Bench: every option of this machine side by side, and the fastest of those that are proven."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.commands.bench.measure import OpenOption
from deploykit.commands.bench.options import list_options
from deploykit.commands.bench.process import OptionProcess
from deploykit.commands.bench.results import Benchmark, Measured, Option, Skipped
from deploykit.commands.bench.standing import Photographs, standing_of, with_proofs
from deploykit.errors import (
    BundleError,
    DeploykitError,
    InputError,
    MissingError,
    ParityError,
    UsageError,
)
from deploykit.images.batches import read_batches
from deploykit.images.scan import ImageFile, sample_images
from deploykit.inference.machine import this_machine
from deploykit.proof.accepted import keep_accepted
from deploykit.proof.photos import PhotoFolder, listed_photos, nothing_readable
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Progress, Step, silent
from deploykit.system.text import counted, now

BATCH_SIZES = (1, 8, 32)
SECONDS = 90.0
#: So many unchanged decisions bound the rate at which decisions change by 1.2 %.
PROOF_PHOTOS = 256
#: So many photos are predicted again and again: all of them stay in the system's file cache.
_SAMPLE = 48
#: Fewer rounds cannot tell a difference from noise.
LEAST_ROUNDS = 3


@dataclass(frozen=True)
class BenchRequest:
    """What to measure.

    Attributes:
        images: A folder of photos; None for the one recorded at export while it is there.
        batch_sizes: Of the session alone; end to end it is the one that ``predict`` takes.
        repeats: The most rounds; None for as many as there is time for.
        seconds: How long the rounds may take, beside what the first three need.
        verify: Whether the fastest options that have no proof are verified, until one passes.
        max_images: On so many photos at most, a fixed sample that is even over the classes.
    """

    images: Path | None = None
    batch_sizes: tuple[int, ...] = BATCH_SIZES
    repeats: int | None = None
    seconds: float = SECONDS
    verify: bool = False
    max_images: int = PROOF_PHOTOS


def bench_bundle(
    bundle: Bundle, request: BenchRequest | None = None, progress: Progress = silent
) -> Benchmark:
    """Measure every option of this machine.

    Proofs are those of the manifest; what has none is compared only with ``verify``.

    Raises:
        UsageError: A number that makes no sense, or no folder of photos.
        ImagesError: There is no photo that can be read.
        InputError: Not one option runs, because the bundle is damaged.
        MissingError: Not one option runs here.
    """
    request = request or BenchRequest()
    _check_numbers(request)
    start = time.monotonic()
    folder = listed_photos(bundle, request.images, progress)
    files = _readable_sample(bundle, folder)
    options, skipped = list_options(bundle, progress)
    with ExitStack() as stack:
        processes, not_opened = _start_all(stack, bundle, options, files, progress)
        measured, failed = take_turns(processes, request, progress)
    skipped += [*not_opened, *failed]
    if not measured:
        raise _nothing_runs(bundle, skipped)
    versions = installed_versions()
    benchmark = Benchmark(
        bundle=bundle.name,
        folder=printable(bundle.folder),
        machine=this_machine(),
        photos=printable(folder.path),
        sample=len(files),
        options=tuple(
            msgspec.structs.replace(
                each, **standing_of(bundle, each.option, each.spec, versions)._asdict()
            )
            for each in measured
        ),
        skipped=tuple(skipped),
        rounds=len(measured[0].rates),
        seconds=0.0,
        created=now(),
        versions=versions,
    )
    if request.verify:
        photographs = Photographs(folder.path, request.max_images)
        benchmark = with_proofs(bundle, benchmark, photographs, progress)
    return msgspec.structs.replace(benchmark, seconds=time.monotonic() - start)


def _check_numbers(request: BenchRequest) -> None:
    if not request.batch_sizes or min(request.batch_sizes) < 1:
        raise UsageError(
            f"Batch sizes must be at least 1; got {', '.join(map(str, request.batch_sizes))}.",
            hint="For example --batch-sizes 1,8,32",
        )
    if request.repeats is not None and request.repeats < LEAST_ROUNDS:
        raise UsageError(
            f"{counted(request.repeats, 'round')} cannot tell a faster option from noise.",
            hint=f"Choose --repeats of at least {LEAST_ROUNDS}.",
        )
    if not (request.seconds > 0 and math.isfinite(request.seconds)):
        raise UsageError(
            f"The rounds cannot take {request.seconds:g} seconds.",
            hint=f"Choose --seconds above 0; {SECONDS:g} are usual.",
        )
    if request.max_images < 1:
        raise UsageError(
            f"{request.max_images} photos prove nothing.", hint="Choose --max-images of at least 1."
        )


def _readable_sample(bundle: Bundle, folder: PhotoFolder) -> list[ImageFile]:
    """Photos, even over the classes, without those that cannot be read."""
    files = sample_images(folder.files, _SAMPLE)
    batches = read_batches(files, bundle.manifest.preprocessing, batch_size=_SAMPLE)
    readable = [file for batch in batches for file in batch.readable]
    if not readable:
        raise nothing_readable(printable(folder.path), len(files))
    return readable


def _start_all(
    stack: ExitStack,
    bundle: Bundle,
    options: Sequence[Option],
    files: list[ImageFile],
    progress: Progress,
) -> tuple[list[OptionProcess], list[Skipped]]:
    """Start a process for each option, one after the other; ``stack`` ends them."""
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploykit-bench-")))
    processes, skipped = [], []
    for place, option in enumerate(options):
        progress(Step("starting", place, len(options), option.name))
        process = OptionProcess(bundle.folder, option, files, logs / f"{place}.txt")
        stack.enter_context(process)
        failure = process.ask(OpenOption.predict_sample)
        if failure is None:
            processes.append(process)
        else:
            process.close()
            skipped.append(failure)
    return processes, skipped


def take_turns(
    processes: Sequence[OptionProcess], request: BenchRequest, progress: Progress
) -> tuple[list[Measured], list[Skipped]]:
    """Measure round after round, so that what disturbs the machine hits all options alike.

    Args:
        processes: One for each option, which is open.
        request: The batch sizes, and how long to go on.
        progress: Called before each turn.

    Returns:
        What was measured, and the options that failed.
    """
    running, skipped = list(processes), list[Skipped]()
    # Three rounds share the time, and in each every option has an equal part.
    turns = LEAST_ROUNDS * max(1, len(running)) * (len(request.batch_sizes) + 1)
    seconds = request.seconds / turns
    start = time.monotonic()
    rounds = 0
    while running and _has_time(request, rounds, time.monotonic() - start):
        first = rounds % len(running)  # so that no option always follows the same one
        order = running[first:] + running[:first]
        for kind in ("alone", "end to end"):
            for process in [each for each in order if each in running]:
                detail = f"round {rounds + 1}, {kind}: {process.option.name}"
                progress(Step("measuring", rounds, request.repeats, detail))
                if kind == "alone":
                    failure = process.ask(OpenOption.compute, request.batch_sizes, seconds)
                else:
                    failure = process.ask(OpenOption.predict, seconds)
                if failure is not None:
                    process.close()
                    running.remove(process)
                    skipped.append(failure)
        rounds += 1
    found = [process.ask(OpenOption.measured) for process in running]
    skipped += [each for each in found if isinstance(each, Skipped)]
    return [each for each in found if isinstance(each, Measured)], skipped


def _has_time(request: BenchRequest, rounds: int, elapsed: float) -> bool:
    """Whether another round can begin: the next takes about as long as those before."""
    if request.repeats is not None and rounds >= request.repeats:
        return False
    return rounds < LEAST_ROUNDS or elapsed * (rounds + 1) / rounds <= request.seconds


def _nothing_runs(bundle: Bundle, skipped: Sequence[Skipped]) -> DeploykitError:
    """The error when every option was skipped: damage comes first, because it can be repaired."""
    kind: type[DeploykitError] = MissingError
    if any(each.exit_code == InputError.exit_code for each in skipped):
        kind = InputError
    reasons = "; ".join(dict.fromkeys(each.reason.rstrip(".") for each in skipped))
    return kind(f"No option of {bundle.name} runs here: {reasons}.")


def accept_recommended(bundle: Bundle, benchmark: Benchmark) -> Accepted:
    """Keep the recommended option as this machine's choice, which ``predict`` will take.

    Args:
        bundle: The bundle, as it was measured.
        benchmark: What was measured.

    Returns:
        What was kept.

    Raises:
        ParityError: Nothing is recommended.
        BundleError: The bundle's file was changed meanwhile, or a part of the bundle is damaged, so
            that not every option was measured.
        InputError: The bundle cannot be written.
    """
    if damaged := benchmark.damaged:
        raise BundleError(
            "Nothing is accepted, because not every option could be measured: "
            + " ".join(dict.fromkeys(each.reason for each in damaged)),
            hint=f"Then measure again: {benchmark.command('--accept')}",
        )
    chosen = benchmark.recommended
    if chosen is None:
        raise ParityError(
            f"Nothing can be accepted: {benchmark.why_nothing}.",
            hint="The reason of each option is said above."
            if benchmark.verified
            else f"Let bench prove the fastest: {benchmark.command('--verify', '--accept')}",
        )
    accepted = Accepted(
        machine=benchmark.machine,
        file=chosen.option.file,
        sha256=bundle.manifest.files[chosen.option.file].sha256,
        runtime=chosen.option.runtime,
        precision=chosen.option.precision,
        images_per_second=chosen.images_per_second,
        created=benchmark.created,
    )
    keep_accepted(bundle, accepted)
    return accepted
