"""What the searches of FP16 and INT8 share: photos that the reference answered, and their words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from deploykit.bundle import Bundle
from deploykit.errors import ParityError
from deploykit.jobs._search import NodeSet
from deploykit.jobs.photos import Photos
from deploykit.jobs.readable import mostly_unreadable
from deploykit.jobs.reference import Reference
from deploykit.jobs.verdicts import Verdict, judge_sessions
from deploykit.manifest import Manifest, SearchRecord
from deploykit.parity.compare import NamedBatch
from deploykit.progress import Note, Progress, Step
from deploykit.proofs import PhotoSet
from deploykit.runtime.recorded import RecordedSession
from deploykit.session import ImageBatch, Logits, Session


@dataclass(frozen=True)
class AnsweredPhotos:
    """Photos and what the reference answers.

    Attributes:
        batches: The photos.
        logits: (N, K), in their order.
        drawn: What photos they are.
        digests: See :attr:`deploykit.jobs.photos.Photos.digests`.
    """

    batches: Sequence[NamedBatch]
    logits: Logits
    drawn: PhotoSet
    digests: frozenset[str]

    def search_on(self, runtime: str) -> SearchRecord:
        """What the manifest keeps of a search on these photos."""
        return SearchRecord(runtime, tuple(sorted(self.digests)))

    @property
    def images(self) -> ImageBatch:
        """(N, H, W, 3), all of them."""
        return np.concatenate([images for _, images in self.batches])

    def judge(self, candidate: Session, manifest: Manifest, progress: Progress) -> Verdict:
        """Compare a candidate with what the reference answered.

        Args:
            candidate: An open session.
            manifest: Of the bundle.
            progress: Called after every batch.
        """
        reference = RecordedSession(
            self.logits, name="reference", input_size=manifest.preprocessing.input_size
        )
        (verdict,) = judge_sessions(
            reference,
            [candidate],
            Photos(self.drawn.kind, self.drawn.source, len(self.logits), self.batches),
            manifest.labels,
            progress,
        )
        return verdict


@dataclass(frozen=True)
class KeptSet:
    """What a search found.

    Attributes:
        nodes: The names of nodes that must stay in FP32.
        reasons: Why, for each of them.
        trials: How many sets were tried.
        minimal: Whether it was shown that no single one can be spared.
    """

    nodes: NodeSet
    reasons: Mapping[str, str]
    trials: int
    minimal: bool


def answered_photos(photos: Photos, reference: Reference, progress: Progress) -> AnsweredPhotos:
    """Let the reference answer photos, and keep both.

    Raises:
        ImagesError: Not one of them can be read.
        ParityError: Most of them cannot.
    """
    batches, logits = [], []
    for names, images in photos:
        if not names:
            continue  # not one of these files could be read
        batches.append((names, images.copy()))  # the buffer behind them is reused
        logits.append(reference.session.run(images))
        progress(Step("asking the reference", sum(map(len, logits)), photos.count))
    drawn = readable_photos(photos)
    return AnsweredPhotos(batches, np.concatenate(logits), drawn, photos.digests)


def readable_photos(photos: Photos) -> PhotoSet:
    """What photos were drawn, if they can stand for all.

    Raises:
        ImagesError: Not one of them can be read.
        ParityError: Most of them cannot.
    """
    drawn = photos.drawn()
    if objection := mostly_unreadable(photos.unreadable, drawn.images):
        raise ParityError(
            f"{photos.source}: {objection}.",
            hint="Look at them with `deploykit predict`, which says what is wrong with each; "
            "or name another folder: --images DIR",
        )
    return drawn


def warn_of_few(
    bundle: Bundle, graph: str, photos: Photos, enough: int, progress: Progress
) -> None:
    """Say aloud that a graph will be replaced by one that fewer photos prove.

    Args:
        bundle: The bundle.
        graph: The graph's path in it, whether it is there or not.
        photos: On which it will be proven.
        enough: How many a proof takes where there are that many.
        progress: Called with the note.
    """
    record = bundle.manifest.files.get(graph)
    proven = max(
        (
            each.photos.images
            for each in bundle.manifest.proofs
            if record is not None
            and (each.graph, each.graph_sha256) == (graph, record.sha256)
            and (each.photos.kind, each.searched) == ("photos", 0)
        ),
        default=0,
    )
    if photos.count < min(proven, enough):
        progress(
            Note(
                f"WEAKER: {graph} was proven on {proven} photos, and what replaces it will be on "
                f"{photos.count}; a proof takes {enough} where --images has that many to spare"
            )
        )


def group_reasons(groups: Sequence[tuple[Sequence[str], str]]) -> dict[str, str]:
    """Each node's reason: that of the first group that it is in."""
    return {name: reason for names, reason in reversed(groups) for name in names}


def flip_lines(verdict: Verdict) -> Iterable[str]:
    """A line for each photo that changed its class."""
    for flip in verdict.measurement.distinct_flips:
        yield f"{flip.path}: {flip.reference} -> {flip.candidate}, margin {flip.margin:.2e}"


def note_unreadable(drawn: Iterable[Photos], progress: Progress) -> None:
    """Say aloud how many of the sampled photos were left out."""
    unreadable = sum(photos.unreadable for photos in drawn)
    if unreadable:
        progress(Note(f"{unreadable} of the sampled photos cannot be read: left out"))
