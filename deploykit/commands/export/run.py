"""Export: a checkpoint becomes a bundle, verified before it is published."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from deploykit.bundle.folder import (
    CANONICAL_GRAPH,
    GOLDEN,
    Bundle,
    check_bundle_name,
    check_free,
    deploy_graph,
    new_bundle,
    open_bundle,
)
from deploykit.bundle.golden import write_golden
from deploykit.bundle.manifest import (
    SCHEMA,
    ArchitectureRecord,
    CheckpointRecord,
    Manifest,
    printable,
    record_file,
    write_manifest,
)
from deploykit.bundle.verdicts import PhotoSet
from deploykit.commands.export.failed import failed_export
from deploykit.commands.export.request import (
    ExportRequest,
    Subject,
    choose_photos,
    default_name,
    load_subject,
    photos_folder,
)
from deploykit.commands.export.steps import (
    REFERENCE,
    GraphSpecs,
    answer,
    canonical_graph,
    open_candidates,
    open_module_of,
    verify,
    write_graphs,
)
from deploykit.parity.compare import batch_sizes, regroup
from deploykit.proof.reference import Reference
from deploykit.proof.verdict import Verdict, kept_verdict
from deploykit.specs.model import Precision
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import now


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
        ParityError: The exported graphs do not give the reference's answers. They are kept in
            ``.failed``, and the message names the node at fault.
        DependencyError: torch or onnx is not installed.
    """
    clock = _Clock(progress)
    folder = request.artifacts / check_bundle_name(_name(request))
    check_free(folder, overwrite=request.overwrite)
    clock.start("loading the checkpoint")
    subject = load_subject(request, progress)
    photos = choose_photos(request, subject, progress)
    drawn = [(names, images.copy()) for names, images in photos]
    photo_set = photos.drawn()
    if photos.unreadable:
        progress(Note(f"{photos.unreadable} of {photos.count} photos cannot be read: left out"))
    groups = list(regroup(drawn, batch_sizes(photo_set.images)))
    with (
        new_bundle(folder, overwrite=request.overwrite) as staging,
        ExitStack() as stack,
        ThreadPoolExecutor(max_workers=1) as background,
    ):
        clock.start("exporting")
        graph = canonical_graph(request, subject)
        # Opened here: some Pythons 3.11 fail when two threads compile what they import.
        reference = stack.enter_context(open_module_of(subject))
        # torch is free now and computes outside the interpreter's lock, so the reference answers
        # while the graphs are written and opened, which is one thread's work.
        pending = background.submit(answer, reference, groups, request.golden)
        specs = write_graphs(staging, graph, subject)
        clock.start("comparing")
        candidates = open_candidates(staging, subject, stack)
        answers = pending.result()
        verdicts = verify(reference, candidates, answers, groups, photo_set.kind, subject, progress)
        module = Reference(kind="module", description=REFERENCE)
        stack.close()  # a graph that is open cannot be moved on Windows
        if not all(verdict.passed for verdict in verdicts):
            raise failed_export(
                staging, folder, request, subject, groups, answers, verdicts, progress
            )
        clock.start("writing")
        write_golden(answers.golden, staging / GOLDEN)
        manifest = _manifest(staging, folder.name, request, subject, specs)
        write_manifest(staging, _with_verdicts(manifest, verdicts, module, photo_set))
    return ExportResult(open_bundle(folder), verdicts, photo_set, clock.stop())


def _name(request: ExportRequest) -> str:
    return default_name(request.arch) if request.name is None else request.name


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


def _with_verdicts(
    manifest: Manifest, verdicts: Sequence[Verdict], reference: Reference, photos: PhotoSet
) -> Manifest:
    for verdict in verdicts:
        sha256 = manifest.files[verdict.candidate.graph].sha256
        manifest = manifest.with_verdict(kept_verdict(verdict, sha256, reference, photos))
    return manifest


def _manifest(
    staging: Path,
    name: str,
    request: ExportRequest,
    subject: Subject,
    specs: GraphSpecs,
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
            path=printable(request.checkpoint.resolve()),
            sha256=subject.checkpoint_sha256,
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
        photos=None if folder is None else printable(folder.resolve()),
        verdicts=(),
        versions=installed_versions(),
        requested_opset=request.opset,
        golden=request.golden,
    )
