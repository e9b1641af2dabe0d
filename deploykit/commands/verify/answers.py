"""Photos with the answers of both sides, and their pictures."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from deploykit.commands.verify.scatter import Photo, compared_photos
from deploykit.html.thumbnails import make_thumbnails
from deploykit.html.words import number
from deploykit.parity.measurement import UNDECIDABLE_MARGIN
from deploykit.parity.measures import margins, softmax
from deploykit.specs.prediction import Ranked

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from deploykit.commands.verify.result import Verification
    from deploykit.specs.session import Logits

_TOP_K = 3


@dataclass(frozen=True)
class SideAnswer:
    """What one side says about a photo.

    Attributes:
        top: Its best classes, the best first.
        margin: Its top-1 logit minus its top-2 logit.
    """

    top: tuple[Ranked, ...]
    margin: float


@dataclass(frozen=True)
class PhotoAnswers:
    """A photo that is shown with the answers of both sides.

    Attributes:
        name: Its name.
        expected: The class that its folder names; None without.
        reference: What the reference says.
        candidate: What the candidate says.
        decidable: Whether the reference's margin decides.
        room: How many times further its logits would have to move before its class could change.
    """

    name: str
    expected: str | None
    reference: SideAnswer
    candidate: SideAnswer
    decidable: bool
    room: float


class Comparison:
    """One candidate's answers beside the reference's.

    Args:
        verification: What was compared.
        place: The candidate's place in it.
        labels: The classes' names.
    """

    def __init__(self, verification: Verification, place: int, labels: tuple[str, ...]) -> None:
        answers, verdict = verification.answers, verification.verdicts[place]
        self._names = answers.paths
        self._reference, self._candidate = answers.reference, answers.candidates[place]
        self._expected = verification.expected
        self._labels = labels
        self.photos = compared_photos(self._reference, self._candidate)
        #: Up to this margin a class means nothing.
        self.undecidable = (
            UNDECIDABLE_MARGIN[verdict.candidate.precision] * verdict.measurement.scale
        )

    def shown(self, photo: Photo) -> PhotoAnswers:
        """A photo with what both sides say about it."""
        name = self._names[photo.index]
        return PhotoAnswers(
            name=name,
            expected=self._expected.get(name),
            reference=self._answer(self._reference[photo.index]),
            candidate=self._answer(self._candidate[photo.index]),
            decidable=photo.margin > self.undecidable,
            room=photo.room,
        )

    def point(self, photo: Photo) -> list[Any]:
        """What the picture tells of a photo.

        ``[name, reference's class, candidate's class, margin, change, whether the margin decides]``
        """
        sides = (self._reference[photo.index], self._candidate[photo.index])
        return [
            self._names[photo.index],
            *(self._labels[int(logits.argmax())] for logits in sides),
            number(photo.margin),
            number(photo.change),
            photo.margin > self.undecidable,
        ]

    def flipped(self, most: int) -> list[Photo]:
        """The photos whose class differs, the largest margins first."""
        flipped = [photo for photo in self.photos if photo.kind == "flipped"]
        return sorted(flipped, key=lambda photo: -photo.margin)[:most]

    def closest(self, most: int) -> list[Photo]:
        """The photos whose class came closest to changing."""
        return sorted(self.photos, key=lambda photo: photo.room)[:most]

    def _answer(self, logits: Logits) -> SideAnswer:
        probabilities = softmax(logits[None])[0]
        best = np.argsort(-probabilities, kind="stable")[:_TOP_K]
        return SideAnswer(
            tuple(
                Ranked(label=self._labels[i], probability=float(probabilities[i]))
                for i in best.tolist()
            ),
            float(margins(logits[None])[0]),
        )


def thumbnail_urls(names: Iterable[str], folder: Path | None) -> Mapping[str, str]:
    """The thumbnail of each photo that can still be read, as a ``data:`` URL.

    Args:
        names: As the comparison names them.
        folder: Where they are; None where there are no files.
    """
    if folder is None:
        return {}
    wanted = sorted(set(names))
    pictures = make_thumbnails(list(enumerate(wanted)), folder)
    return {
        wanted[place]: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
        for place, jpeg in pictures
        if jpeg is not None
    }
