"""The walk's beginning: from a photo's file to the network's input, as in training."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.commands.diagnose.stages.differences import (
    FLOATING_POINT,
    Treatment,
    differences,
    recorded_treatment,
)
from deploykit.commands.diagnose.stages.flips import Flip, flipped, likely_flip
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.commands.diagnose.stages.transform import examples_of, require_same
from deploykit.images.decode import decode_rgb
from deploykit.images.explain import explain
from deploykit.images.explanation import Explanation, TransformedPhoto
from deploykit.images.pixel_steps import normalised, open_as_training, take_steps
from deploykit.parity.diagnosis import Finding, Stage
from deploykit.specs.preprocessing import Preprocessing
from deploykit.specs.session import Logits, NormalisedSession
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    from deploykit.models.transforms import Transform

NetworkInput: TypeAlias = npt.NDArray[np.float32]
"""(3, H, W)."""

#: The last change before the network: from here on the bundle is left to itself.
OWN_NORMALISATION = "normalised by deploykit"


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """A photo, decoded as training and as deploykit do.

    Attributes:
        training: As the loader of ``ImageFolder`` decodes it.
        ours: As deploykit does.
        pixels: (H, W, 3), as deploykit feeds it to a deploy graph.
    """

    training: Image.Image
    ours: Image.Image
    pixels: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Way:
    """A way from a photo to the network's input, one change from the way before.

    Attributes:
        stage: Where the change is.
        change: What is done from here on.
        make: Gives (3, H, W) float32.
        if_it_moves: What is found where this moves an answer beyond the tolerance.
        decodes_for: The transform that gets the photo as deploykit decodes it, where the way before
            gave it the photo as training does, and nothing else changes; None for another change.
    """

    stage: Stage
    change: str
    make: Callable[[DecodedPhoto], NetworkInput]
    if_it_moves: Finding | None = None
    decodes_for: str | None = None


@dataclass(frozen=True)
class Beginning:
    """The ways from training's preprocessing to the recorded one.

    Attributes:
        description: What the walk begins with, in words.
        first: The way that training goes.
        ways: Those after it, each one change from the one before; the last is the recorded one.
        findings: What training does otherwise.
    """

    description: str
    first: Callable[[DecodedPhoto], NetworkInput]
    ways: tuple[Way, ...]
    findings: tuple[Finding, ...] = ()


def begin(
    recorded: Preprocessing, training: Transform | None, photos: StagePhotos, progress: Progress
) -> Beginning:
    """Compare what training does to photos with what the bundle records.

    Args:
        recorded: What the bundle records.
        training: What training does; None where nothing is there to compare with.
        photos: The photos.
        progress: Told what is done.

    Raises:
        InputError: The transform fails, gives other values each time, or no network input.
    """
    if training is None:
        return Beginning("deploykit's preprocessing", _way_of(recorded_treatment(recorded)), ())
    progress(Step("explaining the transform", detail=training.name))
    flip, explanation = _explained(examples_of(training, photos), recorded)
    decoded = Way(
        "decode",
        "decoded by deploykit",
        lambda photo: training(photo.ours),
        decodes_for=training.name,
    )
    ways, findings = _ways_to(recorded, training.name, explanation, flip)
    return Beginning(
        training.name,
        lambda photo: training(photo.training),
        (decoded, *ways),
        tuple(findings),
    )


def _explained(
    examples: Sequence[TransformedPhoto], recorded: Preprocessing
) -> tuple[Flip, Explanation | None]:
    """What comes nearest to a transform, and how that flips photos."""
    flip = likely_flip(examples)
    if flip == "none":
        return flip, explain(examples, recorded)
    unflipped = [
        dataclasses.replace(example, values=flipped(example.values, flip)) for example in examples
    ]
    found = explain(unflipped, recorded)
    if found is not None and found.explained:
        return flip, found
    plain = explain(examples, recorded)
    if found is None or (plain is not None and plain.residual <= found.residual):
        return "none", plain
    return flip, found


def _ways_to(
    recorded: Preprocessing, name: str, explanation: Explanation | None, flip: Flip
) -> tuple[list[Way], list[Finding]]:
    """The ways after a transform, the last one as recorded, and what the transform does otherwise.

    Args:
        recorded: What the bundle records.
        name: The transform's.
        explanation: What comes nearest to it.
        flip: How it flips photos.
    """
    goal = recorded_treatment(recorded)
    if explanation is None or not explanation.explained:
        change = f"{goal.steps.describe()} as recorded instead of {name}, unexplained"
        unexplained = _unexplained(name, explanation, flip)
        return [Way("preprocessing", change, _way_of(goal), unexplained)], []
    steps = explanation.steps
    now = Treatment(steps=steps, mean=explanation.mean, std=explanation.std, flip=flip)
    change = f"{steps.describe_size()}, {steps.describe_filter()}, "
    stage: Stage = "resize"
    if steps.channels == "grey":  # which may have been made before the photo was resized
        stage, change = "colour", f"{change}then grey, "
    floating = steps.antialias and not explanation.whole
    fault = FLOATING_POINT if floating else None
    ways = [Way(stage, f"{change}by deploykit", _way_of(now), fault)]
    findings = []
    for difference in differences(now, goal):
        stage = difference.finding.stage
        ways.append(Way(stage, difference.change, _way_of(difference.treatment)))
        findings.append(difference.finding)
    return ways, findings


def _way_of(treatment: Treatment) -> Callable[[DecodedPhoto], NetworkInput]:
    def make(photo: DecodedPhoto) -> NetworkInput:
        pixels = take_steps(photo.ours, treatment.steps)
        return flipped(normalised(pixels, treatment.mean, treatment.std), treatment.flip)

    return make


def _unexplained(name: str, explanation: Explanation | None, flip: Flip) -> Finding:
    if explanation is None:
        nearest = "its values do not even rise with the photos' brightness"
    else:
        turned = "" if flip == "none" else f"{flip}, "
        nearest = (
            f"of {explanation.tried} usual combinations of size, filter, EXIF rotation and "
            f"channels the nearest, {turned}{explanation.steps.describe()}, is "
            f"{explanation.residual:.1f} of 255 grey levels away, at most {explanation.worst:.0f}"
        )
    return Finding(
        stage="preprocessing",
        message=f"training: {name}, which nothing usual explains: {nearest}",
        hint="deploykit resizes, crops and normalises. Let the network do what else the transform "
        "does, and export it so; or leave that out of the transform, and train again.",
    )


def module_way(recorded: Preprocessing) -> Way:
    """The way that a torch module's session goes: its own normalisation of the recorded pixels."""
    import torch

    from deploykit.runtime.normalisation import network_input

    def make(photo: DecodedPhoto) -> NetworkInput:
        images = photo.pixels[None]
        batch = network_input(images, recorded, torch.device("cpu"))
        inputs: NetworkInput = batch[0].numpy()
        return inputs

    return Way("normalise", OWN_NORMALISATION, make)


