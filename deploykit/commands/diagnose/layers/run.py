"""The diagnosis by layer of a bundle's graphs: which node adds the error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.layers.candidates import layer_candidates
from deploykit.commands.diagnose.layers.measure import Subject, graph_origin, module_origin
from deploykit.commands.diagnose.layers.photos import drawn_images
from deploykit.commands.diagnose.layers.report import DIAGNOSED_IMAGES, layer_report
from deploykit.errors import GraphError, MissingError, UsageError
from deploykit.inference.candidates import Candidate, by_reason, open_candidate
from deploykit.parity.diagnosis import LayerReport
from deploykit.proof.reference import OpenReference, ReferenceRequest, open_reference
from deploykit.runtime.opener import CPU, CUDA, REHEARSAL, module_of
from deploykit.specs.model import Precision
from deploykit.specs.session import ImageBatch
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress, Step, silent

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class LayersRequest:
    """What to diagnose.

    Attributes:
        images: A folder; None for the one recorded at export while it is there, else the golden
            images.
        runtime: What executes; None for every runtime that can run here.
        precision: Of the deploy graphs; None for every one.
        reference: The torch module that the canonical graph is compared with. With a runtime or a
            precision that graph is skipped, unless the user named the module.
        max_images: At most so many images, and never more than
            :data:`~deploykit.commands.diagnose.layers.report.DIAGNOSED_IMAGES`.
        first: Names of images to take before any other, such as those that flipped.
    """

    images: Path | None = None
    runtime: str | None = None
    precision: Precision | None = None
    reference: ReferenceRequest = field(default_factory=ReferenceRequest)
    max_images: int | None = None
    first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise UsageError(f"At least 1 image is needed, not {self.max_images}.")

    @property
    def includes_canonical(self) -> bool:
        """Whether the canonical graph is meant too."""
        return (self.runtime, self.precision) == (None, None) or self.reference.named


def diagnose_layers(
    bundle: Bundle,
    request: LayersRequest | None = None,
    progress: Progress = silent,
    *,
    reference: OpenReference | None = None,
) -> tuple[LayerReport, ...]:
    """Find the nodes of a bundle's graphs that add the error, each graph against its origin.

    The canonical graph is compared with its torch module, ``deploy/fp32.onnx`` with the canonical
    graph, and those of lower precision with ``deploy/fp32.onnx``.

    Args:
        bundle: The bundle.
        request: What to diagnose.
        progress: Called with what is being done.
        reference: What ``request.reference`` names, open already; it stays open. None to open it
            where it is needed.

    Returns:
        A report for each graph and runtime. A fault is a result, not an exception.

    Raises:
        UsageError: A runtime or precision that makes no sense, or that hands out no tensor
            between its nodes.
        BundleError: A file of the bundle is missing or damaged.
        InputError: The images, or a checkpoint that was named, cannot be used.
        MissingError: The runtime needs a package or a device that is not here.
    """
    request = request or LayersRequest()
    candidates = layer_candidates(bundle, request.runtime, request.precision, progress)
    limit = min(request.max_images or DIAGNOSED_IMAGES, DIAGNOSED_IMAGES)
    images = drawn_images(bundle, request.images, request.first, limit, progress)
    with ExitStack() as stack:
        reports: list[LayerReport] = []
        if request.includes_canonical:
            if reference is None:
                reference = open_reference(bundle, request.reference, progress)
                stack.enter_context(reference.session)
            if reference.kind == "module":
                reports += _canonical_report(bundle, reference, images, progress)
        return (*reports, *_deploy_reports(bundle, candidates, images, progress))


def _canonical_report(
    bundle: Bundle, reference: OpenReference, images: ImageBatch, progress: Progress
) -> Iterator[LayerReport]:
    """Compare the canonical graph with the module, where the module can be traced as it was."""
    manifest = bundle.manifest
    exported, here = manifest.versions.get("torch"), version("torch")
    if exported != here:
        why = f"torch {exported} exported it, and torch {here} may name its nodes otherwise"
        progress(Note(f"skipped: {CANONICAL_GRAPH}: {why}"))
        return
    progress(Step("diagnosing", detail=CANONICAL_GRAPH))
    try:
        origin = module_origin(
            module_of(reference.session),
            manifest.preprocessing,
            reference.description,
            opset=manifest.opset,
        )
    except GraphError as exc:
        progress(Note(f"skipped: {CANONICAL_GRAPH}: {exc.message}"))
        return
    candidate = Candidate(CANONICAL_GRAPH, CPU, "fp32")
    yield layer_report(_subject(bundle, candidate), origin, images)


def _deploy_reports(
    bundle: Bundle, candidates: list[Candidate], images: ImageBatch, progress: Progress
) -> Iterator[LayerReport]:
    """Compare deploy graphs with what they were made from; never one with itself."""
    skipped: list[tuple[Candidate, MissingError]] = []
    for candidate in candidates:
        name = CANONICAL_GRAPH if candidate.precision == "fp32" else bundle.deploy_graph("fp32")
        progress(Step("diagnosing", detail=str(candidate)))
        try:
            subject = _subject(bundle, candidate)
        except MissingError as exc:
            skipped.append((candidate, exc))
            continue
        graph, preprocessing = _graph(bundle, name), bundle.manifest.preprocessing
        with graph_origin(graph, preprocessing, f"{name} on {CPU}") as origin:
            yield layer_report(subject, origin, images)
    if len(skipped) == len(candidates) > 0:
        raise skipped[0][1]
    told = [
        (candidate, reason.message)
        for candidate, reason in skipped
        if candidate.runtime != CUDA or find_gpu() is not None
    ]
    for line in by_reason(told):
        progress(Note(f"skipped: {line}"))


def _subject(bundle: Bundle, candidate: Candidate) -> Subject:
    from deploykit.graph.rehearsal import rehearsal_of

    with open_candidate(bundle, candidate) as session:  # tells what is missing here
        spec = session.spec
    graph = _graph(bundle, candidate.file)
    executed = rehearsal_of(graph) if candidate.runtime == REHEARSAL else graph
    return Subject(spec, graph, executed, bundle.manifest.preprocessing)


def _graph(bundle: Bundle, file: str) -> ir.Model:
    from deploykit.graph.files import load_graph

    return load_graph(bundle.checked(file))
