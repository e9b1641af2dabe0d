"""Bench: every candidate of this machine side by side, and the fastest of those that passed."""

from __future__ import annotations

import math
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import msgspec

from deploykit.bundle.accepted import Accepted
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import printable
from deploykit.commands.bench.candidates import list_candidates
from deploykit.commands.bench.measure import LEAST_ROUNDS, OpenCandidate
from deploykit.commands.bench.process import CandidateProcess
from deploykit.commands.bench.results import (
    NOTHING_PASSED,
    TORCH,
    Benchmark,
    Measured,
    Skipped,
    name_of,
)
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.run import verify_bundle
from deploykit.errors import (
    BundleError,
    DeploykitError,
    InputError,
    MissingError,
    ParityError,
    UsageError,
)
from deploykit.images.batches import read_batches
from deploykit.images.scan import ImageFile, Scan, sample_images
from deploykit.images.truth import known_classes
from deploykit.inference.candidates import Candidate, this_machine
from deploykit.parity.budget import Budget
from deploykit.proof.accepted import keep_accepted
from deploykit.proof.images import listed_images, nothing_readable, require_labels
from deploykit.proof.policy import Status, status, status_by
from deploykit.proof.reference import OpenReference, ReferenceRequest, open_reference
from deploykit.proof.verdict import kept_verdict
from deploykit.specs.engine import is_flavour
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import counted, now

#: So many images are predicted again and again: all of them stay in the system's file cache.
_SAMPLE = 48
#: So many images are compared with ``verify``, if the user names no other number.
_COMPARED = 256


@dataclass(frozen=True)
class BenchRequest:
    """The arguments of :func:`deploykit.bench`.

    Attributes:
        expected: A table of the images' classes; None for what their folders tell.
        budget: What the user allows below FP32; None for what the precision allows.
        max_images: The most to compare with ``verify``; None for 256, which without a flip bound
            the rate of flips at 1.2 %.
    """

    images: Path | None = None
    batch_sizes: tuple[int, ...] = (1, 8, 32)
    repeats: int | None = None
    seconds: float = 90.0
    verify: bool = False
    max_images: int | None = None
    expected: Path | None = None
    budget: Budget | None = None

    def __post_init__(self) -> None:
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UsageError(
                f"Batch sizes must be at least 1; got {', '.join(map(str, self.batch_sizes))}.",
                hint="For example --batch-sizes 1,8,32",
            )
        if self.repeats is not None and self.repeats < LEAST_ROUNDS:
            raise UsageError(
                f"{counted(self.repeats, 'round')} cannot tell a difference from noise.",
                hint=f"Choose --repeats of at least {LEAST_ROUNDS}.",
            )
        if not (self.seconds > 0 and math.isfinite(self.seconds)):
            raise UsageError(
                f"The rounds cannot take {self.seconds:g} seconds.",
                hint="Choose --seconds above 0; 90 are usual.",
            )
        if self.max_images is not None and not self.verify:
            raise UsageError(
                "--max-images is for the comparison, and nothing is compared without --verify.",
                hint="Add --verify, or leave out --max-images.",
            )
        if self.max_images is not None and self.max_images < 1:
            raise UsageError(
                f"{self.max_images} photos prove nothing.",
                hint="Choose --max-images of at least 1.",
            )


def bench_bundle(
    bundle: Bundle, request: BenchRequest | None = None, progress: Progress = silent
) -> Benchmark:
    """Measure every candidate of this machine.

    Proofs are those of the manifest; what is unproven is compared only with ``verify``. Raises as
    :func:`deploykit.bench` does.
    """
    request = request or BenchRequest()
    start = time.monotonic()
    folder = listed_images(bundle, request.images, progress)
    every = known_classes(folder, bundle.manifest.labels, request.expected, progress)
    require_labels(request.budget, every, printable(folder.path))
    files = _readable_sample(bundle, folder)
    truth = {file.name: every[file.name] for file in files if file.name in every}
    candidates, skipped = list_candidates(bundle, progress)
    with ExitStack() as stack:
        progress(Note(f"starting {counted(len(candidates), 'candidate')}; then they are measured"))
        processes, not_opened = _start_all(
            stack, bundle, candidates, files, truth, request.seconds, progress
        )
        starting_seconds = time.monotonic() - start
        measured, failed = take_turns(processes, request, progress)
    skipped += [*not_opened, *failed]
    if not measured:
        # Damage comes first, because it can be repaired.
        kind = InputError if any(each.damaged for each in skipped) else MissingError
        reasons = "; ".join(dict.fromkeys(each.reason.rstrip(".") for each in skipped))
        raise kind(f"No candidate of {bundle.name} runs here: {reasons}.")
    versions = installed_versions()
    known = [
        msgspec.structs.replace(
            each,
            status=None
            if each.candidate == TORCH
            else status(bundle, each.candidate, each.spec.device, versions),
        )
        for each in measured
    ]
    benchmark = Benchmark(
        bundle=bundle.name,
        folder=printable(bundle.folder),
        machine=this_machine(),
        images=printable(folder.path),
        sample=len(files),
        measured=tuple(sorted(known, key=lambda each: -each.images_per_second)),
        skipped=tuple(skipped),
        rounds=len(measured[0].rates),
        starting_seconds=starting_seconds,
        seconds=0.0,
        created=now(),
        versions=versions,
        accuracy_word=bundle.manifest.labels.head.accuracy,
        budget=request.budget,
    )
    if request.verify:
        benchmark = _with_proofs(bundle, benchmark, folder.path, request, progress)
    return msgspec.structs.replace(benchmark, seconds=time.monotonic() - start)


