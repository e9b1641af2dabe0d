"""Verify what did not run here: a server's answers, or another tool's table."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.bundle.golden import read_golden
from deploykit.commands.diagnose.text import Diagnosis
from deploykit.commands.verify.request import VerifyRequest
from deploykit.commands.verify.result import Verification
from deploykit.commands.verify.server import open_server_candidates, time_requests
from deploykit.commands.verify.table import TableMatch, TableSession, read_tool_table
from deploykit.images.scan import ImageFile, sample_images, sample_with
from deploykit.images.truth import known_classes
from deploykit.parity.accuracy import accuracies, changes_by_candidate
from deploykit.parity.compare import OPT_BATCH_SIZE, NamedBatch
from deploykit.proof.extremes import answer_extremes, judge_extremes
from deploykit.proof.images import (
    ImageSample,
    listed_images,
    mostly_unreadable,
    read_sample,
    require_labels,
)
from deploykit.proof.reference import GOLDEN_REFERENCE, OpenReference, open_reference
from deploykit.proof.verdict import answer_images, judge_answers
from deploykit.specs.session import Session
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Progress
from deploykit.system.text import now

if TYPE_CHECKING:
    from deploykit.specs.model import Precision


def compare_elsewhere(
    bundle: Bundle, request: VerifyRequest, progress: Progress, reference: OpenReference | None
) -> Verification:
    """Compare a server, or a table, with the reference. The bundle keeps nothing of it.

    Args:
        bundle: The bundle.
        request: Names the server or the table.
        progress: Called with what is being done.
        reference: See :func:`deploykit.commands.verify.run.verify_bundle`.

    Raises:
        DeploykitError: See :func:`deploykit.verify`.
    """
    bundle.checked(GOLDEN)
    start = time.perf_counter()
    labels = bundle.manifest.labels
    with ExitStack() as stack:
        # First what may fail at once: a reference may take minutes to load.
        sample, candidates, match, mislabelled = _opened(bundle, request, stack, progress)
        require_labels(request.budget, sample.expected, sample.source)
        if not request.self_test:
            sample.skip(_calibration(bundle, request.precision))
            if reference is None:
                reference = open_reference(bundle, request.reference, progress)
                stack.enter_context(reference.session)
        right = reference.session if reference else read_golden(bundle).logits
        compared_with = reference or GOLDEN_REFERENCE
        first: list[NamedBatch] = []
        answers = answer_images(
            right, candidates, _kept(sample, first), labels, progress, count=sample.count
        )
        specs = [candidate.spec for candidate in candidates]
        known = answers.known(sample.expected)
        budget = request.budget
        verdicts = judge_answers(
            answers,
            specs,
            labels,
            kind=sample.kind,
            expected=known,
            budgets={} if budget is None else {spec.graph: budget for spec in specs},
        )
        if reference is not None and match is None:
            extremes = answer_extremes(reference.session, progress)
            verdicts = judge_extremes(verdicts, candidates, extremes)
        drawn = sample.drawn()
        latencies = {
            each.spec: time_requests(each, first, progress)
            for each in candidates
            if each.spec.place == "server"
        }
    verdicts = tuple(verdict.with_labels(mislabelled) for verdict in verdicts)
    weak = mostly_unreadable(sample.unreadable, sample.readable)
    for reason in filter(None, (weak, compared_with.reason)):
        verdicts = tuple(verdict.refused(reason) for verdict in verdicts)
    found = Verification(
        reference=compared_with,
        images=drawn,
        unreadable=sample.unreadable,
        verdicts=verdicts,
        answers=answers,
        expected=known,
        truth="" if request.expected is None else request.expected.name,
        head=labels.head,
        accuracy=accuracies(answers, known, labels),
        created=now(),
        versions=installed_versions(),
        seconds=time.perf_counter() - start,
        folder=bundle.place,
        latencies=latencies,
        table=match,
        options=request.elsewhere_options,
        class_changes=changes_by_candidate(answers, specs, known, labels),
    )
    if not request.stages:
        return found
    return replace(found, diagnosis=_explained(bundle, found, sample.files, progress))


def _explained(
    bundle: Bundle, found: Verification, files: Mapping[str, ImageFile], progress: Progress
) -> Diagnosis:
    """Find the change that explains each candidate that failed."""
    from deploykit.commands.diagnose.stages.elsewhere import MOST_IMAGES, explain_answers

    explanations = []
    names = found.answers.paths
    place_of = {name: place for place, name in enumerate(names)}
    for verdict, logits in zip(found.verdicts, found.answers.candidates, strict=True):
        if not verdict.failed or verdict.measurement.non_finite:
            continue
        flipped = [flip.path for flip in verdict.measurement.flipped][: MOST_IMAGES // 2]
        drawn = sample_with([files[name] for name in names], flipped, MOST_IMAGES)
        rows = [place_of[file.name] for file in drawn]
        explanations.append(
            explain_answers(bundle, verdict.candidate, drawn, logits[rows], progress)
        )
    return Diagnosis(explanations=tuple(explanations))


def _opened(
    bundle: Bundle, request: VerifyRequest, stack: ExitStack, progress: Progress
) -> tuple[ImageSample, list[Session], TableMatch | None, str]:
    """The images, what answers, how a table fits them, and what speaks against a server's labels.

    Raises:
        DeploykitError: See :func:`deploykit.verify`.
    """
    if request.against is not None:
        sample, table = _table_sample(bundle, request, request.against, progress)
        stack.callback(sample.close)
        return sample, [table], table.match, ""
    sample = request.sample_of(bundle, progress)
    stack.callback(sample.close)
    sessions, mislabelled = open_server_candidates(bundle, request, sample, stack, progress)
    return sample, sessions, None, mislabelled


def _table_sample(
    bundle: Bundle, request: VerifyRequest, path: Path, progress: Progress
) -> tuple[ImageSample, TableSession]:
    """The photos that a table has an answer to, and the table.

    Raises:
        DeploykitError: See :func:`deploykit.commands.verify.table.read_tool_table`.
    """
    manifest = bundle.manifest
    scan = listed_images(bundle, request.images, progress)
    table = read_tool_table(path, manifest.labels, scan, progress)
    files = [file for file in scan.files if file.name in table.chosen]
    if request.max_images is not None:
        files = sample_images(files, request.max_images)
    known = known_classes(scan, manifest.labels, request.expected, progress)
    session = TableSession(
        table,
        manifest.labels,
        request.precision or "fp32",
        manifest.preprocessing.input_size,
    )
    return read_sample(scan.path, files, manifest.preprocessing, known), session


def _calibration(bundle: Bundle, precision: Precision | None) -> frozenset[str]:
    """The images that had a part in making the graphs that a server of a precision may run."""
    if precision in (None, "fp32"):
        return frozenset()
    graphs = (file for file in bundle.manifest.searches if precision in file)
    return bundle.manifest.calibration_images(graphs)


def _kept(batches: Iterable[NamedBatch], first: list[NamedBatch]) -> Iterator[NamedBatch]:
    """The same batches; the first few images are kept, to be sent again."""
    count = 0
    for names, images in batches:
        if count < OPT_BATCH_SIZE and len(names):
            first.append((list(names), images.copy()))  # the buffer behind them is used again
            count += len(names)
        yield names, images
