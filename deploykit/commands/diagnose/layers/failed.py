"""Keep a graph that has just failed its comparison, and diagnose it at once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from deploykit.bundle.folder import keep_failed
from deploykit.commands.diagnose.layers.measure import Subject, graph_origin, module_origin
from deploykit.commands.diagnose.layers.report import DIAGNOSED_IMAGES, layer_report
from deploykit.commands.diagnose.text import first_node_text
from deploykit.errors import BundleError, DeploykitError, GraphError
from deploykit.parity.diagnosis import LayerReport
from deploykit.parity.layers import TensorError, answer_tolerance
from deploykit.parity.measurement import Measurement
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import ImageBatch, Logits, SessionSpec
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    from torch import nn


def failure_lines(
    made: Path,
    folder: Path,
    spec: SessionSpec,
    made_from: str | nn.Module,
    images: ImageBatch,
    expected: Logits,
    preprocessing: Preprocessing,
    progress: Progress,
    *,
    found: Measurement | None,
    diagnose: bool,
    opset: int | None = None,
) -> list[str]:
    """Keep what failed its comparison, and name the node at fault: the last lines of an error.

    The diagnosis comes on top of an error that the caller raises, so it raises none of its own.

    Args:
        made: The folder with the files, none of them open, laid out as in a bundle; it is moved.
        folder: The bundle's folder, whether there is one or not.
        spec: What ran the graph that failed; its ``graph`` is in ``made``.
        made_from: The graph in ``made`` that it was made from, or the torch module.
        images: (N, H, W, 3) uint8, those of the comparison. The worst are diagnosed.
        expected: (N, K), the right answers.
        preprocessing: What the images need.
        progress: Called with what is being done.
        found: What the comparison on these images measured; None where it was on others.
        diagnose: Whether to look for the node at fault.
        opset: The ONNX operator set of the export; None for torch's own choice.

    Returns:
        The first node with too large an error, by its name in the ONNX and in the module, or why
        there is no diagnosis; and where the files are.
    """
    made, where = kept_files(made, folder)
    if not diagnose:
        return [where]
    progress(Step("diagnosing", detail=spec.graph))
    try:
        report = _report(made, spec, made_from, images, expected, preprocessing, opset)
    except Exception as exc:  # noqa: BLE001 (whatever it is, it must not hide the caller's error)
        why = exc.message if isinstance(exc, DeploykitError) else f"{type(exc).__name__}: {exc}"
        return [f"No diagnosis of {spec.graph}: {why}", where]
    return [_sentence(report, found), where]


def kept_files(made: Path, folder: Path) -> tuple[Path, str]:
    """Keep the files of what failed; where they are then, and a line that says it."""
    try:
        made = keep_failed(made, folder)
    except BundleError as exc:
        return made, f"What failed is not kept: {exc.message}"
    return made, f"What failed is kept in {made}, which is no bundle."


def _report(
    made: Path,
    spec: SessionSpec,
    made_from: str | nn.Module,
    images: ImageBatch,
    expected: Logits,
    preprocessing: Preprocessing,
    opset: int | None,
) -> LayerReport:
    from deploykit.graph.files import load_graph
    from deploykit.graph.rehearsal import rehearsal_of

    model = load_graph(made / spec.graph)
    executed = rehearsal_of(model) if spec.runtime == REHEARSAL else model
    subject = Subject(spec, model, executed, preprocessing)
    rows = _worst(subject, images, expected)
    if isinstance(made_from, str):
        name = Path(made_from).name
        with graph_origin(load_graph(made / made_from), preprocessing, name) as origin:
            return layer_report(subject, origin, images[rows])
    origin = module_origin(made_from, preprocessing, "the torch module", opset=opset)
    report = layer_report(subject, origin, images[rows])
    (answer,) = (value.name or "" for value in model.graph.outputs)
    traced = TensorError()
    for row in rows:
        traced.add(origin.tensors(images[row : row + 1])[answer], expected[row : row + 1])
    if report.first is not None or traced.relative <= answer_tolerance(spec.precision):
        return report
    off = f"its answer is off by {traced.relative:.1e}"
    other = f"torch traces another network than the module: {off}"
    return msgspec.structs.replace(report, differences=(other,))


def _worst(subject: Subject, images: ImageBatch, expected: Logits) -> list[int]:
    """The images whose answers are furthest off, one by one, those without numbers first."""
    errors = np.zeros(len(images))
    with subject.open(subject.executed) as probe:
        for row, image in enumerate(images):
            try:
                (logits,) = probe.run(subject.feeds(image[None])).values()
            except GraphError:
                errors[row] = np.inf
                continue
            moved = float(np.abs(logits.astype(np.float64) - expected[row]).max())
            errors[row] = moved if np.isfinite(moved) else np.inf
    return [int(row) for row in np.argsort(-errors, kind="stable")[:DIAGNOSED_IMAGES]]


def _sentence(report: LayerReport, found: Measurement | None) -> str:
    against = f"{report.candidate.graph} against {report.reference}"
    if report.nodes == 0:
        return f"No diagnosis of {against}: they have no tensor in common."
    if report.first is not None:
        node = first_node_text(report.first, report.tolerance)
        return f"Diagnosis of {against}: the first node with too large an error is {node}"
    return (
        f"Diagnosis of {against}: {'; '.join(report.differences) or _without_fault(report, found)}."
    )


def _without_fault(report: LayerReport, found: Measurement | None) -> str:
    """What changed the answers where every node is right: rounding, or the runtime."""
    alone = "no node adds too much when it is computed alone"
    if found is None or found.non_finite:
        return alone
    allowed = answer_tolerance(report.candidate.precision)
    moved = f"the logits moved by {found.max_relative_error:.1e} of the scale"
    if not found.max_relative_error <= allowed:
        return (
            f"{alone}, but {moved}, more than the {allowed:.1e} that rounding may add; "
            f"{report.candidate.runtime} may fuse nodes wrongly"
        )
    margins = [flip.margin for flip in found.flipped if flip.decidable]
    small = (
        f", and the changed images have margins of at most {max(margins):.1e}" if margins else ""
    )
    return f"{alone}, and {moved}: it is the rounding of {report.candidate.precision}{small}"
