"""``deploykit.bench``: every candidate of this machine side by side, from Python."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from deploykit.bundle.folder import open_bundle
from deploykit.commands.bench.results import Benchmark
from deploykit.commands.bench.run import BenchRequest, accept_recommended, bench_bundle
from deploykit.commands.bench.text import benchmark_text
from deploykit.commands.python import BundleLike, PathLike, chosen_bundle, optional_path
from deploykit.errors import BundleError
from deploykit.parity.budget import Budget
from deploykit.system.progress import Progress, silent


def bench(
    bundle: BundleLike | None = None,
    *,
    images: PathLike | None = None,
    batch_sizes: Sequence[int] = BenchRequest.batch_sizes,
    repeats: int | None = None,
    seconds: float = BenchRequest.seconds,
    verify: bool = False,
    max_images: int | None = None,
    expected: PathLike | None = None,
    max_flips: str | float | None = None,
    max_accuracy_drop: float | None = None,
    accept: bool = False,
    html: PathLike | None = None,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Benchmark:
    """Measure every way to run a bundle on this machine and recommend the fastest proven one.

    Args:
        bundle: What :func:`deploykit.export` returned, a bundle's name or its folder; None for the
            one there is, or the newest.
        images: A folder of photos to predict; None for the one of the export.
        batch_sizes: Of the session alone.
        repeats: The most rounds; None for as many as there is time for.
        seconds: How long to measure, once all are open; at least three rounds run.
        verify: Prove the fastest unproven candidates, until one passes.
        max_images: The most photos to compare with ``verify``; None for 256.
        expected: A table of the photos' classes (path, then names or 0/1 columns); None for what
            their folders tell. Gives the accuracy of each candidate.
        max_flips: Below FP32, recommend what changes no larger part of the decisions, ``"1%"`` or
            ``0.01``, instead of what the precision allows.
        max_accuracy_drop: Below FP32, recommend what loses no more points of accuracy on labelled
            photos.
        accept: Make ``predict`` and ``load`` use the recommended candidate on this machine.
        html: Where to write a page.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done.

    Raises:
        UsageError: An argument makes no sense, ``html`` names a file that is no earlier page, or
            there is no folder of photos.
        ParityError: ``accept``, and no candidate passed.
        InputError: No photo can be read, or the bundle is damaged.
        MissingError: Not one candidate runs here.
    """
    sizes = tuple(sorted(set(batch_sizes)))
    request = BenchRequest(
        optional_path(images),
        sizes,
        repeats,
        seconds,
        verify,
        max_images,
        optional_path(expected),
        Budget.parse(max_flips, max_accuracy_drop),
    )
    page = optional_path(html)
    if page is not None:
        from deploykit.commands.bench.page import begin_bench_page

        begin_bench_page(page)
    chosen = chosen_bundle(bundle, artifacts, progress)
    benchmark = bench_bundle(chosen, request, progress)
    accepted = accept_recommended(chosen, benchmark) if accept else None
    if page is not None:
        from deploykit.commands.bench.page import write_bench_page

        write_bench_page(page, benchmark, accepted)
    return benchmark


def shown_text(benchmark: Benchmark) -> str:
    """What was measured, and what was accepted of it since."""
    try:
        kept = open_bundle(Path(benchmark.folder)).manifest.accepted
    except BundleError:  # it may be gone
        kept = ()
    accepted = [
        each
        for each in kept
        if each.machine == benchmark.machine and each.created >= benchmark.created
    ]
    return benchmark_text(benchmark, accepted[-1] if accepted else None)
