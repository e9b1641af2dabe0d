"""Verifications made of logits, without a network: what a certificate and a JUnit file tell of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import ArchitectureRecord, CheckpointRecord, FileRecord, Manifest
from deploykit.bundle.verdicts import ImageSet
from deploykit.commands.diagnose.text import BrokenDiagnosis, Diagnosis
from deploykit.commands.verify.result import Verification
from deploykit.parity.accuracy import accuracies, changes_by_candidate
from deploykit.parity.answers import Answers
from deploykit.parity.diagnosis import (
    Finding,
    LayerError,
    LayerReport,
    StageReport,
    StageStep,
    Variation,
)
from deploykit.parity.measures import measure
from deploykit.parity.tolerance import Tolerance
from deploykit.proof.reference import Reference
from deploykit.proof.verdict import judge_answers
from deploykit.specs.model import Labels, TensorSpec
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import Logits, SessionSpec

BIRDS = Labels(names=("cat", "dog", "owl"), source="folder photos")
MODULE = "torch module from best_model.pth"
GRAPHS = ("model.onnx", "deploy/fp32.onnx", "deploy/fp16.onnx")


def spec_of(graph: str, classes: int = 3) -> SessionSpec:
    rehearsed = "fp16" in graph
    return SessionSpec(
        runtime="rehearsal" if rehearsed else "onnxruntime-cpu",
        graph=graph,
        precision="fp16" if rehearsed else "fp32",
        device="CPU",
        input_size=(16, 16),
        classes=classes,
    )


def made_bundle(folder: Path, labels: Labels = BIRDS, name: str = "birds") -> Bundle:
    """A bundle of which there is only the manifest."""
    tensor = TensorSpec(name="input", dtype="float32", shape=("N", 3, 16, 16))
    manifest = Manifest(
        schema=3,
        name=name,
        created="2026-11-20T10:00:00+00:00",
        architecture=ArchitectureRecord(
            name="dpn92", origin="zoo", args={}, classes=labels.logits, parameters=68_000_000
        ),
        checkpoint=CheckpointRecord(path="C:\\runs\\best_model.pth", sha256="c" * 64),
        labels=labels,
        preprocessing=Preprocessing(resize=(16, 16)),
        canonical_input=tensor,
        deploy_input=tensor,
        output=tensor,
        opset=20,
        deploy={"fp32": GRAPHS[1], "fp16": GRAPHS[2]},
        files={
            graph: FileRecord(sha256=digit * 64, bytes=1)
            for graph, digit in zip(GRAPHS, "123", strict=True)
        },
        images=None,
        verdicts=(),
        versions={},
    )
    return Bundle(folder / name, manifest)


def made_logits(count: int, classes: int = 3, seed: int = 0) -> Logits:
    """(count, classes): image i's class is i modulo the classes, its margin anything from 0.01."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (count, classes))
    right = np.arange(count) % classes
    margin = 10 ** rng.uniform(-2, 1, count)
    logits[np.arange(count), right] = logits.max(axis=1) + margin
    return logits.astype(np.float32)


def moved(logits: Logits, by: float, seed: int = 1) -> Logits:
    """The same logits, each moved by at most so much."""
    noise = np.random.default_rng(seed).uniform(-by, by, logits.shape)
    return (logits + noise).astype(np.float32)


