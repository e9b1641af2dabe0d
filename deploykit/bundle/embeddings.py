"""What a manifest keeps of the graph with embeddings, and of their proofs: frozen, without I/O."""

from __future__ import annotations

import msgspec

from deploykit.bundle.verdicts import ImageSet
from deploykit.parity.similarity import Similarity
from deploykit.specs.embeddings import Tap
from deploykit.specs.value import Value

#: The FP32 deploy graph with a second output, ``embedding`` float32 [N, E].
EMBEDDINGS_GRAPH = "deploy/fp32-embeddings.onnx"


class KeptSimilarity(Value, frozen=True):
    """How near the embeddings of a runtime were to the torch module's.

    Attributes:
        graph_sha256: Of the graph when it was measured.
        runtime: What executed it.
        device: On which device.
        images: The images.
        similarity: What was found.
        created: When, UTC, ISO 8601.
        versions: Of the packages that took part.
    """

    graph_sha256: str
    runtime: str
    device: str
    images: ImageSet
    similarity: Similarity
    created: str
    versions: dict[str, str]

    def replaces(self, old: KeptSimilarity) -> bool:
        """Whether only this one is kept: the last on at least as many images, or one that failed.

        A runtime has one on each device, whatever its version.
        """
        if (self.graph_sha256, self.runtime, self.device) != (
            *(old.graph_sha256, old.runtime),
            old.device,
        ):
            return False
        ours = self.images.kind == "photos", self.similarity.images
        theirs = old.images.kind == "photos", old.similarity.images
        newer = self.versions != old.versions
        return ours >= theirs or newer or (old.similarity.passed and not self.similarity.passed)


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

    def similarity_on(self, runtime: str, device: str | None = None) -> KeptSimilarity | None:
        """The newest on a runtime, and on a device where one is named; None where there is none."""
        found = [
            each
            for each in self.similarities
            if each.runtime == runtime and device in (None, each.device)
        ]
        return found[-1] if found else None
