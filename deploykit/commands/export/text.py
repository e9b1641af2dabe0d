"""The result of an export, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec

from deploykit.bundle.manifest import Manifest
from deploykit.commands.export.run import ExportResult
from deploykit.proof.embeddings_text import record_text, similarity_text
from deploykit.proof.text import images_text, verdict_value, verdicts_text
from deploykit.system.text import visible


def export_text(result: ExportResult) -> str:
    """What was exported, what was assumed, and the proof."""
    manifest = result.bundle.manifest
    architecture = manifest.architecture
    names = ", ".join(manifest.labels.names[:6]) + (", ..." if len(manifest.labels) > 6 else "")
    return "\n".join(
        (
            verdicts_text(result.verdicts),
            f"network        {visible(architecture.name)}, {architecture.parameters:,} parameters, "
            f"{len(manifest.labels)} classes",
            *_head_lines(result),
            f"classes        {visible(f'{names} ({manifest.labels.source})')}",
            f"preprocessing  {manifest.preprocessing.describe()} ({manifest.preprocessing.source})",
            f"verified on    {images_text(result.images)}",
            *_embeddings_lines(manifest),
            f"bundle         {visible(str(result.bundle.folder))} "
            f"(in {sum(result.seconds.values()):.1f} s)",
        )
    )


def _head_lines(result: ExportResult) -> Iterator[str]:
    """What the logits mean, where it is not what everybody takes for granted."""
    manifest, error = result.bundle.manifest, result.activation_error
    head = manifest.labels.head
    if head.thresholds:
        yield f"head           {head.describe(manifest.labels.names)}"
    if error is not None:
        yield (
            f"probabilities  the network ends in a {manifest.architecture.activation}, left out of "
            f"the graphs: the same to {error:.1e}"
        )


def _embeddings_lines(manifest: Manifest) -> Iterator[str]:
    """The graph with embeddings, and how near they are to the trained network's."""
    if manifest.embeddings is not None:
        yield f"embeddings     {visible(record_text(manifest.embeddings))}"
        for each in manifest.embeddings.similarities:
            yield f"               {similarity_text(each.similarity)}"


def export_value(result: ExportResult) -> dict[str, Any]:
    """The bundle, its manifest and the verdicts."""
    return {
        "bundle": str(result.bundle.folder),
        "manifest": msgspec.to_builtins(result.bundle.manifest),
        "images": msgspec.to_builtins(result.images),
        "verdicts": [verdict_value(verdict) for verdict in result.verdicts],
        "activation_error": result.activation_error,
        "seconds": result.seconds,
    }
