"""Export: a checkpoint becomes a bundle, verified before it is published."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

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
from deploykit.bundle.golden import GOLDEN_IMAGES, Golden, choose_golden, write_golden
from deploykit.bundle.manifest import (
    SCHEMA,
    ArchitectureRecord,
    CheckpointRecord,
    Manifest,
    printable,
    record_file,
    write_manifest,
)
from deploykit.bundle.verdicts import ImageSet
from deploykit.commands.diagnose.layers.failed import failure_lines
from deploykit.commands.export.embeddings import (
    embedding_similarity,
    embeddings_graph,
    with_embeddings,
    write_embeddings,
)
from deploykit.commands.export.request import ExportRequest, Subject, default_name, load_subject
from deploykit.errors import ModelError, ParityError
from deploykit.parity.compare import NamedBatch, batch_sizes, regroup
from deploykit.proof.extremes import answer_extremes, judge_extremes
from deploykit.proof.images import EXPORT_IMAGES, ImageSample, folder_sample, generated_sample
from deploykit.proof.reference import Reference
from deploykit.proof.text import uniform_text
from deploykit.proof.verdict import Verdict, judge_sessions, kept_verdict
from deploykit.runtime.opener import CPU, open_graph, open_module
from deploykit.specs.session import ImageBatch, Logits, Session
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import now

if TYPE_CHECKING:
    import onnx_ir as ir

_DEPLOY_GRAPH = deploy_graph("fp32")
#: Of a probability, between an activation in the network and the same one on the graph's logits.
_LARGEST_ACTIVATION_ERROR = 1e-4


@dataclass(frozen=True)
class ExportResult:
    """A published bundle, and what its verification found.

    Attributes:
        bundle: The bundle.
        verdicts: One for the canonical graph and one for each deploy graph.
        images: What they were measured on.
        activation_error: The most by which a probability of the FP32 deploy graph is off from what
            the network answers itself; None where that answers with logits.
        seconds: How long each stage took.
    """

    bundle: Bundle
    verdicts: tuple[Verdict, ...]
    images: ImageSet
    activation_error: float | None
    seconds: dict[str, float]


def export_bundle(request: ExportRequest, progress: Progress = silent) -> ExportResult:
    """Export a checkpoint to a bundle and prove that it still gives the same answers.

    Raises:
        DeploykitError: See :func:`deploykit.export`. Graphs that fail are kept in ``.failed``.
    """
    marks: list[tuple[str, float]] = []

    def begin(stage: str) -> None:
        marks.append((stage, time.perf_counter()))
        progress(Step(stage))

    name = default_name(request.arch) if request.name is None else request.name
    folder = request.artifacts / check_bundle_name(name)
    if os.path.exists(request.checkpoint):  # noqa: PTH110  # else that is said; Path's may raise
        check_free(folder, overwrite=request.overwrite)
    begin("loading the checkpoint")
    subject = load_subject(request, progress)
    sample = _choose_images(request, subject, progress)
    drawn = [(names, images.copy()) for names, images in sample]
    image_set = sample.drawn()
    if sample.unreadable:
        read = sample.unreadable + sample.readable
        progress(Note(f"skipped: {sample.unreadable} of {read} photos cannot be read"))
    groups = list(regroup(drawn, batch_sizes(image_set.count)))
    with (
        new_bundle(folder, overwrite=request.overwrite) as staging,
        ExitStack() as stack,
        ThreadPoolExecutor(max_workers=1) as background,
    ):
        begin("exporting")
        from deploykit.graph.export import onnx_from_module

        input_size = subject.preprocessing.input_size
        graph = onnx_from_module(subject.model.module, input_size, opset=request.opset)
        # Opened here: some Pythons 3.11 fail when two threads compile what they import.
        module = stack.enter_context(_open_module(subject))
        # torch is free now and computes outside the interpreter's lock, so the reference answers
        # while the graphs are written and opened, which is one thread's work.
        pending = background.submit(_answer, module, groups, request, subject)
        embedded = embeddings_graph(graph, request)
        specs = _write_graphs(staging, graph, subject)
        sizes = {CANONICAL_GRAPH: 0, _DEPLOY_GRAPH: 0} | write_embeddings(
            embedded, staging, subject
        )
        begin("comparing")
        candidates = [
            stack.enter_context(
                open_graph(
                    staging / file,
                    name=file,
                    runtime=CPU,
                    precision="fp32",
                    preprocessing=subject.preprocessing,
                    labels=subject.labels,
                    embedding=size,
                )
            )
            for file, size in sizes.items()
        ]
        logits, golden = pending.result()
        verdicts = judge_sessions(
            *(logits, candidates, groups, subject.labels, progress),
            count=len(logits),
            kind=image_set.kind,
        )
        extremes = answer_extremes(module, progress)
        verdicts = judge_extremes(verdicts, candidates, extremes)
        own_error = _activation_error(module, candidates[1], groups, subject)
        similarity = embedding_similarity(
            *(embedded, module, candidates[-1], verdicts, groups, subject, request.opset)
        )
        stack.close()  # a graph that is open cannot be moved on Windows
        alike = uniform_text(verdicts[0].measurement, image_set.kind)
        if not all(each.passed for each in verdicts) and not any(each.failed for each in verdicts):
            raise _undecided(verdicts, alike)
        if alike:
            progress(Note(alike))
        if not all(verdict.passed for verdict in verdicts):
            first = next(verdict for verdict in verdicts if verdict.failed)
            shown = extremes.showing(first, _images(groups), logits)
            raise _failure(staging, folder, request, subject, first, shown, verdicts, progress)
        begin("writing")
        write_golden(golden, staging / GOLDEN)
        manifest = _manifest(staging, name, request, subject, specs)
        spec = verdicts[-1].candidate
        manifest = with_embeddings(manifest, embedded, staging, spec, similarity, image_set)
        reference = Reference(kind="module", description="torch module from the checkpoint")
        for verdict in verdicts:
            sha256 = manifest.files[verdict.candidate.graph].sha256
            manifest = manifest.with_verdict(kept_verdict(verdict, sha256, reference, image_set))
        write_manifest(staging, manifest)
    ends = pairwise([*marks, ("", time.perf_counter())])
    seconds = {stage: round(end - since, 3) for (stage, since), (_, end) in ends}
    return ExportResult(open_bundle(folder), verdicts, image_set, own_error, seconds)


def _choose_images(request: ExportRequest, subject: Subject, progress: Progress) -> ImageSample:
    """The photos to verify on: a sample of the user's, else made images."""
    folder = request.images_folder
    if folder is None:
        progress(Note("no photos given: verifying on made images; --images DIR takes yours"))
        return generated_sample(EXPORT_IMAGES, subject.preprocessing.input_size)
    return folder_sample(folder, subject.preprocessing, labels=subject.labels, limit=EXPORT_IMAGES)