def made_verification(
    reference: Logits,
    candidates: Mapping[str, Logits],
    /,
    *,
    folder: Path | None = None,
    labels: Labels = BIRDS,
    paths: Sequence[str] | None = None,
    expected: Mapping[str, tuple[str, ...]] | None = None,
    reference_fields: Mapping[str, object] | None = None,
    stages: StageReport | None = None,
    layers: Sequence[LayerReport] | None = None,
    broken_off: Sequence[BrokenDiagnosis] = (),
    **changes: object,
) -> Verification:
    """Judge logits as verify does.

    Args:
        reference: (N, K).
        candidates: (N, K) of each graph.
        folder: Where the photos are; None for golden images.
        labels: The classes.
        paths: The photos' names; None for ``<class>/<number>.png``.
        expected: The classes of labelled photos.
        reference_fields: Fields of the reference that are other than of the trained module.
        stages: The diagnosis by stage.
        layers: The diagnosis by node.
        broken_off: What of the diagnosis could not be made.
        changes: Other fields of the verification.
    """
    if paths is None:
        names = (labels.names[i % len(labels)] for i in range(len(reference)))
        paths = [f"{name}/{i:03}.png" for i, name in enumerate(names)]
    answers = Answers(tuple(paths), (1, 2, 5, 8), reference, tuple(candidates.values()))
    specs = [spec_of(graph, labels.logits) for graph in candidates]
    known = expected or {}
    facts = {
        "reference": Reference(
            **{"kind": "module", "description": MODULE, **(reference_fields or {})}
        ),
        "images": ImageSet(
            kind="photos" if folder else "golden",
            source=str(folder or ""),
            count=len(reference),
            sha256="d" * 64,
        ),
        "unreadable": 0,
        "verdicts": judge_answers(
            answers, specs, labels, kind="photos" if folder else "golden", expected=known
        ),
        "answers": answers,
        "expected": known,
        "head": labels.head,
        "accuracy": accuracies(answers, known, labels),
        "class_changes": changes_by_candidate(answers, specs, known, labels),
        "created": "2026-11-22T03:11:26+00:00",
        "versions": {"python": "3.11.9", "numpy": "2.4.6"},
        "diagnosis": Diagnosis(
            stages, None if layers is None else tuple(layers), tuple(broken_off)
        ),
    }
    return Verification(**{**facts, **changes})  # type: ignore[arg-type]


def made_stages(
    reference: Logits, *, fault: bool, hint: str = "--interpolation bicubic"
) -> StageReport:
    """A diagnosis of three steps, the second of them at fault or not."""
    paths = [str(i) for i in range(len(reference))]

    def step(stage: str, change: str, logits: Logits) -> StageStep:
        found = measure(
            reference, logits, precision="fp32", paths=paths, labels=BIRDS, batch_sizes=(8,)
        )
        tolerance = Tolerance(max_flip_rate=0.0, max_relative_error=1e-4)
        return StageStep(
            stage=stage,  # type: ignore[arg-type]
            change=change,
            added=found,
            reasons=tolerance.reasons(found),
        )

    return StageReport(
        beginning="train.py:transform and the checkpoint",
        steps=(
            step("decode", "decoded as in training", reference),
            step("resize", "bilinear instead of bicubic", moved(reference, 0.2 * fault)),
            step("canonical graph", "model.onnx instead of the module", moved(reference, 1e-6)),
        ),
        findings=(
            Finding(
                stage="resize",
                message="training used bicubic, the bundle records bilinear",
                hint=f"Export again with {hint}",
            ),
        )
        if fault
        else (),
        variations=(
            Variation(
                change="bicubic", option=hint, correct=58, images=60, gained=4, is_clear=True
            ),
            Variation(change="BGR", option="", correct=20, images=60, gained=-34, is_clear=False),
        )
        if fault
        else (),
    )


def made_layers(*, fault: bool, node: str = "node_conv2d_3") -> LayerReport:
    """A walk over three nodes of the FP16 graph, the first of them at fault or not."""
    worst = LayerError(
        node=node,
        operator="Conv",
        module="features.3",
        tensor="conv2d_3",
        added=0.21 if fault else 2e-4,
        carried=0.22 if fault else 3e-4,
        non_finite=12 if fault else 0,
        reason="its largest value, 81,000, is beyond FP16" if fault else "",
    )
    others = tuple(
        LayerError(
            node=f"node_{i}",
            operator="Add",
            module="",
            tensor=f"add_{i}",
            added=1e-4 / i,
            carried=2e-4,
            non_finite=0,
        )
        for i in (1, 2)
    )
    return LayerReport(
        candidate=spec_of("deploy/fp16.onnx"),
        reference="deploy/fp32.onnx on onnxruntime-cpu",
        images=8,
        tolerance=1e-2,
        first=worst if fault else None,
        ranking=(worst, *others),
        nodes=95,
        differences=("Relu_3 (module features.4) is missing",) if fault else (),
    )
