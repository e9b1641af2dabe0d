"""From training's preprocessing to the recorded one, one difference at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.commands.diagnose.stages.images import StageImages
from deploykit.commands.diagnose.stages.transform import examples_of, read_transform
from deploykit.images.decode import decode_rgb
from deploykit.images.explain import Explanation, explain
from deploykit.images.treatment import Channels, Treatment, open_as_training
from deploykit.images.usual import describe_values, format_values
from deploykit.parity.diagnosis import Finding, Options, Stage
from deploykit.specs.preprocessing import Preprocessing, format_size
from deploykit.specs.session import Logits, NormalisedSession
from deploykit.system.progress import Progress, Step
from deploykit.system.text import command_line

if TYPE_CHECKING:
    from deploykit.models.transforms import Transform

NetworkInput: TypeAlias = npt.NDArray[np.float32]
"""(3, H, W)."""

_COLOURS: dict[Channels, str] = {
    "RGB": "RGB",
    "BGR": "BGR",
    "grey": "greyscale, three times the same",
}


class Aspect(NamedTuple):
    """One thing that a treatment does, and how a bundle is made to do it as training does.

    Attributes:
        stage: Where it is.
        fields: Those of the treatment.
        words: What a treatment does, in words.
        options: How ``export`` is told; empty where it cannot be.
        hint: What to do then.
    """

    stage: Stage
    fields: tuple[str, ...]
    words: Callable[[Treatment], str]
    options: Callable[[Treatment], Options] = lambda _: ()
    hint: Callable[[Treatment], str] = lambda _: ""


def _size_options(treatment: Treatment) -> Options:
    resize, crop_size = treatment.resize, treatment.crop_size
    if resize is None:
        return ()
    crop: Options = () if crop_size is None else (("--crop-size", format_size(crop_size)),)
    return ("--resize", str(resize) if isinstance(resize, int) else format_size(resize)), *crop


def _colour_hint(treatment: Treatment) -> str:
    if treatment.channels == "RGB":
        return "Export again without --grayscale."
    mean, std = format_values(treatment.mean[::-1]), format_values(treatment.std[::-1])
    return (
        "deploykit feeds RGB: export a network that reverses the channels first, "
        f"self.network(x.flip(1)), with training's mean and std in reverse order, here --mean "
        f"{mean} --std {std}."
    )


_ASPECTS = (
    Aspect(
        stage="decode",
        fields=("upright",),
        words=lambda it: "photos rotated by EXIF" if it.upright else "no EXIF rotation",
        hint=lambda _: (
            "deploykit reads photos as ImageFolder does and rotates none: save them "
            "upright before they are predicted (PIL.ImageOps.exif_transpose), or train without "
            "rotating them."
        ),
    ),
    Aspect(
        stage="resize",
        fields=("resize", "crop_size"),
        words=Treatment.describe_size,
        options=_size_options,
        hint=lambda _: "deploykit always resizes: train with a Resize in the transform.",
    ),
    Aspect(
        stage="resize",
        fields=("interpolation", "antialias"),
        words=Treatment.describe_filter,
        options=lambda it: (
            ("--interpolation", it.interpolation),
            ("--antialias" if it.antialias else "--no-antialias", ""),
        ),
    ),
    Aspect(
        stage="resize",
        fields=("pixel_type",),
        words=lambda it: f"{it.pixel_type} pixels",
        options=lambda it: (("--pixels", it.pixel_type),),
    ),
    Aspect(
        stage="colour",
        fields=("channels",),
        words=lambda it: _COLOURS[it.channels],
        options=lambda it: (("--grayscale", ""),) if it.channels == "grey" else (),
        hint=_colour_hint,
    ),
    Aspect(
        stage="normalise",
        fields=("mean",),
        words=lambda it: f"mean {describe_values(it.mean, 'mean')}",
        options=lambda it: (("--mean", format_values(it.mean)),),
    ),
    Aspect(
        stage="normalise",
        fields=("std",),
        words=lambda it: f"std {describe_values(it.std, 'std')}",
        options=lambda it: (("--std", format_values(it.std)),),
    ),
)


def differing_aspects(one: Treatment, other: Treatment) -> list[Aspect]:
    """The aspects in which two treatments differ, in the order of the flow."""
    return [
        aspect
        for aspect in _ASPECTS
        if any(getattr(one, name) != getattr(other, name) for name in aspect.fields)
    ]


def correction(treatment: Treatment, aspects: Sequence[Aspect]) -> tuple[Options, str]:
    """How to make a bundle do some aspects as a treatment does: the options, and the hint."""
    options = tuple(option for aspect in aspects for option in aspect.options(treatment))
    if options or not aspects:
        return options, export_again(options)
    return options, aspects[0].hint(treatment)


def as_typed(options: Options) -> str:
    """Options as they are typed: ``--resize 256 --crop-size 224x224``."""
    return command_line([word for option in options for word in option if word])


def export_again(options: Options) -> str:
    """The hint that options of ``export`` correct it."""
    return f"Export again with {as_typed(options)}"


@dataclass(frozen=True)
class Way:
    """A way from an image to the network's input, one change from the way before.

    Attributes:
        stage: Where the change is.
        change: What is done from here on.
        make: Gives (3, H, W), of an image as ``ImageFolder`` decodes it, and as deploykit does.
        fault: What is found where the change moves an answer beyond the tolerance.
    """

    stage: Stage
    change: str
    make: Callable[[Image.Image, Image.Image], NetworkInput]
    fault: Finding | None = None


def ways_from_training(
    recorded: Preprocessing, training: Transform | None, images: StageImages, progress: Progress
) -> tuple[list[Way], list[Finding]]:
    """Compare what training does to images with what the bundle records.

    Args:
        recorded: What the bundle records.
        training: What training does; None where there is nothing to compare with.
        images: The images.
        progress: Told what is done.

    Returns:
        Training's way, then each one change from the one before, the recorded one last; and what
        training does otherwise.

    Raises:
        InputError: The transform fails, gives other values each time, or no network input.
    """
    goal = Treatment.recorded(recorded)
    if training is None:
        return [_way("decode", "deploykit's preprocessing", goal)], []
    progress(Step("explaining the transform", detail=training.name))
    found = explain(examples_of(training, images), recorded, read=read_transform(training.code))
    ways = [
        Way("decode", training.name, lambda theirs, _: training(theirs)),
        Way("decode", "decoded by deploykit", lambda _, ours: training(ours)),
    ]
    if found is None or not found.explained:
        change = f"{goal.describe_pixels()} as recorded instead of {training.name}, unexplained"
        return [*ways, _way("preprocessing", change, goal, _unexplained(training.name, found))], []
    now = found.treatment
    stage: Stage = "resize"
    change = f"{now.describe_size()}, {now.describe_filter()}, by deploykit"
    fault: Finding | None = None
    if now.channels == "grey":  # which training may have made after the image was resized
        stage, change = "colour", f"grey, then {change}"
    elif now.antialias:
        fault = Finding(
            stage="resize",
            message="training: tensors are resized, not images; the bundle: images are, "
            f"{found.residual:.1g} of 255 grey levels away",
            hint="Resize the PIL image in training, before ToTensor, and train again; or accept "
            "what the table's row of this change shows.",
        )
    ways.append(_way(stage, change, now, fault))
    findings = []
    for finding, change, treatment in _differences(now, goal):
        ways.append(_way(finding.stage, change, treatment))
        findings.append(finding)
    return ways, findings


def _way(stage: Stage, change: str, treatment: Treatment, fault: Finding | None = None) -> Way:
    return Way(stage, change, lambda _, ours: treatment(ours), fault)


def _unexplained(name: str, nearest: Explanation | None) -> Finding:
    if nearest is None:
        how = "its values do not even rise with the photos' brightness"
    else:
        how = (
            "of the usual sizes, filters, EXIF rotation and channels the nearest, "
            f"{nearest.treatment.describe_pixels()}, is {nearest.residual:.1f} of 255 grey levels "
            "away"
        )
    return Finding(
        stage="preprocessing",
        message=f"training: {name}, which nothing usual explains: {how}",
        hint="deploykit resizes, crops and normalises. Let the network do what else the transform "
        "does, and export it so; or leave that out of the transform, and train again. Where the "
        "transform mirrors photos, name that of the evaluation.",
    )


def _differences(now: Treatment, goal: Treatment) -> Iterator[tuple[Finding, str, Treatment]]:
    """Go from what training does to what is recorded, one aspect at a time.

    Yields:
        The difference, what is done from here on, and the treatment that does it.
    """
    while differing := differing_aspects(now, goal):
        aspect = differing[0]
        training, bundle = aspect.words(now), aspect.words(goal)
        options, hint = correction(now, [aspect])
        message = f"training: {training}; the bundle: {bundle}"
        changed = {name: getattr(goal, name) for name in aspect.fields}
        if "channels" in changed and now.channels == "BGR":
            reversed_values = {"mean": now.mean[::-1], "std": now.std[::-1]}
            if reversed_values == {"mean": goal.mean, "std": goal.std}:  # normalised before that
                changed |= reversed_values
        now = msgspec.structs.replace(now, **changed)
        finding = Finding(stage=aspect.stage, message=message, hint=hint, options=options)
        yield finding, f"{bundle} instead of {training}", now


def answer_ways(
    ways: Sequence[Way], images: StageImages, network: NormalisedSession, progress: Progress
) -> list[Logits]:
    """Let the network answer what each way makes of the images, one by one.

    What a way makes just as the one before did is not computed again.

    Returns:
        (N, K) logits of each way.
    """
    answers: list[list[Logits]] = [[] for _ in ways]
    for number, file in enumerate(images.files):
        progress(Step("from decoding to normalising", number, len(images.files)))
        theirs, ours = open_as_training(file.path), decode_rgb(file.path)
        before: NetworkInput | None = None
        for way, rows in zip(ways, answers, strict=True):
            inputs = way.make(theirs, ours)
            if before is None or not np.array_equal(before, inputs):
                logits = network.run_normalised(inputs[None])
            rows.append(logits)
            before = inputs
    return [np.concatenate(rows) for rows in answers]