def _readable_sample(bundle: Bundle, folder: Scan) -> list[ImageFile]:
    """Images, even over the classes, without those that cannot be read."""
    files = sample_images(folder.files, _SAMPLE)
    batches = read_batches(files, bundle.manifest.preprocessing, batch_size=_SAMPLE)
    readable = [file for batch in batches for file in batch.readable]
    if not readable:
        raise nothing_readable(printable(folder.path), len(files))
    return readable


def _start_all(
    stack: ExitStack,
    bundle: Bundle,
    candidates: Sequence[Candidate],
    files: list[ImageFile],
    known: Mapping[str, tuple[str, ...]],
    seconds: float,
    progress: Progress,
) -> tuple[list[CandidateProcess], list[Skipped]]:
    """Start a process for each candidate, one after the other; ``stack`` ends them.

    Says how long all of them will be measured, of which ``seconds`` were asked for.
    """
    start = time.monotonic()
    logs = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="deploykit-bench-")))
    processes, skipped, needed = [], [], 0.0
    for place, candidate in enumerate(candidates):
        began = time.monotonic()
        progress(Step("starting", place, len(candidates), name_of(candidate)))
        process = CandidateProcess(bundle.folder, candidate, files, known, logs / f"{place}.txt")
        stack.enter_context(process)
        found = process.ask(OpenCandidate.first_run_seconds)
        if not isinstance(found, Skipped):
            process.expect(found * len(files))
            found = process.ask(OpenCandidate.predict_sample)
        if isinstance(found, Skipped):
            process.close()
            skipped.append(found)
            continue
        share = seconds / len(candidates)
        # A turn opens the candidate once more, at most, and has a part of its share.
        process.expect(time.monotonic() - began + share)
        needed += max(share, LEAST_ROUNDS * found)
        processes.append(process)
    if processes:
        took = time.monotonic() - start
        said = f"started in {took:.0f} s; measuring takes about {max(seconds, needed):.0f} s"
        if needed > 1.5 * seconds:
            said += f", because {LEAST_ROUNDS} rounds of all candidates do"
        progress(Note(said))
    return processes, skipped


def take_turns(
    processes: Sequence[CandidateProcess], request: BenchRequest, progress: Progress
) -> tuple[list[Measured], list[Skipped]]:
    """Measure round after round, so that what disturbs the machine hits all candidates alike.

    Args:
        processes: One for each candidate, which is open.
        request: The batch sizes, and how long to go on.
        progress: Called before each turn.

    Returns:
        What was measured, and the candidates that failed.
    """
    running, skipped = list(processes), list[Skipped]()
    # Three rounds share the time, and in each every candidate has an equal part.
    turns = LEAST_ROUNDS * max(1, len(running)) * (len(request.batch_sizes) + 1)
    seconds = request.seconds / turns
    start = time.monotonic()
    rounds = 0
    while running and _has_time(request, rounds, time.monotonic() - start):
        first = rounds % len(running)  # so that no candidate always follows the same one
        order = running[first:] + running[:first]
        for kind in ("alone", "end to end"):
            for process in [each for each in order if each in running]:
                detail = f"round {rounds + 1}, {kind}: {name_of(process.candidate)}"
                progress(Step("measuring", rounds, request.repeats, detail))
                if kind == "alone":
                    failure = process.ask(OpenCandidate.compute, request.batch_sizes, seconds)
                else:
                    failure = process.ask(OpenCandidate.predict, seconds)
                if failure is not None:
                    process.close()
                    running.remove(process)
                    skipped.append(failure)
        rounds += 1
    found = [process.ask(OpenCandidate.measured) for process in running]
    skipped += [each for each in found if isinstance(each, Skipped)]
    return [each for each in found if isinstance(each, Measured)], skipped


