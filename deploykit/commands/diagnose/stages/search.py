"""The search for a lost accuracy: the usual ways to preprocess and to order labels, tried out."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.stages.differences import as_typed
from deploykit.commands.diagnose.stages.labels import right_answers
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.commands.diagnose.stages.variations import (
    Guess,
    Variation,
    label_variations,
    recorded_guess,
    usual_variations,
)
from deploykit.images.batches import default_threads
from deploykit.images.decode import decode_rgb
from deploykit.images.pixel_steps import PixelSteps, normalised, take_steps
from deploykit.images.preprocess import OversizeError
from deploykit.inference.sessions import open_bundle_graph
from deploykit.parity.diagnosis import Finding, Trial
from deploykit.parity.significance import SIGNIFICANT, several, sign_test
from deploykit.runtime.opener import CPU
from deploykit.specs.session import ImageBatch, Logits, NormalisedSession
from deploykit.system.progress import Note, Progress, Step

SEARCH_SECONDS = 60.0
MOST_PHOTOS = 64
_BATCH = 8
_TIES_TOLD = 3
#: Decoded photos are kept up to this; what is beyond is decoded again for each way to the size.
_KEPT_BYTES = 256 << 20

Right: TypeAlias = npt.NDArray[np.bool_]
"""(n,) which of the labelled photos get their folder's class."""


@dataclass(frozen=True, eq=False)
class _Tried:
    """A variation, or two together, and what they get right."""

    variations: tuple[Variation, ...]
    right: Right

    @property
    def correct(self) -> int:
        return int(self.right.sum())

    @property
    def change(self) -> str:
        return described(self.variations)

    def trial(self) -> Trial:
        options = [each.options for each in self.variations]
        return Trial(
            change=self.change,
            option=" ".join(map(as_typed, options)) if all(options) else "",
            correct=self.correct,
            images=len(self.right),
        )


def described(variations: Sequence[Variation]) -> str:
    """Variations together, in words."""
    return " and ".join(each.change for each in variations)


def search_accuracy(
    bundle: Bundle, photos: StagePhotos, progress: Progress
) -> tuple[tuple[Trial, ...], Finding | None]:
    """Try the usual ways one at a time, then the best with each other, on the canonical graph.

    Args:
        bundle: The bundle.
        photos: Of which some are labelled.
        progress: Told of every trial, and when the time is up before all are tried.

    Returns:
        The trials, the best first, and which of them restores the accuracy beyond chance.
    """
    session = open_bundle_graph(bundle, CANONICAL_GRAPH, runtime=CPU, precision="fp32")
    with session, ThreadPoolExecutor(default_threads()) as pool:
        # A canonical graph takes normalised images; the deploy graphs do not.
        network = cast("NormalisedSession", session)
        search = _Search(bundle, photos.thinned(MOST_PHOTOS), network, pool, progress)
        tried = search.run()
    ranked = sorted(tried, key=lambda each: -each.correct)
    finding = _finding(ranked, search.base, search.truth)
    return tuple(each.trial() for each in ranked), finding


