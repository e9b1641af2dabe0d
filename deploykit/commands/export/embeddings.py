"""The graph with embeddings, as an export makes and proves it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploykit.bundle.embeddings import EMBEDDINGS_GRAPH, EmbeddingsRecord
from deploykit.bundle.manifest import Manifest, record_file
from deploykit.bundle.verdicts import ImageSet
from deploykit.commands.export.request import ExportRequest, Subject
from deploykit.errors import ParityError
from deploykit.parity.compare import NamedBatch, ask_sessions
from deploykit.parity.similarity import Similarity
from deploykit.proof.embeddings_text import failure_text
from deploykit.proof.similarity import (
    EmbeddingComparison,
    embeddings_of_module,
    kept_similarity,
)
from deploykit.proof.verdict import Verdict
from deploykit.specs.embeddings import Tap
from deploykit.specs.session import Session, SessionSpec

if TYPE_CHECKING:
    import onnx_ir as ir


@dataclass(frozen=True)
class EmbeddingsGraph:
    """The graph with two outputs, before it is written.

    Attributes:
        tap: Which tensor the embedding is.
        requested: What the user named; empty for the input of the last layer.
        canonical: The canonical graph with the second output.
    """

    tap: Tap
    requested: str
    canonical: ir.Model


def embeddings_graph(canonical: ir.Model, request: ExportRequest) -> EmbeddingsGraph | None:
    """Make it from a canonical graph, which stays as it is; None where nobody asked for it.

    Raises:
        UsageError: There is no tensor that could be the embedding.
    """
    if not request.embeddings:
        return None
    from deploykit.graph.embeddings import find_tap, with_embedding

    tap = find_tap(canonical, request.tap)
    return EmbeddingsGraph(tap, request.tap or "", with_embedding(canonical, tap))


def write_embeddings(
    graph: EmbeddingsGraph | None, staging: Path, subject: Subject
) -> dict[str, int]:
    """Write it beside the FP32 deploy graph, by the same passes; once.

    Returns:
        The number of values of an embedding by the file; empty without a graph.
    """
    if graph is None:
        return {}
    from deploykit.graph.deploy import apply_deploy_passes
    from deploykit.graph.files import save_graph

    deployed = apply_deploy_passes(graph.canonical, subject.preprocessing)
    save_graph(
        deployed,
        staging / EMBEDDINGS_GRAPH,
        labels=subject.labels,
        preprocessing=subject.preprocessing,
    )
    return {EMBEDDINGS_GRAPH: graph.tap.size}


def embedding_similarity(
    graph: EmbeddingsGraph | None,
    reference: Session,
    candidate: Session,
    verdicts: Sequence[Verdict],
    groups: Sequence[NamedBatch],
    subject: Subject,
    opset: int | None,
) -> Similarity | None:
    """Compare the graph's embeddings with the torch module's.

    Args:
        graph: The graph; None where there is none.
        reference: The session of the module.
        candidate: The session of the graph with embeddings.
        verdicts: On all graphs. Where one did not pass, there is nothing to compare.
        groups: The images.
        subject: What is exported.
        opset: The ONNX operator set of the export; None for torch's own choice.

    Raises:
        ParityError: They are not the same.
        UsageError: The torch module has no such tensor.
    """
    if graph is None or not all(verdict.passed for verdict in verdicts):
        return None
    right = embeddings_of_module(reference, graph.tap, subject.preprocessing, opset)
    compared = EmbeddingComparison(EMBEDDINGS_GRAPH, right)
    asked = compared.instead_of(reference, [candidate])
    answers = ask_sessions(*asked, groups, subject.labels, lambda *_: None)
    similarity = compared.found(answers.paths)[candidate.spec]
    if reason := failure_text(similarity):
        raise ParityError(
            f"The exported embeddings, {graph.tap.describe()}, are not the torch module's, so "
            f"nothing was published: {reason}.",
            hint="The exporter may have folded what follows into that tensor: take another with "
            "--tap NAME; or export without --embeddings.",
        )
    return similarity


def with_embeddings(
    manifest: Manifest,
    graph: EmbeddingsGraph | None,
    staging: Path,
    spec: SessionSpec,
    found: Similarity | None,
    images: ImageSet,
) -> Manifest:
    """A manifest with the graph, and what was found of it.

    Args:
        manifest: Of the other graphs.
        graph: The graph; None where there is none.
        staging: Where it was written.
        spec: What ran it.
        found: How near its embeddings are to the torch module's.
        images: On which images.
    """
    if graph is None or found is None:
        return manifest
    file = record_file(staging / EMBEDDINGS_GRAPH)
    record = EmbeddingsRecord(
        graph=EMBEDDINGS_GRAPH,
        tap=graph.tap,
        requested=graph.requested,
        similarities=(kept_similarity(spec, found, file.sha256, images),),
    )
    files = {**manifest.files, EMBEDDINGS_GRAPH: file}
    return msgspec.structs.replace(manifest, files=files, embeddings=record)


def embeddings_options(manifest: Manifest) -> dict[str, str]:
    """The options of an export that makes this bundle's graph with embeddings again."""
    record = manifest.embeddings
    if record is None:
        return {}
    return {"--embeddings": "", **({"--tap": record.requested} if record.requested else {})}
