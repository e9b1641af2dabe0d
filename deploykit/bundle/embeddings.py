"""What a manifest keeps of the graph with embeddings, and of their proofs: frozen, without I/O."""

from __future__ import annotations

import msgspec

from deploykit.bundle.verdicts import CandidateKey, ImageSet, ReferenceKind
from deploykit.parity.similarity import Similarity
from deploykit.specs.embeddings import Tap
from deploykit.specs.value import Value
from deploykit.system.deps import runtime_version

#: The FP32 deploy graph with a second output, ``embedding`` float32 [N, E].
EMBEDDINGS_GRAPH = "deploy/fp32-embeddings.onnx"


class KeptSimilarity(Value, frozen=True):
    """How near the embeddings of a runtime were to the reference's.

    Attributes:
        graph_sha256: Of the graph when it was measured.
        runtime: What executed it.
        device: On which device.
        images: The images.
        similarity: What was found.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
        reference_kind: What they were compared with: the torch ``module``, or the canonical
            ``graph``.
    """

    graph_sha256: str
    runtime: str
    device: str
    images: ImageSet
    similarity: Similarity
    created: str
    versions: dict[str, str]
    reference_kind: ReferenceKind = "module"

    @property
    def key(self) -> CandidateKey:
        """What it is about."""
        return CandidateKey(self.graph_sha256, self.runtime, "fp32", self.device)

    @property
    def runtime_version(self) -> str:
        """Version of the runtime, or "" if unknown."""
        return runtime_version(self.runtime, self.versions)

    def replaces(self, old: KeptSimilarity) -> bool:
        """Whether only this one is kept: the last on at least as many images, or one that failed.

        Another version of the runtime is another thing to judge. What was compared with the
        canonical graph takes away what passed by the torch module, and replaces nothing else of
        that: only the module shows whether the tensor is the module's.
        """
        if self.key != old.key or self.runtime_version != old.runtime_version:
            return False
        if old.similarity.passed and not self.similarity.passed:
            return True
        if self.reference_kind == "graph" and old.reference_kind == "module":
            return False
        ours = self.images.kind == "photos", self.similarity.images
        theirs = old.images.kind == "photos", old.similarity.images
        return ours >= theirs


class EmbeddingsRecord(Value, frozen=True):
    """The graph that gives embeddings beside the logits.

    Attributes:
        graph: The graph, relative to the bundle.
        tap: Which tensor the embedding is.
        requested: What ``--tap`` named; empty for the input of the last layer.
        similarities: What has been shown, the newest last.
    """

    graph: str
    tap: Tap
    requested: str = ""
    similarities: tuple[KeptSimilarity, ...] = ()

    def with_similarity(self, found: KeptSimilarity) -> EmbeddingsRecord:
        """A copy that keeps what was found, unless one that it would not replace shows more."""
        others = tuple(each for each in self.similarities if not found.replaces(each))
        if any(each.replaces(found) for each in others):
            return self
        return msgspec.structs.replace(self, similarities=(*others, found))

    def similarity_on(self, key: CandidateKey, runtime_version: str) -> KeptSimilarity | None:
        """What is known of a graph on a runtime, in one version, and a device; None for nothing.

        One that failed comes first, then what was compared with the torch module.
        """
        found = [
            each
            for each in self.similarities
            if each.key == key and each.runtime_version == runtime_version
        ]
        return min(
            found,
            key=lambda each: (each.similarity.passed, each.reference_kind != "module"),
            default=None,
        )
