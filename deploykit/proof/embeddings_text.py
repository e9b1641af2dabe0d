"""The words for embeddings: which they are, and how near they are to the trained network's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from deploykit.bundle.embeddings import EmbeddingsRecord
from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.bundle.manifest import Manifest
from deploykit.bundle.verdicts import ReferenceKind
from deploykit.parity.similarity import LEAST_SIMILARITY, Similarity
from deploykit.proof.policy import similarity_of_run
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import counted, visible


def record_text(record: EmbeddingsRecord) -> str:
    """``deploy/fp32-embeddings.onnx: 512 values, the input of fc``."""
    return f"{record.graph}: {counted(record.tap.size, 'value')}, {record.tap.describe()}"


def whose(kind: ReferenceKind) -> str:
    """Whose embeddings others are compared with: ``torch's``, ``model.onnx's``."""
    return "torch's" if kind == "module" else f"{CANONICAL_GRAPH}'s"


def similarity_text(found: Similarity, kind: ReferenceKind = "module") -> str:
    """``cosine to torch's at least 0.99999998 (32 images)``."""
    among = counted(found.images, "image")
    zeros = f", {found.zeros} of them all zeros in both" if found.zeros else ""
    return f"cosine to {whose(kind)} at least {_digits(found.smallest)} ({among}{zeros})"


def _digits(cosine: float) -> str:
    """A cosine rounded towards 0, so that 1 says that it is 1."""
    return "1" if cosine == 1 else f"{np.trunc(cosine * 1e8) / 1e8:.8f}"


def failure_text(found: Similarity, kind: ReferenceKind = "module") -> str:
    """Why embeddings did not pass, in a sentence without a full stop; empty where they did."""
    if found.passed:
        return ""
    if found.zeros == found.images:
        return "the embeddings are all zeros, whatever the image shows"
    return (
        f"the cosine to {whose(kind)} embeddings is {_digits(found.smallest)} for "
        f"{visible(found.path)}; at least {LEAST_SIMILARITY} is allowed"
    )


def similarity_lines(manifest: Manifest) -> Iterator[str]:
    """What was shown of the embeddings on each runtime; nothing of another graph than that is."""
    record = manifest.embeddings
    if record is None:
        return
    for each in record.similarities:
        if each.graph_sha256 != manifest.files[record.graph].sha256:
            continue
        found, kind = each.similarity, each.reference_kind
        runtime = f"{each.runtime} {each.runtime_version}".rstrip()
        yield (
            f"{record.graph} on {runtime}, {each.device}: "
            f"{failure_text(found, kind) or similarity_text(found, kind)}, {each.created[:10]}"
        )


def run_text(bundle: Bundle, record: EmbeddingsRecord, spec: SessionSpec) -> str:
    """What a run's embeddings are, and whether they are proven there."""
    known = similarity_of_run(bundle, spec)
    shown = "not compared with torch's here"
    if known is not None:
        found, kind = known.similarity, known.reference_kind
        shown = failure_text(found, kind) or similarity_text(found, kind)
    return f"{counted(record.tap.size, 'value')} an image, {record.tap.describe()}; {shown}"


def embeddings_value(bundle: Bundle, record: EmbeddingsRecord, spec: SessionSpec) -> dict[str, Any]:
    """The same for ``--json``."""
    known = similarity_of_run(bundle, spec)
    return {
        **plain_value(record.tap),
        "similarity": None if known is None else plain_value(known.similarity),
    }
