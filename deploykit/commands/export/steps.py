"""The steps of an export: write the graphs, let the reference answer, compare."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH, deploy_graph
from deploykit.bundle.golden import GOLDEN_IMAGES, Golden, choose_golden
from deploykit.bundle.manifest import GoldenChoice
from deploykit.bundle.verdicts import PhotoKind
from deploykit.commands.export.request import ExportRequest, Subject
from deploykit.errors import ModelError
from deploykit.parity.compare import NamedBatch
from deploykit.proof.extremes import extreme_reasons
from deploykit.proof.photos import generated_photos
from deploykit.proof.verdict import Verdict, judge_sessions
from deploykit.runtime.opener import open_graph, open_module
from deploykit.specs.model import TensorSpec
from deploykit.specs.session import Logits, Session
from deploykit.system.progress import Progress

if TYPE_CHECKING:
    import onnx_ir as ir

REFERENCE = "torch module from the checkpoint"
_RUNTIME = "onnxruntime-cpu"


@dataclass(frozen=True)
class GraphSpecs:
    """What the written graphs take and give, for the manifest."""

    canonical_input: TensorSpec
    deploy_input: TensorSpec
    output: TensorSpec
    opset: int


@dataclass(frozen=True)
class Answers:
    """The reference's logits of the compared images, in their order, and the golden images."""

    logits: Logits
    golden: Golden


def canonical_graph(request: ExportRequest, subject: Subject) -> ir.Model:
    """Export the module; see :func:`deploykit.graph.export.onnx_from_module`."""
    from deploykit.graph.export import onnx_from_module

    size = subject.preprocessing.input_size
    return onnx_from_module(subject.model.module, size, opset=request.opset)


def write_graphs(staging: Path, graph: ir.Model, subject: Subject) -> GraphSpecs:
    """Write the canonical graph and, from it, the FP32 deploy graph."""
    from deploykit.graph.deploy import apply_deploy_passes
    from deploykit.graph.files import opset_of, save_graph, tensor_specs

    preprocessing, labels = subject.preprocessing, subject.labels
    canonical_input, output = tensor_specs(graph)
    save_graph(graph, staging / CANONICAL_GRAPH, labels=labels, preprocessing=preprocessing)
    graph = apply_deploy_passes(graph, preprocessing)
    deploy_input, _ = tensor_specs(graph)
    deploy = staging / deploy_graph("fp32")
    deploy.parent.mkdir()
    save_graph(graph, deploy, labels=labels, preprocessing=preprocessing)
    return GraphSpecs(canonical_input, deploy_input, output, opset_of(graph))


def open_module_of(subject: Subject) -> Session:
    """Open the torch module, the reference."""
    return open_module(
        subject.model.module,
        preprocessing=subject.preprocessing,
        classes=subject.model.num_classes,
    )


def answer(reference: Session, groups: Sequence[NamedBatch], golden: GoldenChoice) -> Answers:
    """Run the reference on every batch, and choose the golden images."""
    logits = np.concatenate([reference.run(images) for _, images in groups])
    _require_finite(logits, [name for names, _ in groups for name in names])
    if golden == "generated":
        ((_, made),) = generated_photos(GOLDEN_IMAGES, reference.spec.input_size)
        return Answers(logits, Golden(made, reference.run(made)))
    images = np.concatenate([images for _, images in groups])
    return Answers(logits, choose_golden(images, logits))


def _require_finite(logits: Logits, names: Sequence[str]) -> None:
    bad = [name for name, row in zip(names, logits, strict=True) if not np.isfinite(row).all()]
    if bad:
        raise ModelError(
            f"The network gives NaN or infinity on {len(bad)} of {len(names)} images: "
            f"{', '.join(bad[:3])}{', ...' if len(bad) > 3 else ''}.",
            hint="The checkpoint may come from a training that diverged; use an earlier epoch's.",
        )


def open_candidates(staging: Path, subject: Subject, stack: ExitStack) -> list[Session]:
    """Open both graphs on ONNX Runtime's CPU provider."""
    return [
        stack.enter_context(
            open_graph(
                staging / name,
                name=name,
                runtime=_RUNTIME,
                precision="fp32",
                preprocessing=subject.preprocessing,
                labels=subject.labels,
            )
        )
        for name in (CANONICAL_GRAPH, deploy_graph("fp32"))
    ]


def verify(
    module: Session,
    candidates: Sequence[Session],
    answers: Answers,
    groups: Sequence[NamedBatch],
    kind: PhotoKind,
    subject: Subject,
    progress: Progress,
) -> tuple[Verdict, ...]:
    """Compare both graphs with the module, on the photos and on extreme images."""
    on_photos = judge_sessions(
        answers.logits,
        candidates,
        groups,
        subject.labels,
        progress,
        count=len(answers.logits),
        kind=kind,
    )
    scale = float(np.abs(answers.logits).max())
    extremes = extreme_reasons(module, candidates, scale, progress)
    return tuple(
        verdict.with_extremes(reasons) for verdict, reasons in zip(on_photos, extremes, strict=True)
    )
