"""Export: a checkpoint becomes a bundle, verified before it is published."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bundle import (
    CANONICAL_GRAPH,
    GOLDEN,
    Bundle,
    check_bundle_name,
    check_free,
    deploy_graph,
    new_bundle,
    open_bundle,
)
from deploykit.errors import ParityError
from deploykit.jobs.export_request import (
    ExportRequest,
    Subject,
    choose_photos,
    default_name,
    load_subject,
    photos_folder,
)
from deploykit.jobs.photos import (
    GOLDEN_IMAGES,
    Golden,
    choose_golden,
    generated_photos,
    write_golden,
)
from deploykit.jobs.verdicts import Verdict, installed_versions, judge_sessions, now, proof_of
from deploykit.manifest import (
    SCHEMA,
    ArchitectureRecord,
    CheckpointRecord,
    Manifest,
    record_file,
    sha256_of,
    write_manifest,
)
from deploykit.parity.compare import NamedBatch
from deploykit.progress import Note, Progress, Step, silent
from deploykit.proofs import PhotoSet
from deploykit.runtime.opener import open_graph, open_module
from deploykit.session import Session
from deploykit.specs import Precision, TensorSpec

if TYPE_CHECKING:
    pass

REFERENCE = "torch module from the checkpoint"
_RUNTIME = "onnxruntime-cpu"


@dataclass(frozen=True)
class ExportResult:
    """A published bundle, and what its verification found.

    Attributes:
        bundle: The bundle.
        verdicts: One for the canonical graph and one for each deploy graph.
        photos: What they were measured on.
        seconds: How long each stage took.
    """

    bundle: Bundle
    verdicts: tuple[Verdict, ...]
    photos: PhotoSet
    seconds: dict[str, float]


def export_bundle(request: ExportRequest, progress: Progress = silent) -> ExportResult:
    """Export a checkpoint to a bundle and prove that it still gives the same answers.

    Args:
        request: What to export.
        progress: Called with what is being done and what was assumed.

    Raises:
        UsageError: Options that make no sense.
        InputError: The architecture, the checkpoint or the photos cannot be used, the network
            cannot be exported, or there is a bundle of that name.
        ParityError: The exported graphs do not give the reference's answers.
        DependencyError: torch or onnx is not installed.
    """
    clock = _Clock(progress)
    folder = request.artifacts / check_bundle_name(request.name or default_name(request.arch))
    check_free(folder, overwrite=request.overwrite)
    clock.start("loading the checkpoint")
    subject = load_subject(request, progress)
    photos = choose_photos(request, subject, progress)
    drawn = [(names, images.copy()) for names, images in photos]
    photo_set = photos.drawn()
    if photos.unreadable:
        progress(Note(f"{photos.unreadable} of {photos.count} photos cannot be read: left out"))
    with new_bundle(folder, overwrite=request.overwrite) as staging:
        clock.start("exporting")
        specs = _write_graphs(staging, request, subject)
        clock.start("comparing")
        verdicts, golden = _verify(staging, request, subject, drawn, progress)
        clock.start("writing")
        write_golden(golden, staging / GOLDEN)
        manifest = _manifest(staging, folder.name, request, subject, specs)
        for verdict in verdicts:
            graph = verdict.candidate.graph
            proof = proof_of(
                verdict,
                graph_sha256=manifest.files[graph].sha256,
                reference=REFERENCE,
                photos=photo_set,
            )
            manifest = manifest.with_proof(proof)
        write_manifest(staging, manifest)
    return ExportResult(open_bundle(folder), verdicts, photo_set, clock.stop())


class _Clock:
    """Tells which stage begins, and how long each took."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._seconds: dict[str, float] = {}
        self._stage: str | None = None
        self._since = time.perf_counter()

    def start(self, stage: str) -> None:
        self.stop()
        self._stage = stage
        self._progress(Step(stage))

    def stop(self) -> dict[str, float]:
        now = time.perf_counter()
        if self._stage is not None:
            self._seconds[self._stage] = round(now - self._since, 3)
        self._since = now
        return self._seconds


@dataclass(frozen=True)
class _GraphSpecs:
    canonical_input: TensorSpec
    deploy_input: TensorSpec
    output: TensorSpec
    opset: int