class _Search:
    """Tries variations of what is recorded.

    Attributes:
        base: What is right as recorded.
        truth: (n,), the right classes of the labelled photos.
    """

    def __init__(
        self,
        bundle: Bundle,
        photos: StagePhotos,
        network: NormalisedSession,
        pool: ThreadPoolExecutor,
        progress: Progress,
    ) -> None:
        self._photos = photos
        self._network = network
        self._pool = pool
        self._progress = progress
        self.truth = np.array([name for name in photos.truth if name is not None])
        self._decode = _Decoder()
        self._labels = bundle.manifest.labels
        self._recorded = recorded_guess(bundle.manifest)
        self._pixels = functools.lru_cache(maxsize=1)(self._make_pixels)
        self.base = self._right(self._recorded)

    def run(self) -> list[_Tried]:
        """Try what is usual, then the best of it with each of the others, while there is time."""
        deadline = time.perf_counter() + SEARCH_SECONDS
        variations = [
            *usual_variations(self._recorded, turned=bool(self._photos.turned)),
            *label_variations(self._photos, self._logits(self._recorded), self._labels),
        ]
        tried = self._try([(each,) for each in variations], deadline)
        best = max(tried, key=lambda each: each.correct, default=None)
        if best is None or not int(self.base.sum()) < best.correct < len(self.base):
            return tried
        (first,) = best.variations
        pairs = [(first, each) for each in variations if self._go_together(first, each)]
        return [*tried, *self._try(pairs, deadline)]

    def _try(self, ways: Sequence[tuple[Variation, ...]], deadline: float) -> list[_Tried]:
        tried: list[_Tried] = []
        for number, variations in enumerate(ways):
            change = described(variations)
            if time.perf_counter() > deadline:
                self._progress(
                    Note(f"the search stopped after a minute: {len(ways) - number} not tried")
                )
                break
            self._progress(Step("searching the accuracy", number, len(ways), change))
            try:
                right = self._right(self._guess(variations))
            except OversizeError as exc:
                self._progress(Note(f"not tried: {change}: {exc.message}"))
                continue
            tried.append(_Tried(variations, right))
        return tried

    def _guess(self, variations: Sequence[Variation]) -> Guess:
        guess = self._recorded
        for each in variations:
            guess = each.apply(guess)
        return guess

    def _go_together(self, one: Variation, other: Variation) -> bool:
        """Whether neither undoes the other."""
        return one is not other and self._guess((one, other)) == self._guess((other, one))

    def _right(self, guess: Guess) -> Right:
        return right_answers(self._photos, self._logits(guess), guess.names)

    def _logits(self, guess: Guess) -> Logits:
        """(N, K), the network's answers."""
        treatment = guess.treatment
        inputs = [
            normalised(pixels, treatment.mean, treatment.std)
            for pixels in self._pixels(treatment.steps)
        ]
        return np.concatenate(
            [
                self._network.run_normalised(np.stack(inputs[start : start + _BATCH]))
                for start in range(0, len(inputs), _BATCH)
            ]
        )

    def _make_pixels(self, steps: PixelSteps) -> ImageBatch:
        def read(path: Path) -> npt.NDArray[np.uint8]:
            return take_steps(self._decode(path), steps)

        return np.stack(list(self._pool.map(read, (file.path for file in self._photos.files))))


class _Decoder:
    """Decodes photos, and keeps as many as fit. Several threads may use it."""

    def __init__(self) -> None:
        self._kept: dict[Path, Image.Image] = {}
        self._left = _KEPT_BYTES
        self._lock = threading.Lock()

    def __call__(self, path: Path) -> Image.Image:
        kept = self._kept.get(path)
        if kept is not None:
            return kept
        image = decode_rgb(path)
        size = 3 * image.width * image.height
        with self._lock:
            if size <= self._left:
                self._left -= size
                self._kept[path] = image
        return image


def _finding(ranked: Sequence[_Tried], base: Right, truth: npt.NDArray[np.str_]) -> Finding | None:
    """Name what restores the accuracy, if what it gains is more than chance.

    Args:
        ranked: What was tried, the best first.
        base: What is right as recorded.
        truth: (n,), the right classes.
    """
    if not ranked:
        return None
    single = next(each for each in ranked if len(each.variations) == 1)
    best = ranked[0]
    pairs = sum(len(each.variations) > 1 for each in ranked)
    if _restores(single, base, truth, len(ranked)) and (
        _chance(best.right, single.right, max(1, pairs)) >= SIGNIFICANT
    ):
        best = single  # two changes must be worth more than the better of them
    if not _restores(best, base, truth, len(ranked)):
        return None
    ties = [each.change for each in ranked if each.correct == best.correct and each is not best]
    also = f"; as many with: {'; '.join(ties[:_TIES_TOLD])}" if ties else ""
    stages = [each.stage for each in best.variations]
    return Finding(
        stage=next((stage for stage in stages if stage != "labels"), "labels"),
        message=f"{best.change}: {best.correct} of {len(base)} photos get their folder's class "
        f"instead of {int(base.sum())}{also}",
        hint=" ".join(each.hint for each in best.variations),
        options=tuple(option for each in best.variations for option in each.mending),
        labels=next((each.order.names for each in best.variations if each.order is not None), ()),
    )


def _restores(tried: _Tried, base: Right, truth: npt.NDArray[np.str_], hypotheses: int) -> bool:
    """Whether what it gains is more than chance, and more than one class shows it."""
    labels_only = all(each.stage == "labels" for each in tried.variations)
    shown = tried.right & ~base if labels_only else tried.right
    return _chance(tried.right, base, hypotheses) < SIGNIFICANT and several(truth[shown].tolist())


def _chance(right: Right, base: Right, hypotheses: int) -> float:
    gained, lost = int((right & ~base).sum()), int((base & ~right).sum())
    return sign_test(gained, lost, hypotheses)
