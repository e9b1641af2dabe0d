"""How near embeddings are to the reference's: compared while both answer, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.bundle.embeddings import KeptSimilarity
from deploykit.bundle.folder import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.bundle.manifest import Manifest, read_manifest, update_manifest
from deploykit.bundle.verdicts import ImageSet, ReferenceKind
from deploykit.errors import BundleError, DependencyError, GraphError, UsageError
from deploykit.parity.similarity import (
    Similarity,
    both_zero,
    cosine_similarities,
    similarity_of,
)
from deploykit.proof.embeddings_text import failure_text
from deploykit.proof.reference import OpenReference
from deploykit.proof.verdict import Verdict
from deploykit.runtime.opener import open_probe
from deploykit.specs.embeddings import Tap, as_embeddings
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
from deploykit.system.deps import installed_versions, need
from deploykit.system.progress import Note, Progress
from deploykit.system.text import now

_Embed: TypeAlias = Callable[[ImageBatch], tuple[Logits, Embeddings]]
#: A trace keeps every tensor of the network: few images at once.
_TRACED_BATCH = 2


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


def _embeddings_of_graph(bundle: Bundle, reference: Session, tap: Tap, stack: ExitStack) -> _Embed:
    """What lets the canonical graph give the tensor that is the embedding, with its logits.

    The logits are those of the reference itself, whatever a runtime makes of another output.

    Raises:
        BundleError: The graph is missing or damaged, or has no such tensor.
        DependencyError: What changes graphs is not installed.
    """
    need("onnx_ir")
    from deploykit.graph.files import load_graph
    from deploykit.graph.instruments import model_bytes, with_only, with_outputs
    from deploykit.runtime._base import normalised

    path = bundle.checked(CANONICAL_GRAPH)
    graph = load_graph(path)
    try:
        graph = with_only(with_outputs(graph, [tap.tensor]), {tap.tensor})
    except GraphError as exc:
        raise _no_such_tap(path, tap) from exc
    probe = stack.enter_context(open_probe(model_bytes(graph)))
    source = graph.graph.inputs[0].name or ""

    def embed(images: ImageBatch) -> tuple[Logits, Embeddings]:
        tensor = probe.run({source: normalised(images, bundle.manifest.preprocessing)})[tap.tensor]
        if not tap.fits(tensor.shape):
            raise _no_such_tap(path, tap)
        return reference.run(images), as_embeddings(tensor, tap)

    return embed


def _no_such_tap(path: Path, tap: Tap) -> BundleError:
    return BundleError(
        f"{path} has no tensor {tap.tensor} of {tap.size} values an image, which the manifest "
        "names as the embedding.",
        hint="Export the bundle again with --embeddings.",
    )


class EmbeddingComparison:
    """Embeddings compared while a reference and candidates answer the same batches.

    Args:
        graph: The graph with embeddings.
        right: What gives the reference's; None where nothing is to be compared.
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
            reference: The reference's session, or what answers where nothing is compared.
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
    bundle: Bundle,
    reference: OpenReference | None,
    candidates: Sequence[Session],
    stack: ExitStack,
    progress: Progress,
) -> EmbeddingComparison:
    """Make what compares embeddings while a reference and candidates answer.

    Nothing is compared where no candidate gives embeddings.

    Args:
        bundle: The bundle.
        reference: What the candidates are compared with; None for recorded answers.
        candidates: Open sessions.
        stack: Closes what is opened.
        progress: Called with a note where the reference has no embeddings.

    Raises:
        BundleError: The canonical graph is the reference, and is not the one that was exported.
        GraphError, UsageError: See :func:`embeddings_of_module`.
    """
    record, manifest = bundle.manifest.embeddings, bundle.manifest
    if record is None or all(each.spec.graph != record.graph for each in candidates):
        return EmbeddingComparison()
    if reference is None:
        progress(Note(f"embeddings are not compared: {GOLDEN} has recorded logits alone"))
        return EmbeddingComparison()
    if reference.kind == "module":
        right = embeddings_of_module(
            *(reference.session, record.tap, manifest.preprocessing, manifest.requested_opset)
        )
        return EmbeddingComparison(record.graph, right)
    try:
        right = _embeddings_of_graph(bundle, reference.session, record.tap, stack)
    except DependencyError as exc:
        progress(Note(f"embeddings are not compared: {exc.message}"))
        return EmbeddingComparison()
    return EmbeddingComparison(record.graph, right)


def refused_by_embeddings(
    verdicts: Sequence[Verdict], found: Mapping[SessionSpec, Similarity], kind: ReferenceKind
) -> tuple[Verdict, ...]:
    """The verdicts, with what the embeddings have against one.

    Args:
        verdicts: On the logits.
        found: How near the embeddings are to the reference's.
        kind: What that is.
    """
    reasons = {spec: failure_text(each, kind) for spec, each in found.items()}
    return tuple(
        verdict.refused(reason) if (reason := reasons.get(verdict.candidate)) else verdict
        for verdict in verdicts
    )


def kept_similarity(
    spec: SessionSpec,
    found: Similarity,
    graph_sha256: str,
    images: ImageSet,
    kind: ReferenceKind = "module",
) -> KeptSimilarity:
    """What the manifest keeps of a comparison.

    Args:
        spec: Of the session that gave the embeddings.
        found: How near they were.
        graph_sha256: Of the graph.
        images: On which images.
        kind: What they were compared with.
    """
    return KeptSimilarity(
        graph_sha256=graph_sha256,
        runtime=spec.runtime,
        device=spec.device,
        images=images,
        similarity=found,
        created=now(),
        versions=installed_versions(),
        reference_kind=kind,
    )


def keep_similarities(
    bundle: Bundle,
    found: Mapping[SessionSpec, Similarity],
    kind: ReferenceKind,
    images: ImageSet,
    progress: Progress,
) -> None:
    """Put how near embeddings are to the reference's into the manifest, or say why it is not kept.

    Args:
        bundle: The bundle, as it was when it was measured.
        found: By the session.
        kind: What they were compared with.
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
                kept = kept_similarity(spec, similarity, sha256, images, kind)
                record = record.with_similarity(kept)
        return msgspec.structs.replace(manifest, embeddings=record)

    try:
        now_there = read_manifest(bundle.folder)
        if change(now_there) != now_there:
            update_manifest(bundle.folder, change)
    except BundleError as exc:
        progress(Note(f"the similarity of the embeddings is not kept: {exc.message}"))
