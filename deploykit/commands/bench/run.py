"""Bench: every option of this machine side by side, and the fastest of those that are proven."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.commands.bench.messages import Begin, Sample
from deploykit.commands.bench.options import list_options
from deploykit.commands.bench.results import Benchmark, LeftOut, Measured
from deploykit.commands.bench.rounds import Contender, Schedule, start_all, take_turns
from deploykit.commands.bench.standing import Photographs, standing_of, with_proofs
from deploykit.commands.bench.timings import LEAST_ROUNDS, EndToEnd, Timing
from deploykit.errors import (
    BundleError,
    DeploykitError,
    InputError,
    MissingError,
    ParityError,
    UsageError,
)
from deploykit.images.batches import read_batches
from deploykit.images.scan import sample_images
from deploykit.inference.machine import this_machine
from deploykit.proof.accepted import keep_accepted
from deploykit.proof.photos import PhotoFolder, listed_photos, nothing_readable
from deploykit.system.progress import Progress, silent
from deploykit.system.text import counted
from deploykit.system.versions import installed_versions, now

BATCH_SIZES = (1, 8, 32)
SECONDS = 90.0
#: So many unchanged decisions bound the rate at which decisions change by 1.2 %.
PROOF_PHOTOS = 256
#: So many photos are predicted again and again: all of them stay in the system's file cache.
_SAMPLE = 48


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
    sample = _readable_sample(bundle, folder)
    options, left_out = list_options(bundle, progress)
    begins = [
        Begin(bundle=os.fsencode(bundle.folder), option=option, sample=sample) for option in options
    ]
    schedule = Schedule(request.batch_sizes, request.repeats, request.seconds)
    with ExitStack() as stack:
        contenders, not_started = start_all(stack, begins, progress)
        finished, broken, rounds = take_turns(contenders, schedule, progress)
    left_out += [*not_started, *broken]
    if not finished:
        raise _nothing_runs(bundle, left_out)
    versions = installed_versions()
    benchmark = Benchmark(
        bundle=bundle.name,
        folder=printable(bundle.folder),
        machine=this_machine(),
        photos=printable(folder.path),
        sample=len(sample.photos),
        options=tuple(_measured(bundle, contender, versions) for contender in finished),
        left_out=tuple(left_out),
        rounds=rounds,
        seconds=0.0,
        created=now(),
        versions=versions,
    )
    if request.verify:
        photographs = Photographs(folder.path, request.max_images)
        benchmark = with_proofs(bundle, benchmark, photographs, progress)
    return msgspec.structs.replace(benchmark, seconds=time.monotonic() - start)


def accept_recommended(bundle: Bundle, benchmark: Benchmark) -> Accepted:
    """Keep the recommended option as this machine's choice, which ``predict`` will take.

    Args:
        bundle: The bundle, as it was measured.
        benchmark: What was measured.

    Returns:
        What was kept.

    Raises:
        UsageError: The rounds are too few to choose by.
        ParityError: Nothing is recommended.
        BundleError: The bundle's file was changed meanwhile, or a part of the bundle is damaged, so
            that not every option was measured.
        InputError: The bundle cannot be written.
    """
    require_rounds_to_accept(benchmark.rounds)
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
            hint="What speaks against each option is said above."
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


def require_rounds_to_accept(rounds: int | None) -> None:
    """Refuse to choose by so few rounds that a difference may be noise.

    Args:
        rounds: How many there are or will be at most; None for as many as there is time for, which
            are enough.

    Raises:
        UsageError: They are too few.
    """
    if rounds is not None and rounds < LEAST_ROUNDS:
        raise UsageError(
            f"{counted(rounds, 'round')} cannot tell a faster option from noise, and nothing is "
            "accepted by chance.",
            hint=f"Leave out --repeats, or choose {LEAST_ROUNDS} or more; or name what you want: "
            "deploykit predict --runtime NAME --precision NAME",
        )


def _check_numbers(request: BenchRequest) -> None:
    if not request.batch_sizes or min(request.batch_sizes) < 1:
        raise UsageError(
            f"Batch sizes must be at least 1; got {', '.join(map(str, request.batch_sizes))}.",
            hint="For example --batch-sizes 1,8,32",
        )
    if request.repeats is not None and request.repeats < 1:
        raise UsageError(
            f"{request.repeats} rounds measure nothing.", hint="Choose --repeats of at least 1."
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


def _readable_sample(bundle: Bundle, folder: PhotoFolder) -> Sample:
    """Photos, even over the classes, without those that cannot be read."""
    files = sample_images(folder.files, _SAMPLE)
    batches = read_batches(files, bundle.manifest.preprocessing, batch_size=_SAMPLE)
    readable = [file for batch in batches for file in batch.readable]
    if not readable:
        raise nothing_readable(printable(folder.path), len(files))
    return Sample.of(readable[0].root, readable)


def _nothing_runs(bundle: Bundle, left_out: Sequence[LeftOut]) -> DeploykitError:
    """What to end with: what is damaged can be mended, and what is missing need not be."""
    kind: type[DeploykitError] = MissingError
    if any(each.exit_code == InputError.exit_code for each in left_out):
        kind = InputError
    reasons = "; ".join(dict.fromkeys(each.reason.rstrip(".") for each in left_out))
    return kind(f"No option of {bundle.name} runs here: {reasons}.")


def _measured(bundle: Bundle, contender: Contender, versions: Mapping[str, str]) -> Measured:
    spec, sample = contender.begun.spec, contender.sample
    stand = standing_of(bundle, contender.option, spec, versions)
    return Measured(
        option=contender.option,
        spec=spec,
        first_answer_seconds=contender.first_answer_seconds,
        peak_memory_bytes=sample.peak_memory_bytes,
        timings=tuple(
            Timing(batch=batch, seconds=tuple(seconds))
            for batch, seconds in sorted(contender.latencies.items())
        ),
        end_to_end=EndToEnd(
            batch_size=contender.begun.batch_size,
            photos=contender.photos,
            rates=tuple(contender.rates),
        ),
        labelled=sample.labelled,
        correct=sample.correct,
        standing=stand.standing,
        proof=stand.proof,
        objections=stand.objections,
        outdated=stand.outdated,
        refusals=contender.refusals,
    )
