"""Whether a graph may take the place of one that is proven."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploykit.bundle.folder import Bundle
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.errors import BundleError, ParityError
from deploykit.proof.answered import AnsweredPhotos
from deploykit.proof.policy import MIN_PHOTOS, too_few_photos
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted

_MORE_PHOTOS = (
    f"Give {2 * MIN_PHOTOS} different photos or more (--images DIR): one half is searched on, "
    "the other proves."
)


def weigh_photos(
    bundle: Bundle, graphs: Iterable[str], photos: AnsweredPhotos, progress: Progress
) -> None:
    """Say before a search that what it finds will not be proven, if the photos are too few.

    Args:
        bundle: The bundle.
        graphs: The paths in it of what will be made, whether they are there or not.
        photos: On which it will be proven.
        progress: Called with the note.

    Raises:
        ParityError: The photos are too few, and a graph is there that is proven.
    """
    if not photos.is_too_few:
        return
    images = counted(photos.drawn.images, "photo" if photos.drawn.kind == "photos" else "image")
    for graph in graphs:
        if _is_proven(bundle, graph):
            raise ParityError(
                f"{graph} stays as it is: it is proven, and what would replace it would be "
                f"compared on {images}; below FP32 a proof takes {MIN_PHOTOS} photos.",
                hint=_MORE_PHOTOS,
            )
    progress(
        Note(
            f"UNPROVEN: what is made will be compared on {images}; below FP32 a proof takes "
            f"{MIN_PHOTOS} photos. {_MORE_PHOTOS}"
        )
    )


def refuse_unproven(bundle: Bundle, graph: str, proofs: Sequence[KeptVerdict]) -> None:
    """Refuse what was made where it would replace what is proven and is not proven itself.

    Args:
        bundle: The bundle.
        graph: The graph's path in it, whether it is there or not.
        proofs: Of what was made.

    Raises:
        ParityError: A graph is there that is proven, and no proof of this one counts.
    """
    reasons = [too_few_photos(proof) for proof in proofs]
    if all(reasons) and _is_proven(bundle, graph):
        raise ParityError(
            f"{graph} stays as it is: it is proven, and what would replace it is not: "
            f"{reasons[0]}.",
            hint=_MORE_PHOTOS,
        )


def _is_proven(bundle: Bundle, graph: str) -> bool:
    """Whether a proof of a graph counts anywhere; not of one that is missing or damaged."""
    try:
        bundle.checked(graph)
    except BundleError:
        return False
    sha256 = bundle.manifest.files[graph].sha256
    return any(
        each.graph_sha256 == sha256
        and each.passed
        and not each.is_recorded
        and not too_few_photos(each)
        and not each.measurement.flips
        for each in bundle.manifest.verdicts
    )