def answer_ways(
    first: Callable[[DecodedPhoto], NetworkInput],
    ways: Sequence[Way],
    photos: StagePhotos,
    network: NormalisedSession,
    progress: Progress,
) -> list[Logits]:
    """Let the network answer what each way makes of the photos, one by one.

    What a way makes just as the one before did is not computed again.

    Returns:
        (N, K) logits of the beginning, then of each way.

    Raises:
        InputError: Both decoders give the same pixels, and the transform makes other values of
            them. One that is seldom random may have passed for one that never is.
    """
    answers: list[list[Logits]] = [[] for _ in range(1 + len(ways))]
    for number, (file, image) in enumerate(zip(photos.files, photos.one_by_one(), strict=True)):
        progress(Step("from decoding to normalising", number, len(photos.files)))
        photo = DecodedPhoto(open_as_training(file.path), decode_rgb(file.path), image[0])
        before: NetworkInput | None = None
        for inputs, rows in zip(_made(first, ways, photo), answers, strict=True):
            if before is None or not np.array_equal(before, inputs):
                logits = network.run_normalised(inputs[None])
            rows.append(logits)
            before = inputs
    return [np.concatenate(rows) for rows in answers]


def _made(
    first: Callable[[DecodedPhoto], NetworkInput], ways: Sequence[Way], photo: DecodedPhoto
) -> Iterator[NetworkInput]:
    """What the beginning makes of a photo, then what each way does."""
    before = first(photo)
    yield before
    for way in ways:
        inputs = way.make(photo)
        if way.decodes_for is not None and photo.ours.tobytes() == photo.training.tobytes():
            require_same(before, inputs, way.decodes_for)
        yield inputs
        before = inputs
