"""Embeddings: what gives them, how near they are to the trained network's, and the words for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.bundle.embeddings import EmbeddingsRecord, KeptSimilarity
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest, read_manifest, update_manifest
from deploykit.bundle.verdicts import ImageSet
from deploykit.errors import BundleError, MissingError, UsageError
from deploykit.parity.similarity import (
    LEAST_SIMILARITY,
    Similarity,
    both_zero,
    cosine_similarities,
    similarity_of,
)
from deploykit.proof.auto import AUTO, open_best
from deploykit.proof.reference import OpenReference
from deploykit.proof.verdict import Verdict
from deploykit.runtime.opener import CPU, CUDA, GRAPH_RUNTIMES, REHEARSAL
from deploykit.specs.embeddings import Tap, as_embeddings
from deploykit.specs.engine import is_flavour
from deploykit.specs.model import Precision
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import (
    Closing,
    Embeddings,
    EmbeddingSession,
    ImageBatch,
    Logits,
    Session,
    SessionSpec,
)
from deploykit.specs.value import plain_value
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted, now

_Embed: TypeAlias = Callable[[ImageBatch], tuple[Logits, Embeddings]]
#: A trace keeps every tensor of the network: few images at once.
_TRACED_BATCH = 2


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


# How near they are --------------------------------------------------------------------------------


def embeddings_of_module(
    reference: Session, tap: Tap, preprocessing: Preprocessing, opset: int | None
) -> _Embed:
    """What lets the torch module give the tensor that is the embedding, with its logits.

    Where the tensor is what an ``nn.Module`` takes or gives, it is taken there while the module
    answers. Else the module is traced, as it is for the export, and computed step by step.

    Args:
        reference: The session of the module.
        tap: The tensor.
        preprocessing: What images need.
        opset: The ONNX operator set of the export; None for torch's own choice.

    Raises:
        GraphError: torch cannot trace the module.
        UsageError: torch's trace has no such tensor.
    """
    from deploykit.runtime._torch import ModuleSession

    if not isinstance(reference, ModuleSession):
        raise TypeError("only the torch module has embeddings to compare with")
    if reference.has_tap(tap):
        return partial(reference.run_tapped, tap=tap)
    from deploykit.graph.traced import TracedModule

    traced = TracedModule(reference.module, preprocessing.input_size, opset=opset)
    if tap.tensor not in traced.steps:
        raise UsageError(
            f"The tensor {tap.tensor} is in the ONNX alone: the torch module has nothing that it "
            "could be compared with.",
            hint="Take another: --tap NAME, by the name of a module",
        )
    return partial(_embed_traced, reference, traced, tap, preprocessing)


def _embed_traced(
    reference: Session, traced: Any, tap: Tap, preprocessing: Preprocessing, images: ImageBatch
) -> tuple[Logits, Embeddings]:
    from deploykit.runtime._base import normalised

    found = [
        as_embeddings(
            traced.run(normalised(images[start : start + _TRACED_BATCH], preprocessing))[
                tap.tensor
            ],
            tap,
        )
        for start in range(0, len(images), _TRACED_BATCH)
    ]
    return reference.run(images), np.concatenate(found)


@dataclass(eq=False)
class _Answering(Closing):
    """A session that answers as another does, and tells the embeddings of each batch."""

    session: Session
    embed: _Embed
    on_batch: Callable[[Embeddings], None]

    @property
    def spec(self) -> SessionSpec:
        return self.session.spec

    def run(self, images: ImageBatch) -> Logits:
        logits, embeddings = self.embed(images)
        self.on_batch(embeddings)
        return logits

    def close(self) -> None:
        self.session.close()


class EmbeddingComparison:
    """Embeddings compared while a reference and candidates answer the same batches.

    Args:
        graph: The graph with embeddings.
        right: From :func:`embeddings_of_module`; None where nothing is to be compared.
    """

    def __init__(self, graph: str = "", right: _Embed | None = None) -> None:
        self._graph = graph
        self._embed = right
        self._right: Embeddings | None = None
        self._cosines: dict[SessionSpec, list[npt.NDArray[np.float64]]] = {}
        self._zeros: dict[SessionSpec, list[npt.NDArray[np.bool_]]] = {}

    def instead_of(
        self, reference: Session | Logits, candidates: Sequence[Session]
    ) -> tuple[Session | Logits, Sequence[Session]]:
        """The sessions that are to be asked, the reference first.

        Args:
            reference: The session of the torch module, or what answers where nothing is compared.
            candidates: Open sessions; those of other graphs are asked themselves.
        """
        if self._embed is None or isinstance(reference, np.ndarray):
            return reference, candidates
        asked = [
            _Answering(each, cast(EmbeddingSession, each).run_embedded, partial(self._add, each))
            if each.spec.graph == self._graph
            else each
            for each in candidates
        ]
        return _Answering(reference, self._embed, partial(setattr, self, "_right")), asked

    def _add(self, session: Session, found: Embeddings) -> None:
        if self._right is None:
            raise RuntimeError("the reference was not asked first")
        cosines = cosine_similarities(self._right, found)
        self._cosines.setdefault(session.spec, []).append(cosines)
        self._zeros.setdefault(session.spec, []).append(both_zero(self._right, found))

    def found(self, paths: Sequence[str]) -> dict[SessionSpec, Similarity]:
        """What was found of each session that gives embeddings.

        Args:
            paths: Of all images, in the order in which they were asked for.
        """
        return {
            spec: similarity_of(paths, np.concatenate(cosines), np.concatenate(self._zeros[spec]))
            for spec, cosines in self._cosines.items()
        }


def compare_embeddings(
    bundle: Bundle, reference: OpenReference | None, candidates: Sequence[Session]
) -> EmbeddingComparison:
    """Make what compares embeddings while a reference and candidates answer.

    Nothing is compared where no candidate gives embeddings, and with anything but a torch module.

    Args:
        bundle: The bundle.
        reference: What the candidates are compared with.
        candidates: Open sessions.
    """
    record, manifest = bundle.manifest.embeddings, bundle.manifest
    given = record is not None and any(each.spec.graph == record.graph for each in candidates)
    if record is None or not given or reference is None or reference.kind != "module":
        return EmbeddingComparison()
    right = embeddings_of_module(
        *(reference.session, record.tap, manifest.preprocessing, manifest.requested_opset)
    )
    return EmbeddingComparison(record.graph, right)


def refused_by_embeddings(
    verdicts: Sequence[Verdict], found: Mapping[SessionSpec, Similarity]
) -> tuple[Verdict, ...]:
    """The verdicts, with what the embeddings have against one."""
    reasons = {spec: failure_text(each) for spec, each in found.items()}
    return tuple(
        verdict.refused(reason) if (reason := reasons.get(verdict.candidate)) else verdict
        for verdict in verdicts
    )


def kept_similarity(
    spec: SessionSpec, found: Similarity, graph_sha256: str, images: ImageSet
) -> KeptSimilarity:
    """What the manifest keeps of a comparison.

    Args:
        spec: Of the session that gave the embeddings.
        found: How near they were.
        graph_sha256: Of the graph.
        images: On which images.
    """
    return KeptSimilarity(
        graph_sha256=graph_sha256,
        runtime=spec.runtime,
        device=spec.device,
        images=images,
        similarity=found,
        created=now(),
        versions=installed_versions(),
    )


def keep_similarities(
    bundle: Bundle, found: dict[SessionSpec, Similarity], images: ImageSet, progress: Progress
) -> None:
    """Put what was found into the manifest, or say why it is not kept.

    Args:
        bundle: The bundle, as it was when it was measured.
        found: By the session.
        images: On which images.
        progress: Called with a note when the bundle cannot be changed.
    """
    before = bundle.manifest.embeddings
    if before is None or not found:
        return
    sha256 = bundle.manifest.files[before.graph].sha256

    def change(manifest: Manifest) -> Manifest:
        record = manifest.embeddings
        if record is None or manifest.files[record.graph].sha256 != sha256:
            return manifest  # it was made anew meanwhile
        for spec, similarity in found.items():
            if not spec.tf32:
                kept = kept_similarity(spec, similarity, sha256, images)
                record = record.with_similarity(kept)
        return msgspec.structs.replace(manifest, embeddings=record)

    try:
        now_there = read_manifest(bundle.folder)
        if change(now_there) != now_there:
            update_manifest(bundle.folder, change)
    except BundleError as exc:
        progress(Note(f"the similarity of the embeddings is not kept: {exc.message}"))


# The words ----------------------------------------------------------------------------------------


def record_text(record: EmbeddingsRecord) -> str:
    """``deploy/fp32-embeddings.onnx: 512 values, the input of fc``."""
    return f"{record.graph}: {counted(record.tap.size, 'value')}, {record.tap.describe()}"


def similarity_text(found: Similarity) -> str:
    """``cosine to torch's at least 0.99999998 (32 images)``."""
    among = counted(found.images, "image")
    zeros = f", {found.zeros} of them all zeros in both" if found.zeros else ""
    return f"cosine to torch's at least {_digits(found.smallest)} ({among}{zeros})"


def _digits(cosine: float) -> str:
    """A cosine rounded towards 0, so that 1 says that it is 1."""
    return "1" if cosine == 1 else f"{np.trunc(cosine * 1e8) / 1e8:.8f}"


def failure_text(found: Similarity) -> str:
    """Why embeddings did not pass, in a sentence without a full stop; empty where they did."""
    if found.passed:
        return ""
    if found.zeros == found.images:
        return "the embeddings are all zeros, whatever the image shows"
    return (
        f"the cosine to torch's embeddings is {_digits(found.smallest)} for {found.path}; at least "
        f"{LEAST_SIMILARITY} is allowed"
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
