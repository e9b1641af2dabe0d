"""Embeddings: what gives them, and the words for how near they are to the trained network's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import numpy as np

from deploykit.bundle.embeddings import EmbeddingsRecord
from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.bundle.verdicts import ReferenceKind
from deploykit.errors import BundleError, MissingError, UsageError
from deploykit.parity.similarity import (
    LEAST_SIMILARITY,
    Similarity,
)
from deploykit.proof.auto import AUTO, open_best
from deploykit.runtime.opener import CPU, CUDA, GRAPH_RUNTIMES, REHEARSAL
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.session import (
    EmbeddingSession,
    Session,
    SessionSpec,
)
from deploykit.specs.value import plain_value
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted

# What gives them ----------------------------------------------------------------------------------


def need_embeddings(bundle: Bundle) -> EmbeddingsRecord:
    """The record of a bundle's graph with embeddings.

    Raises:
        BundleError: It has none.
    """
    record = bundle.manifest.embeddings
    if record is None:
        raise BundleError(
            f"Bundle {bundle.name} has no graph that gives embeddings.",
            hint="Export it again with --embeddings, which makes and proves one: "
            "deploykit export --arch NAME --ckpt FILE --embeddings --overwrite",
        )
    return record


def open_with_embeddings(
    bundle: Bundle,
    *,
    runtime: str = AUTO,
    precision: Precision | None = None,
    threads: int | None = None,
    pipelined: bool = False,
    tf32: bool = False,
    progress: Progress = silent,
) -> EmbeddingSession:
    """Open the graph with embeddings on what ``predict`` would run, as far as that can be.

    The arguments are those of :func:`deploykit.proof.auto.open_best`. Where ``auto`` would take an
    engine or another precision, the graph runs in FP32 instead, and a note says so.

    Raises:
        BundleError: The bundle has no such graph, or it is damaged.
        UsageError: What was named has no embeddings: an engine, or a precision below FP32.
        DeploykitError: See :func:`deploykit.proof.auto.open_best`.
    """
    record = need_embeddings(bundle)
    if precision not in (None, "fp32"):
        raise UsageError(
            f"Embeddings are computed in FP32; --precision {precision} has none.",
            hint="Leave out --precision.",
        )
    if is_flavour(runtime):
        raise UsageError(
            f"An engine gives no embeddings, so --runtime {runtime} has none.",
            hint=f"On an NVIDIA GPU: --runtime {CUDA}",
        )
    open_it = partial(
        open_best,
        bundle,
        threads=threads,
        pipelined=pipelined,
        tf32=tf32,
        embeddings=True,
        progress=progress,
    )
    if runtime != AUTO:
        return cast(EmbeddingSession, open_it(runtime=runtime, precision="fp32"))
    session = open_it(precision=precision)
    if session.spec.graph == record.graph:
        return cast(EmbeddingSession, session)
    session.close()
    return _open_beside(session.spec, open_it, progress)


def open_embeddings_beside(
    bundle: Bundle, spec: SessionSpec, *, threads: int | None = None, progress: Progress = silent
) -> EmbeddingSession:
    """Open the graph with embeddings beside a session that is open, on its runtime if that can be.

    Args:
        bundle: The bundle.
        spec: Of that session.
        threads: For computing on the CPU; None for one a core.
        progress: Called with a note of what is taken, where the session has another precision.

    Raises:
        BundleError: The bundle has no such graph, or it is damaged.
        DeploykitError: See :func:`deploykit.proof.auto.open_best`.
    """
    need_embeddings(bundle)
    open_it = partial(
        open_best, bundle, threads=threads, tf32=spec.tf32, embeddings=True, progress=progress
    )
    if spec.precision == "fp32" and spec.runtime in GRAPH_RUNTIMES:
        return cast(EmbeddingSession, open_it(runtime=spec.runtime, precision="fp32"))
    return _open_beside(spec, open_it, progress)


def _open_beside(
    spec: SessionSpec, open_it: Callable[..., Session], progress: Progress
) -> EmbeddingSession:
    """Open it on the runtime that another graph runs on; of an engine on the GPU, else the CPU."""
    on_device = spec.runtime in GRAPH_RUNTIMES and spec.runtime != REHEARSAL
    runtimes = [spec.runtime] if on_device else [CUDA, CPU]
    for runtime in runtimes:
        try:
            session = open_it(runtime=runtime, precision="fp32")
        except MissingError:
            if runtime == runtimes[-1]:
                raise
            continue
        break
    taken = session.spec
    progress(
        Note(
            f"{spec.title} gives no embeddings: taking {taken.graph} in fp32 on {taken.runtime}, "
            f"{taken.device}, for logits and embeddings"
        )
    )
    return cast(EmbeddingSession, session)


# The words ----------------------------------------------------------------------------------------


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
        f"the cosine to {whose(kind)} embeddings is {_digits(found.smallest)} for {found.path}; at "
        f"least {LEAST_SIMILARITY} is allowed"
    )


def similarity_lines(record: EmbeddingsRecord) -> Iterator[str]:
    """What was shown of the embeddings on each runtime."""
    for each in record.similarities:
        reason = failure_text(each.similarity)
        yield (
            f"{record.graph} on {each.runtime}, {each.device}: "
            f"{reason or similarity_text(each.similarity)}, {each.created[:10]}"
        )


def run_text(record: EmbeddingsRecord, spec: SessionSpec) -> str:
    """What a run's embeddings are, and whether they are proven there."""
    known = record.similarity_on(spec.runtime, spec.device)
    shown = "not compared with torch's here" if known is None else similarity_text(known.similarity)
    if known is not None and not known.similarity.passed:
        shown = failure_text(known.similarity)
    return f"{counted(record.tap.size, 'value')} an image, {record.tap.describe()}; {shown}"


def embeddings_value(record: EmbeddingsRecord, spec: SessionSpec) -> dict[str, Any]:
    """The same for ``--json``."""
    known = record.similarity_on(spec.runtime, spec.device)
    return {
        **plain_value(record.tap),
        "similarity": None if known is None else plain_value(known.similarity),
    }