def _open_module(subject: Subject) -> Session:
    return open_module(
        subject.model.module,
        preprocessing=subject.preprocessing,
        classes=subject.model.num_classes,
    )


def _answer(
    reference: Session, groups: Sequence[NamedBatch], request: ExportRequest, subject: Subject
) -> tuple[Logits, Golden]:
    """Run the reference on every batch; its logits, and the golden images."""
    names = [name for names, _ in groups for name in names]
    logits = np.concatenate([reference.run(images) for _, images in groups])
    bad = [name for name, row in zip(names, logits, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise ModelError(
            f"The network gives NaN or infinity on {len(bad)} of {len(names)} images: "
            f"{', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}.",
            hint="The checkpoint may come from a training that diverged; use an earlier epoch's.",
        )
    if subject.within_unit and request.head is None:
        from deploykit.models.probe import check_range

        check_range(float(logits.min()), float(logits.max()), len(names))
    if request.golden == "generated":
        ((_, made),) = generated_sample(GOLDEN_IMAGES, reference.spec.input_size)
        golden = Golden(made, reference.run(made))
    else:
        golden = choose_golden(_images(groups), logits, subject.labels.head)
    # Made images are bytes, whatever a network's photos are.
    images = golden.images.astype(subject.preprocessing.pixel_type, copy=False)
    return logits, replace(golden, images=images)


def _activation_error(
    reference: Session, deployed: Session, groups: Sequence[NamedBatch], subject: Subject
) -> float | None:
    """The most by which a probability is off from what the network itself answers.

    Raises:
        ParityError: By more than any rounding.
    """
    if not subject.model.activation:
        return None
    from deploykit.models.heads import with_activation

    activation, found = subject.model.activation, 0.0
    for _, images in groups:
        with with_activation(subject.model.module):
            own = reference.run(images)
        probabilities = subject.labels.head.probabilities(deployed.run(images))
        found = max(found, float(np.abs(probabilities[:, -own.shape[1] :] - own).max()))
    if not found <= _LARGEST_ACTIVATION_ERROR:
        raise ParityError(
            f"Without the {activation} that it ends in, the network's probabilities come out "
            f"wrong: one is off by {found:.1e} from its own.",
            hint=f"Take the {activation} out of forward(): the weights stay as they are.",
        )
    return found


def _images(groups: Sequence[NamedBatch]) -> ImageBatch:
    return np.concatenate([images for _, images in groups])


def _write_graphs(staging: Path, graph: ir.Model, subject: Subject) -> dict[str, Any]:
    """Write the canonical graph and, from it, the FP32 deploy graph; what the manifest says."""
    from deploykit.graph.deploy import apply_deploy_passes
    from deploykit.graph.files import opset_of, save_graph, tensor_specs

    preprocessing, labels = subject.preprocessing, subject.labels
    canonical_input, output = tensor_specs(graph)
    save_graph(graph, staging / CANONICAL_GRAPH, labels=labels, preprocessing=preprocessing)
    graph = apply_deploy_passes(graph, preprocessing)
    deploy_input, _ = tensor_specs(graph)
    (staging / _DEPLOY_GRAPH).parent.mkdir()
    save_graph(graph, staging / _DEPLOY_GRAPH, labels=labels, preprocessing=preprocessing)
    return {
        "canonical_input": canonical_input,
        "deploy_input": deploy_input,
        "output": output,
        "opset": opset_of(graph),
    }


def _failure(
    staging: Path,
    folder: Path,
    request: ExportRequest,
    subject: Subject,
    failed: Verdict,
    shown: tuple[ImageBatch, Logits],
    verdicts: Sequence[Verdict],
    progress: Progress,
) -> ParityError:
    """Keep the graphs of an export, of which none is open, and diagnose the first that failed.

    Others may be unproven only, so that no node of theirs is at fault.
    """
    graph = failed.candidate.graph
    lines = failure_lines(
        staging,
        folder,
        failed.candidate,
        subject.model.module if graph == CANONICAL_GRAPH else CANONICAL_GRAPH,
        *shown,
        subject.preprocessing,
        progress,
        found=failed.measurement if failed.exceeded else None,
        diagnose=request.diagnose,
        opset=request.opset,
    )
    opset = "another --opset" if request.opset is None else "without --opset"
    hint = (
        f"Write that part of the module with other operations, or export with {opset}; "
        "another version of torch may translate it rightly."
    )
    if graph != CANONICAL_GRAPH:
        hint = "deploykit's own passes make that graph: please report it, with the folder."
    first = "The exported model does not give the checkpoint's answers, so nothing was published."
    reasons = [
        f"{each.candidate.graph}: {'; '.join(each.reasons)}" for each in verdicts if each.reasons
    ]
    return ParityError("\n".join([first, *reasons, *lines]), hint=hint)


def _undecided(verdicts: Sequence[Verdict], alike: str) -> ParityError:
    """The error where the network itself decides too little for any comparison."""
    reason = next(verdict.reasons[0] for verdict in verdicts if verdict.reasons)
    return ParityError(
        f"Nothing was published, for the network decides too little: {reason}. {alike}".rstrip(),
        hint="Give photos like those that it was trained on: --images DIR. If these are, the "
        "checkpoint is of an untrained network, or of another one.",
    )


def _manifest(
    staging: Path,
    name: str,
    request: ExportRequest,
    subject: Subject,
    specs: dict[str, Any],
) -> Manifest:
    folder = request.images_folder
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
            activation=subject.model.activation,
        ),
        checkpoint=CheckpointRecord(
            path=printable(request.checkpoint.resolve()),
            sha256=subject.checkpoint_sha256,
            trusted_pickle=request.trust_pickle,
            weights=subject.model.weights,
        ),
        labels=subject.labels,
        preprocessing=subject.preprocessing,
        **specs,
        deploy={"fp32": _DEPLOY_GRAPH},
        files={
            file: record_file(staging / file) for file in (CANONICAL_GRAPH, _DEPLOY_GRAPH, GOLDEN)
        },
        images=None if folder is None else printable(folder.resolve()),
        verdicts=(),
        versions=installed_versions(),
        requested_opset=request.opset,
        golden=request.golden,
    )
