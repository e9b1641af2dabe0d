"""What a new graph may replace: none that is proven, if it is not."""

from __future__ import annotations

from collections.abc import Iterable

from deploykit.bundle.folder import Bundle
from deploykit.commands.quantize.strategy import Scheme
from deploykit.errors import BundleError, ParityError
from deploykit.parity.tolerance import MIN_IMAGES
from deploykit.proof.answered import AnsweredImages
from deploykit.proof.policy import status_of
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted

_MORE_IMAGES = (
    f"Give {2 * MIN_IMAGES} different photos or more (--images DIR): one half is searched on, "
    "the other proves."
)


def weigh_images(
    bundle: Bundle, schemes: Iterable[Scheme], images: AnsweredImages, progress: Progress
) -> None:
    """Say before a search that what it finds will not be proven, if the photos are too few.

    Raises:
        ParityError: The photos are too few, and a graph is there that is proven.
    """
    if not images.is_too_few:
        return
    count = counted(images.drawn.count, "photo" if images.drawn.kind == "photos" else "image")
    why = f"compared on {count}; below FP32 a proof takes {MIN_IMAGES} photos"
    for scheme in schemes:
        keep_what_is_proven(bundle, scheme.graph, f"would be {why}")
    progress(Note(f"UNPROVEN: what is made will be {why}. {_MORE_IMAGES}"))


def keep_what_is_proven(bundle: Bundle, graph: str, why: str) -> None:
    """Refuse to replace a graph that is proven by one that is not.

    Raises:
        ParityError: There is such a graph, and ``why`` says what the other one lacks.
    """
    if _is_proven(bundle, graph):
        raise ParityError(
            f"{graph} stays as it is: it is proven, and what would replace it {why}.",
            hint=_MORE_IMAGES,
        )


def _is_proven(bundle: Bundle, graph: str) -> bool:
    """Whether a proof of a graph counts anywhere; not of one that is missing or damaged."""
    try:
        bundle.checked(graph)
    except BundleError:
        return False
    sha256 = bundle.manifest.files[graph].sha256
    return any(
        each.graph_sha256 == sha256 and status_of(bundle, each).word == "proven"
        for each in bundle.manifest.verdicts
    )
