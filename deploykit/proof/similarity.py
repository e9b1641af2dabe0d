"""How near embeddings are to the trained network's: compared while both answer, and kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.bundle.embeddings import KeptSimilarity
from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest, read_manifest, update_manifest
from deploykit.bundle.verdicts import ImageSet
from deploykit.errors import BundleError, UsageError
from deploykit.parity.similarity import (
    Similarity,
    both_zero,
    cosine_similarities,
    similarity_of,
)
from deploykit.proof.embeddings import failure_text
from deploykit.proof.reference import OpenReference
from deploykit.proof.verdict import Verdict
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
from deploykit.system.deps import installed_versions
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