def _has_time(request: BenchRequest, rounds: int, elapsed: float) -> bool:
    """Whether another round can begin: the next takes about as long as those before."""
    if request.repeats is not None and rounds >= request.repeats:
        return False
    return rounds < LEAST_ROUNDS or elapsed * (rounds + 1) / rounds <= request.seconds


def _with_proofs(
    bundle: Bundle,
    benchmark: Benchmark,
    images: Path,
    asked: BenchRequest,
    progress: Progress,
) -> Benchmark:
    """Verify what would be recommended if it were proven, the fastest first, until one passes.

    If a verification fails, what was measured stays.
    """
    benchmark = msgspec.structs.replace(benchmark, verified=True)
    wanted = benchmark.faster_unproven
    if not wanted:
        return benchmark
    how = ""
    with ExitStack() as stack:
        try:
            reference = open_reference(bundle, ReferenceRequest(), progress)
            stack.enter_context(reference.session)
            reason = reference.reason
            if reason is not None and reference.module_options:
                how = bundle.command("verify", *reference.module_options)
        except DeploykitError as exc:
            reason = exc.message
        for measured in wanted:
            if reason is not None:
                known = Status("unproven", None, reason, how)
            else:
                progress(Note(f"verifying {measured.name}, faster than what is proven"))
                known = _verified(bundle, measured, reference, images, asked, progress)
            judged = msgspec.structs.replace(measured, status=known)
            every = tuple(judged if each is measured else each for each in benchmark.measured)
            benchmark = msgspec.structs.replace(benchmark, measured=every)
            if known.is_within(asked.budget):
                break
    return benchmark


def _verified(
    bundle: Bundle,
    measured: Measured,
    reference: OpenReference,
    images: Path,
    asked: BenchRequest,
    progress: Progress,
) -> Status:
    """Compare a candidate with the reference; the verdict counts, whether it is kept or not."""
    what = measured.candidate
    is_engine = is_flavour(what.runtime)
    request = VerifyRequest(
        images=images,
        max_images=asked.max_images or _COMPARED,
        expected=asked.expected,
        budget=None if what.precision == "fp32" else asked.budget,
        runtime=None if is_engine else what.runtime,
        precision=None if is_engine else what.precision,
        engine=what.file if is_engine else None,
    )
    try:
        found = verify_bundle(bundle, request, progress, reference=reference)
    except DeploykitError as exc:
        return Status("unproven", None, exc.message)
    # Not of the graph with embeddings, which is compared beside the FP32 graph.
    (verdict,) = (each for each in found.verdicts if each.candidate.graph == measured.spec.graph)
    if not verdict.passed and not verdict.failed:
        return Status("unproven", None, "; ".join(verdict.reasons))
    sha256 = bundle.manifest.files[what.file].sha256
    kept = kept_verdict(verdict, sha256, reference, found.images)
    return status_by(bundle, [kept], what, measured.spec.device, found.versions)


def accept_recommended(bundle: Bundle, benchmark: Benchmark) -> Accepted:
    """Keep the recommended candidate as this machine's choice, which ``predict`` will take.

    Args:
        bundle: The bundle, as it was measured.
        benchmark: What was measured.

    Returns:
        What was kept.

    Raises:
        ParityError: Nothing is recommended.
        BundleError: The bundle's file was changed meanwhile, or a part of the bundle is damaged, so
            that not every candidate was measured.
        InputError: The bundle cannot be written.
    """
    if damaged := benchmark.damaged:
        raise BundleError(
            "Nothing is accepted, because not every candidate could be measured: "
            + " ".join(dict.fromkeys(each.reason for each in damaged)),
            hint=f"Then measure again: {benchmark.command('bench', '--accept')}",
        )
    chosen = benchmark.recommended
    if chosen is None:
        prove = benchmark.command("bench", "--verify", "--accept")
        raise ParityError(
            f"Nothing can be accepted: {NOTHING_PASSED}.",
            hint="The reason of each is above."
            if benchmark.verified
            else f"Let bench prove the fastest: {prove}",
        )
    accepted = Accepted(
        machine=benchmark.machine,
        file=chosen.candidate.file,
        sha256=bundle.manifest.files[chosen.candidate.file].sha256,
        runtime=chosen.candidate.runtime,
        precision=chosen.candidate.precision,
        status="proven" if chosen.word == "proven" else "within budget",
        images_per_second=chosen.images_per_second,
        created=benchmark.created,
        budget=None if chosen.word == "proven" else benchmark.budget,
    )
    keep_accepted(bundle, accepted)
    return accepted
