"""An export that failed its comparison: keep what it made, and find the node at fault."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.commands.diagnose.layers.failed import failure_lines
from deploykit.commands.export.request import ExportRequest, Subject
from deploykit.commands.export.steps import Answers, open_module_of
from deploykit.errors import ParityError
from deploykit.images.generated import extreme_images
from deploykit.parity.compare import NamedBatch
from deploykit.proof.verdict import Verdict
from deploykit.specs.session import ImageBatch, Logits
from deploykit.system.progress import Progress


def failed_export(
    staging: Path,
    folder: Path,
    request: ExportRequest,
    subject: Subject,
    groups: Sequence[NamedBatch],
    answers: Answers,
    verdicts: Sequence[Verdict],
    progress: Progress,
) -> ParityError:
    """Keep the graphs of an export that failed, and diagnose the first that did.

    Args:
        staging: The folder with the graphs, none of them open; it is moved.
        folder: Where the bundle would have been.
        request: What was exported.
        subject: The module and what its images need.
        groups: The images of the comparison.
        answers: The module's, to those images.
        verdicts: On the canonical graph and the deploy graph; at least one failed.
        progress: Called with what is being done.

    Returns:
        The error to raise: what failed, which node is at fault, where the graphs are.
    """
    failed = [verdict for verdict in verdicts if not verdict.passed]
    lines = [
        "The exported model does not give the checkpoint's answers, so nothing was published.",
        *(f"{each.candidate.graph}: {'; '.join(each.reasons)}" for each in failed),
    ]
    verdict = failed[0]
    graph = verdict.candidate.graph
    images, expected = np.concatenate([batch for _, batch in groups]), answers.logits
    if request.diagnose and not verdict.exceeded:  # no image of the comparison shows the fault
        images, expected = _extremes(subject)
    lines += failure_lines(
        staging,
        folder,
        verdict.candidate,
        subject.model.module if graph == CANONICAL_GRAPH else CANONICAL_GRAPH,
        images,
        expected,
        subject.preprocessing,
        progress,
        diagnose=request.diagnose,
        opset=request.opset,
    )
    return ParityError("\n".join(lines), hint=_hint(graph, request))


def _extremes(subject: Subject) -> tuple[ImageBatch, Logits]:
    """The extreme images to which the module gives numbers, and its answers."""
    images = np.concatenate([*extreme_images(subject.preprocessing.input_size).values()])
    with open_module_of(subject) as module:
        logits = module.run(images)
    finite = np.isfinite(logits).all(axis=1)
    return images[finite], logits[finite]


def _hint(graph: str, request: ExportRequest) -> str:
    """What to do about the first graph that failed."""
    if graph != CANONICAL_GRAPH:
        return "deploykit's own passes make that graph: please report it, with the folder."
    opset = "another --opset" if request.opset is None else "without --opset"
    return (
        f"Write that part of the module with other operations, or export with {opset}; "
        "another version of torch may translate it rightly."
    )
