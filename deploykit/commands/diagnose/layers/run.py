"""Blame by layer: the node where a graph leaves its reference, and what each node adds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.layers.answers import Answered
from deploykit.commands.diagnose.layers.batches import batch_trouble, with_batch_trouble
from deploykit.commands.diagnose.layers.candidates import layer_candidates
from deploykit.commands.diagnose.layers.modules import walk_canonical
from deploykit.commands.diagnose.layers.photos import Sample, drawn_sample
from deploykit.commands.diagnose.layers.pieces import Subject
from deploykit.commands.diagnose.layers.report import graph_report
from deploykit.errors import GraphError, MissingError, UsageError
from deploykit.inference.candidates import Candidate, by_reason, open_candidate
from deploykit.parity.diagnosis import LayerReport
from deploykit.proof.reference import OpenReference, ReferenceRequest, open_reference
from deploykit.runtime.opener import CPU, CUDA, REHEARSAL, open_module_probe, open_probe
from deploykit.specs.precision import Precision
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.gpu import find_gpu
from deploykit.system.progress import Note, Progress, Step, silent

if TYPE_CHECKING:
    import onnx_ir as ir

WALKED_IMAGES = 4
_SAMPLED_IMAGES = 16
_MODULE = "the torch module"
_REFERENCE_BATCH = 8


@dataclass(frozen=True)
class LayersRequest:
    """What to look into.

    Attributes:
        images: A folder of photos; None for the one recorded at export while it is there, else the
            golden images.
        runtime: What executes; None for every runtime that can run here.
        precision: Of the deploy graphs; None for every one.
        reference: The torch module that the canonical graph is compared with. With a runtime or a
            precision that graph is left out, unless the user named the module.
        max_images: At most so many photos are looked at, and never more than 16; the
            :data:`WALKED_IMAGES` of them whose answers are furthest off are walked.
        first: Names of photos to walk before any other, such as those that changed their class;
            others' names are left out.
    """

    images: Path | None = None
    runtime: str | None = None
    precision: Precision | None = None
    reference: ReferenceRequest = field(default_factory=ReferenceRequest)
    max_images: int | None = None
    first: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.max_images is not None and self.max_images < 1:
            raise UsageError(f"At least 1 image must be walked, not {self.max_images}.")

    @property
    def looks_at_module(self) -> bool:
        """Whether the canonical graph is meant too."""
        return (self.runtime, self.precision) == (None, None) or self.reference.named


def walk_layers(
    bundle: Bundle,
    request: LayersRequest | None = None,
    progress: Progress = silent,
    *,
    reference: OpenReference | None = None,
) -> tuple[LayerReport, ...]:
    """Find the nodes of a bundle's graphs that are to blame, each graph by what it was made from.

    The canonical graph is compared with its torch module, ``deploy/fp32.onnx`` with the canonical
    graph, and those of lower precision with ``deploy/fp32.onnx``, all on ONNX Runtime's CPU
    provider.

    Args:
        bundle: The bundle.
        request: What to look into.
        progress: Called with what is being done.
        reference: What ``request.reference`` names, open already; it stays open. None to open it
            where it is needed.

    Returns:
        A report for each graph and runtime. A fault is a result, not an exception.

    Raises:
        UsageError: A runtime or precision that makes no sense, or that hands out no tensor
            between its nodes.
        BundleError: A file of the bundle is missing or damaged.
        InputError: The photos, or a checkpoint that was named, cannot be used.
        MissingError: The runtime needs a package or a device that is not here.
    """
    request = request or LayersRequest()
    candidates = layer_candidates(bundle, request.runtime, request.precision, progress)
    limit = min(request.max_images or _SAMPLED_IMAGES, _SAMPLED_IMAGES)
    sample = drawn_sample(bundle, request.images, request.first, limit, progress)
    walk = _Walk(bundle, sample, progress)
    reports = []
    with ExitStack() as stack:
        if reference is None and request.looks_at_module:
            reference = open_reference(bundle, request.reference, progress)
            stack.enter_context(reference.session)
        if reference is not None and reference.kind == "module":
            walk.ask(reference)
            if request.looks_at_module:
                reports.append(walk.canonical(reference))
    return (*reports, *walk.deployed(candidates))


class _Walk:
    """Walks over the graphs of one bundle, on the same photos.

    Args:
        bundle: The bundle.
        sample: The photos. The worst of them are walked.
        progress: Called with what is being done.
    """

    def __init__(self, bundle: Bundle, sample: Sample, progress: Progress) -> None:
        self._bundle = bundle
        self._sample = sample
        self._progress = progress
        self._known: dict[str, Logits] = {}

    def ask(self, reference: OpenReference) -> None:
        """Hold every graph's answers against those of the module as well."""
        images = self._sample.images
        self._known[_MODULE] = np.concatenate(
            [
                reference.session.run(images[i : i + _REFERENCE_BATCH])
                for i in range(0, len(images), _REFERENCE_BATCH)
            ]
        )

    def canonical(self, reference: OpenReference) -> LayerReport:
        """Compare the canonical graph with the module, which was asked."""
        graph = self._canonical_graph()
        answered = self._answered(Candidate(CANONICAL_GRAPH, CPU, "fp32"))
        subject = Subject(answered.spec, graph, graph)
        expected = self._known[_MODULE]
        module = open_module_probe(reference.session)
        worst = self._worst(answered, expected)
        report = walk_canonical(
            self._bundle, subject, module, reference.description, worst, self._progress
        )
        return self._completed(report, subject, answered, expected)

    def deployed(self, candidates: list[Candidate]) -> Iterator[LayerReport]:
        """Compare deploy graphs with what they were made from; never one with itself."""
        left_out: list[tuple[Candidate, MissingError]] = []
        for candidate in candidates:
            try:
                answered = self._answered(candidate)
            except MissingError as exc:
                left_out.append((candidate, exc))
                continue
            yield self._deployed(candidate, answered)
        if len(left_out) == len(candidates) > 0:
            raise left_out[0][1]
        told = [
            (candidate, obstacle.message)
            for candidate, obstacle in left_out
            if candidate.runtime != CUDA or find_gpu() is not None
        ]
        for line in by_reason(told):
            self._progress(Note(f"left out: {line}"))

    def _deployed(self, candidate: Candidate, answered: Answered) -> LayerReport:
        from deploykit.graph.differences import nearest
        from deploykit.graph.rehearsal import rehearsal_of

        graph, made = self._graph(candidate.file), None
        executed = rehearsal_of(graph) if candidate.runtime == REHEARSAL else graph
        subject = Subject(answered.spec, graph, executed)
        if candidate.precision == "fp32":
            reference, name = self._canonical_graph(), CANONICAL_GRAPH
            # An older bundle was made by other passes.
            made = nearest(graph, (self._rewritten_graph(), reference))
        else:
            name = self._bundle.deploy_graph("fp32")
            reference = self._graph(name)
        self._progress(Step("walking over the nodes", detail=str(candidate)))
        expected = self._expected(name, reference)
        worst = self._worst(answered, expected)
        report = graph_report(subject, reference, f"{name} on {CPU}", worst, made=made)
        return self._completed(report, subject, answered, expected)

    def _answered(self, candidate: Candidate) -> Answered:
        """Run a candidate as it is deployed, and close it: the walk opens the graph otherwise."""
        with open_candidate(self._bundle, candidate) as session:
            try:
                answers = np.concatenate(
                    [session.run(image[None]) for image in self._sample.images]
                )
            except GraphError as exc:
                self._progress(Note(f"no answer: {exc.message.strip()}"))
                return Answered(session.spec)
            trouble = batch_trouble(session, self._sample.images, answers)
            return Answered(session.spec, answers, trouble)

    def _completed(
        self, report: LayerReport, subject: Subject, answered: Answered, expected: Logits
    ) -> LayerReport:
        """Add what no walk over single nodes on single images shows."""
        if answered.trouble is not None:
            report = with_batch_trouble(report, subject, self._sample.images, answered.trouble)
        unknown = int((~np.isfinite(expected).all(axis=1)).sum())
        if unknown:
            message = (
                f"the reference answers NaN or infinity to {unknown} of {len(expected)} images, "
                "with which nothing can be compared"
            )
            return msgspec.structs.replace(report, differences=(*report.differences, message))
        if not report.passed:
            return report
        doubt = self._unexplained(answered, expected)
        return msgspec.structs.replace(report, differences=(doubt,)) if doubt else report

    def _unexplained(self, answered: Answered, expected: Logits) -> str | None:
        """What is wrong with answers although every node is right."""
        origin = self._known.get(_MODULE)
        if origin is None:
            origin = self._expected(CANONICAL_GRAPH, self._canonical_graph())
        labels = self._bundle.manifest.labels
        if objection := answered.objection(expected, self._sample, labels):
            return (
                f"{objection}, and no node alone is to blame: it adds up, or comes from how the "
                "runtime fuses nodes"
            )
        if objection := answered.objection(origin, self._sample, labels):
            return (
                f"{objection}, but not against the graph that this one was made from: that one "
                "is to blame"
            )
        return None

    def _worst(self, answered: Answered, expected: Logits) -> ImageBatch:
        """The images to walk: those that were named, then those whose answers are furthest off."""
        rows = answered.by_error(expected, self._sample.named)[:WALKED_IMAGES]
        return self._sample.images[rows]

    def _expected(self, name: str, graph: ir.Model) -> Logits:
        """What a graph, which takes bytes, answers on the CPU; computed once."""
        from deploykit.graph.instruments import model_bytes
        from deploykit.graph.preprocessing import DEPLOY_INPUT

        if name not in self._known:
            with open_probe(model_bytes(graph)) as probe:
                answers = [
                    next(iter(probe.run({DEPLOY_INPUT: image[None]}).values()))
                    for image in self._sample.images
                ]
            self._known[name] = np.concatenate(answers)
        return self._known[name]

    def _canonical_graph(self) -> ir.Model:
        """The canonical graph with its preprocessing, so that it takes what deploy graphs take."""
        from deploykit.graph import passes
        from deploykit.graph.preprocessing import fuse_preprocessing

        preprocessing = self._bundle.manifest.preprocessing
        return passes.apply(self._graph(CANONICAL_GRAPH), [fuse_preprocessing(preprocessing)])

    def _rewritten_graph(self) -> ir.Model:
        """What the passes make of the canonical graph."""
        from deploykit.graph.deploy import apply_deploy_passes

        preprocessing = self._bundle.manifest.preprocessing
        return apply_deploy_passes(self._graph(CANONICAL_GRAPH), preprocessing)

    def _graph(self, file: str) -> ir.Model:
        from deploykit.graph.files import load_graph

        return load_graph(self._bundle.checked(file))
