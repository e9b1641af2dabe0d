"""What training may have done otherwise than a bundle records: what is usual, likeliest first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec

from deploykit.bundle.manifest import Manifest
from deploykit.commands.diagnose.stages.differences import (
    ANTIALIAS_HINT,
    BGR_HINT,
    TURNING_HINT,
    Treatment,
    export_again,
    filter_options,
    recorded_treatment,
    size_options,
)
from deploykit.commands.diagnose.stages.labels import label_options, order_hint, tried_orders
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.images.usual import FILTERS_USED, NORMALISATIONS, describe_values, format_values
from deploykit.parity.diagnosis import Options, Stage
from deploykit.parity.label_order import Reordering
from deploykit.specs.labels import Labels
from deploykit.specs.preprocessing import Size
from deploykit.specs.session import Logits
from deploykit.specs.value import Value

#: What recipes resize the shorter side to, for a network that takes 224.
_USUAL_RESIZE = 256 / 224


class Guess(Value, frozen=True):
    """What training may have done.

    Attributes:
        treatment: To a photo.
        names: The labels, in the order of the logits.
    """

    treatment: Treatment
    names: tuple[str, ...]


@dataclass(frozen=True)
class Variation:
    """One thing done otherwise.

    Attributes:
        stage: Where.
        change: What, in words.
        options: How ``export`` is told; empty when it cannot.
        hint: What to do if training did so.
        apply: Does it to a guess.
        order: The order of the labels; None where it is not them that are varied.
    """

    stage: Stage
    change: str
    options: Options
    hint: str
    apply: Callable[[Guess], Guess]
    order: Reordering | None = None

    @property
    def mending(self) -> Options:
        """The options that mend it; empty where something else has to be looked at first."""
        return () if self.order is not None and self.order.exchanges else self.options


def recorded_guess(manifest: Manifest) -> Guess:
    """What the bundle records."""
    return Guess(treatment=recorded_treatment(manifest.preprocessing), names=manifest.labels.names)


def usual_variations(recorded: Guess, *, turned: bool) -> Iterator[Variation]:
    """The usual ways to preprocess that differ from the recorded one, for the same input size.

    Args:
        recorded: What the bundle records.
        turned: Whether there is a photo that is to be turned by EXIF.
    """
    treatment = recorded.treatment
    yield from _normalisations(treatment)
    yield _varied("colour", "BGR", (), f"{BGR_HINT}.", channels="BGR")
    yield from _sizes(treatment)
    if turned:
        yield _varied("decode", "photos turned by EXIF", (), TURNING_HINT, upright=True)
    yield from _filters(treatment)


def _normalisations(recorded: Treatment) -> Iterator[Variation]:
    for mean, std in NORMALISATIONS.values():
        if (mean, std) == (recorded.mean, recorded.std):
            continue

        def apply(guess: Guess, pair: tuple[object, object] = (mean, std)) -> Guess:
            treatment = msgspec.structs.replace(guess.treatment, mean=pair[0], std=pair[1])
            return msgspec.structs.replace(guess, treatment=treatment)

        options = (("--mean", format_values(mean)), ("--std", format_values(std)))
        change = f"mean {describe_values(mean, 'mean')}, std {describe_values(std, 'std')}"
        yield Variation("normalise", change, options, export_again(options), apply)


def _sizes(recorded: Treatment) -> Iterator[Variation]:
    steps = recorded.steps
    size = steps.crop_size or steps.resize
    if not isinstance(size, tuple):
        return
    for resize, crop_size in _usual_sizes(size):
        if (resize, crop_size) == (steps.resize, steps.crop_size):
            continue
        varied = msgspec.structs.replace(steps, resize=resize, crop_size=crop_size)
        options = size_options(varied)
        yield _varied(
            "resize",
            varied.describe_size(),
            options,
            export_again(options),
            resize=resize,
            crop_size=crop_size,
        )


def _usual_sizes(size: Size) -> Iterator[tuple[int | Size, Size | None]]:
    yield size, None
    shorter = min(size)
    yield round(shorter * _USUAL_RESIZE), size
    yield (round(size[0] * _USUAL_RESIZE), round(size[1] * _USUAL_RESIZE)), size
    yield shorter, size


def _filters(recorded: Treatment) -> Iterator[Variation]:
    steps = recorded.steps
    for name, antialias in FILTERS_USED:
        if (name, antialias) == (steps.interpolation, steps.antialias):
            continue
        varied = msgspec.structs.replace(steps, interpolation=name, antialias=antialias)
        options = filter_options(varied)
        yield _varied(
            "resize",
            varied.describe_filter(),
            options,
            export_again(options) if options else ANTIALIAS_HINT,
            interpolation=name,
            antialias=antialias,
        )


def _varied(stage: Stage, change: str, options: Options, hint: str, **steps: object) -> Variation:
    """A variation of the steps to pixels."""

    def apply(guess: Guess) -> Guess:
        varied = msgspec.structs.replace(guess.treatment.steps, **steps)
        treatment = msgspec.structs.replace(guess.treatment, steps=varied)
        return msgspec.structs.replace(guess, treatment=treatment)

    return Variation(stage, change, options, hint, apply)


def label_variations(photos: StagePhotos, logits: Logits, labels: Labels) -> Iterator[Variation]:
    """Other orders of the labels.

    Args:
        photos: The photos.
        logits: (N, K), the answers to what the bundle makes of them.
        labels: As recorded.
    """
    for order in tried_orders(photos, logits, labels):

        def apply(guess: Guess, names: tuple[str, ...] = order.names) -> Guess:
            return msgspec.structs.replace(guess, names=names)

        options, hint = label_options(order, photos), order_hint(order, photos)
        yield Variation("labels", f"labels {order.change}", options, hint, apply, order)
