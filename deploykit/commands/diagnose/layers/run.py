"""The diagnosis by layer of a bundle's deploy graphs: which node adds the error."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.layers.measure import Subject, graph_origin
from deploykit.commands.diagnose.layers.report import DIAGNOSED_IMAGES, layer_report
from deploykit.commands.diagnose.request import DiagnosisRequest
from deploykit.errors import MissingError, UsageError
from deploykit.images.scan import sample_with
from deploykit.inference.candidates import (
    Candidate,
    by_reason,
    named_candidates,
    open_candidate,
)
from deploykit.parity.diagnosis import LayerReport
from deploykit.proof.images import bundle_sample, listed_images, read_sample
from deploykit.runtime.opener import CPU, CUDA, OPENVINO, REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import ImageBatch
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress, Step, silent

_FUSED = "nodes are fused there, and no tensor between them is handed out"
#: Some of those that are read may be duplicates, or unreadable.
_READ_FOR_EACH = 4


def layer_candidates(
    bundle: Bundle, runtime: str | None, precision: Precision | None, progress: Progress
) -> list[Candidate]:
    """The graphs that are meant, on runtimes that hand out the tensors between nodes.

    Args:
        bundle: The bundle.
        runtime: What executes; None for every one.
        precision: Of the graphs; None for every one.
        progress: Told what is skipped.

    Raises:
        UsageError: There is no such runtime or precision, or what computes in it hands out no
            tensor between nodes; the hint says what does.
        BundleError: The bundle has nothing of that kind.
    """

    def fuses(name: str) -> bool:
        return is_flavour(name) or name == OPENVINO

    named: list[Candidate] = []
    if runtime is None or not fuses(runtime):
        named = named_candidates(bundle, runtime, precision, progress)
    found = [each for each in named if not fuses(each.runtime)]
    if not found:
        raise UsageError(
            f"{runtime or named[0].runtime} fuses nodes and hands out no tensor between them, so "
            "no node can be diagnosed.",
            hint=f"Diagnose the graph: --runtime {REHEARSAL} for FP16, {CPU} for FP32 and INT8; "
            f"for BF16 --runtime {CPU}, without --precision. What the runtime adds is the last row "
            "of --stages.",
        )
    for line in by_reason([(each, _FUSED) for each in named if fuses(each.runtime)]):
        progress(Note(f"skipped: {line}"))
    if runtime is None and find_gpu() is None:  # which needs no note
        found = [each for each in found if each.runtime != CUDA]
    return found


def diagnose_layers(
    bundle: Bundle, request: DiagnosisRequest | None = None, progress: Progress = silent
) -> tuple[LayerReport, ...]:
    """Find the nodes of a bundle's deploy graphs that add the error, each against its origin.

    ``deploy/fp32.onnx`` is compared with the canonical graph, and the graphs of lower precision
    with ``deploy/fp32.onnx``.

    Args:
        bundle: The bundle.
        request: What to diagnose.
        progress: Called with what is being done.

    Returns:
        A report for each graph and runtime. A fault is a result, not an exception.

    Raises:
        UsageError: A runtime or precision that makes no sense, or that hands out no tensor
            between its nodes.
        BundleError: A file of the bundle is missing or damaged.
        InputError: The images cannot be used.
        MissingError: The runtime needs a package or a device that is not here.
    """
    from deploykit.graph.files import load_graph
    from deploykit.graph.rehearsal import rehearsal_of

    request = request or DiagnosisRequest()
    candidates = layer_candidates(bundle, request.runtime, request.precision, progress)
    limit = min(request.max_images or DIAGNOSED_IMAGES, DIAGNOSED_IMAGES)
    images = drawn_images(bundle, request.images, request.first, limit, progress)
    preprocessing = bundle.manifest.preprocessing
    reports: list[LayerReport] = []
    skipped: list[tuple[Candidate, MissingError]] = []
    for candidate in candidates:
        progress(Step("diagnosing", detail=str(candidate)))
        try:
            with open_candidate(bundle, candidate) as session:
                spec = session.spec
        except MissingError as exc:
            skipped.append((candidate, exc))
            continue
        graph = load_graph(bundle.checked(candidate.file))
        executed = rehearsal_of(graph) if candidate.runtime == REHEARSAL else graph
        subject = Subject(spec, graph, executed, preprocessing)
        name = CANONICAL_GRAPH if candidate.precision == "fp32" else bundle.deploy_graph("fp32")
        made_from = load_graph(bundle.checked(name))
        with graph_origin(made_from, preprocessing, f"{name} on {CPU}") as origin:
            reports.append(layer_report(subject, origin, images))
    if not reports:
        raise skipped[0][1]
    for line in by_reason([(candidate, reason.message) for candidate, reason in skipped]):
        progress(Note(f"skipped: {line}"))
    return tuple(reports)


def drawn_images(
    bundle: Bundle, images: Path | None, first: Sequence[str], limit: int, progress: Progress
) -> ImageBatch:
    """Read images, without duplicates.

    Args:
        bundle: The bundle.
        images: A folder; None for the one recorded at export while it is there, else the golden
            images.
        first: Names of images that come before any other; unknown names are ignored.
        limit: How many images at most.
        progress: Called with what is being done.

    Returns:
        (N, H, W, 3) uint8.

    Raises:
        ImagesError: There is no image, or none can be read.
    """
    try:
        folder = listed_images(bundle, images, progress)
    except UsageError:  # no folder is known: the golden images are there always
        sample = bundle_sample(bundle, images, limit=limit, progress=progress)
    else:
        wanted = sample_with(folder.files, first, _READ_FOR_EACH * limit)
        sample = read_sample(folder.path, wanted, bundle.manifest.preprocessing)
    drawn = [batch.copy() for _, batch in sample]  # the buffer behind them is reused
    sample.drawn()  # refuses to go on without any
    return np.concatenate(drawn)[:limit]