def _write_graphs(staging: Path, request: ExportRequest, subject: Subject) -> _GraphSpecs:
    """Write the canonical graph and, from it, the FP32 deploy graph."""
    from deploykit.graph import passes
    from deploykit.graph.export import onnx_from_module
    from deploykit.graph.files import opset_of, save_graph, tensor_specs
    from deploykit.graph.preprocessing import fuse_preprocessing

    preprocessing, labels = subject.preprocessing, subject.labels
    graph = onnx_from_module(subject.model.module, preprocessing.input_size, opset=request.opset)
    canonical_input, output = tensor_specs(graph)
    save_graph(graph, staging / CANONICAL_GRAPH, labels=labels, preprocessing=preprocessing)
    graph = passes.apply(graph, [fuse_preprocessing(preprocessing)])
    deploy_input, _ = tensor_specs(graph)
    deploy = staging / deploy_graph("fp32")
    deploy.parent.mkdir()
    save_graph(graph, deploy, labels=labels, preprocessing=preprocessing)
    return _GraphSpecs(canonical_input, deploy_input, output, opset_of(graph))


def _verify(
    staging: Path,
    request: ExportRequest,
    subject: Subject,
    drawn: Sequence[NamedBatch],
    progress: Progress,
) -> tuple[tuple[Verdict, ...], Golden]:
    """Compare both graphs with the module, and choose the golden images on the way."""
    preprocessing, classes = subject.preprocessing, subject.model.num_classes
    with ExitStack() as stack:
        reference = stack.enter_context(
            open_module(subject.model.module, preprocessing=preprocessing, classes=classes)
        )
        candidates = [
            stack.enter_context(
                open_graph(
                    staging / name,
                    name=name,
                    runtime=_RUNTIME,
                    precision="fp32",
                    preprocessing=preprocessing,
                    classes=classes,
                )
            )
            for name in (CANONICAL_GRAPH, deploy_graph("fp32"))
        ]
        count = sum(len(names) for names, _ in drawn)
        comparison, verdicts = judge_sessions(
            reference, candidates, drawn, count, subject.labels, progress
        )
        _require_passed(verdicts)
        if request.golden == "photos":
            images = np.concatenate([images for _, images in drawn])
            return verdicts, choose_golden(images, comparison.reference)
        return verdicts, _generated_golden(reference)


def _generated_golden(reference: Session) -> Golden:
    photos = generated_photos(GOLDEN_IMAGES, reference.spec.input_size)
    ((_, images),) = photos
    return Golden(images, reference.run(images))


def _require_passed(verdicts: Sequence[Verdict]) -> None:
    failed = [
        f"{verdict.candidate.graph}: {'; '.join(verdict.objections)}"
        for verdict in verdicts
        if not verdict.passed
    ]
    if failed:
        raise ParityError(
            "The exported model does not give the checkpoint's answers, so nothing was "
            "published.\n" + "\n".join(failed)
        )


def _manifest(
    staging: Path,
    name: str,
    request: ExportRequest,
    subject: Subject,
    specs: _GraphSpecs,
) -> Manifest:
    folder = photos_folder(request)
    deploy: dict[Precision, str] = {"fp32": deploy_graph("fp32")}
    files = (CANONICAL_GRAPH, *deploy.values(), GOLDEN)
    return Manifest(
        schema=SCHEMA,
        name=name,
        created=now(),
        architecture=ArchitectureRecord(
            name=subject.architecture.name,
            origin=subject.architecture.origin,
            args=dict(request.arch_args),
            classes=subject.model.num_classes,
            parameters=subject.model.parameters,
        ),
        checkpoint=CheckpointRecord(
            path=str(request.checkpoint.resolve()),
            sha256=sha256_of(request.checkpoint),
            trusted_pickle=request.trust_pickle,
        ),
        labels=subject.labels,
        preprocessing=subject.preprocessing,
        canonical_input=specs.canonical_input,
        deploy_input=specs.deploy_input,
        output=specs.output,
        opset=specs.opset,
        deploy=deploy,
        files={file: record_file(staging / file) for file in files},
        photos=None if folder is None else str(folder.resolve()),
        proofs=(),
        versions=installed_versions(),
    )
