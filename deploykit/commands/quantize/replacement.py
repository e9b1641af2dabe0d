"""Whether a graph may take the place of one that is proven, by what proves it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.bundle.proofs import ENOUGH_PHOTOS, Proof
from deploykit.errors import BundleError, ParityError
from deploykit.proof.answered import AnsweredPhotos
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted

_MORE_PHOTOS = (
    f"Give {2 * ENOUGH_PHOTOS} different photos or more (--images DIR): one half is searched on, "
    "the other proves."
)


def weigh_photos(
    bundle: Bundle, graphs: Iterable[str], photos: AnsweredPhotos, enough: int, progress: Progress
) -> None:
    """Say aloud, before a search, where the proof of what it finds will be weak.

    Args:
        bundle: The bundle.
        graphs: The paths in it of what will be made, whether they are there or not.
        photos: On which it will be proven.
        enough: How many a proof takes where there are that many.
        progress: Called with the notes.

    Raises:
        ParityError: A graph is there whose proof decides, and no proof on these photos would.
    """
    too_few = f"on {_photos_words(photos)}, too few to decide anything below FP32"
    for graph in graphs:
        standing = _proofs_of(bundle, graph)
        if photos.is_too_few and any(proof.decides for proof in standing):
            raise ParityError(
                f"{graph} stays as it is, proven on {_most_photos(standing)} photos: what would "
                f"replace it would be proven {too_few}; that takes {ENOUGH_PHOTOS}.",
                hint=_MORE_PHOTOS,
            )
        proven = _most_photos(proof for proof in standing if not proof.searched)
        if photos.drawn.images < min(proven, enough):
            progress(
                Note(
                    f"WEAKER: {graph} was proven on {proven} photos, and what replaces it will be "
                    f"on {photos.drawn.images}; a proof takes {enough} where --images has that "
                    "many to spare"
                )
            )
    if photos.is_too_few:
        progress(
            Note(f"WEAK: the proof will be {too_few}; that takes {ENOUGH_PHOTOS}. {_MORE_PHOTOS}")
        )


def refuse_vague(bundle: Bundle, graph: str, proofs: Sequence[Proof]) -> None:
    """Refuse what was made where its proofs show too little to replace what is there.

    Args:
        bundle: The bundle.
        graph: The graph's path in it, whether it is there or not.
        proofs: Of what was made.

    Raises:
        ParityError: A graph is there whose proof decides, and none of these does, being vague.
    """
    standing = _proofs_of(bundle, graph)
    if any(proof.decides for proof in standing) and all(proof.is_vague for proof in proofs):
        found = proofs[0].measurement
        raise ParityError(
            f"{graph} stays as it is, proven on {_most_photos(standing)} photos: what would "
            f"replace it passes, with {counted(found.flips, 'changed decision')} of "
            f"{found.decidable}, and on so few that decides nothing.",
            hint=_MORE_PHOTOS,
        )


def _proofs_of(bundle: Bundle, graph: str) -> list[Proof]:
    """Those on photos of a graph as it is now; none of one that is missing or damaged."""
    try:
        bundle.checked(graph)
    except BundleError:
        return []
    sha256 = bundle.manifest.files[graph].sha256
    return [
        proof
        for proof in bundle.manifest.proofs
        if (proof.graph, proof.graph_sha256, proof.photos.kind) == (graph, sha256, "photos")
    ]


def _most_photos(proofs: Iterable[Proof]) -> int:
    return max((proof.photos.images for proof in proofs), default=0)


def _photos_words(photos: AnsweredPhotos) -> str:
    if photos.drawn.kind == "photos":
        return counted(photos.distinct, "different photo")
    return f"images of {GOLDEN}"
