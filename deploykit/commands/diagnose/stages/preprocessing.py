"""From training's preprocessing to the recorded one, one difference at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.commands.diagnose.stages.transform import examples_of, read_transform
from deploykit.images.decode import decode_rgb
from deploykit.images.explain import Explanation, explain
from deploykit.images.pixel_steps import (
    Channels,
    PixelSteps,
    Treatment,
    open_as_training,
    recorded_treatment,
)
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

TURNING_HINT = (
    "deploykit reads photos as ImageFolder does and turns none: save them upright before they are "
    "predicted (PIL.ImageOps.exif_transpose), or train without turning them."
)
ANTIALIAS_HINT = (
    "deploykit resizes as Pillow does, with antialiasing: let training resize the PIL image, "
    "before ToTensor, or with antialias=True."
)
BGR_HINT = (
    "deploykit feeds RGB: export a network that turns the channels around first, "
    "self.network(x.flip(1)), with training's mean and std in reverse order"
)
_GREY_HINT = (
    "deploykit feeds RGB: export a network that makes its input grey first, or train without "
    "Grayscale."
)
_COLOURS: dict[Channels, str] = {
    "RGB": "RGB",
    "BGR": "BGR",
    "grey": "greyscale, three times the same",
}
#: Of a transform that resizes tensors: the network gets what lies between two bytes, too.
_FLOATING_POINT = Finding(
    stage="resize",
    message="training: tensors are resized, in floating point; the bundle: images are, in bytes",
    hint="Resize the PIL image in training, before ToTensor, and train again; or accept what the "
    "table's row of this change shows.",
)


@dataclass(frozen=True, eq=False)
class DecodedPhoto:
    """A photo, decoded as training and as deploykit do.

    Attributes:
        training: As the loader of ``ImageFolder`` decodes it.
        ours: As deploykit does.
    """

    training: Image.Image
    ours: Image.Image


@dataclass(frozen=True)
class Way:
    """A way from a photo to the network's input, one change from the way before.

    Attributes:
        stage: Where the change is.
        change: What is done from here on.
        make: Gives (3, H, W) float32.
        if_it_moves: What is found where this moves an answer beyond the tolerance.
    """

    stage: Stage
    change: str
    make: Callable[[DecodedPhoto], NetworkInput]
    if_it_moves: Finding | None = None


@dataclass(frozen=True)
class Beginning:
    """The ways from training's preprocessing to the recorded one.

    Attributes:
        description: What the table begins with, in words.
        first: The way that training goes.
        ways: Those after it, each one change from the one before; the last is the recorded one.
        findings: What training does otherwise.
    """

    description: str
    first: Callable[[DecodedPhoto], NetworkInput]
    ways: tuple[Way, ...] = ()
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
    goal = recorded_treatment(recorded)
    if training is None:
        return Beginning("deploykit's preprocessing", _way_of(goal))
    progress(Step("explaining the transform", detail=training.name))
    explanation = explain(
        examples_of(training, photos), recorded, read=read_transform(training.code)
    )
    ways = [Way("decode", "decoded by deploykit", lambda photo: training(photo.ours))]
    findings = []
    if explanation is None or not explanation.explained:
        change = f"{goal.steps.describe()} as recorded instead of {training.name}, unexplained"
        unexplained = _unexplained(training.name, explanation)
        ways.append(Way("preprocessing", change, _way_of(goal), unexplained))
    else:
        now = explanation.treatment
        change = f"{now.steps.describe_size()}, {now.steps.describe_filter()}, "
        stage: Stage = "resize"
        if now.steps.channels == "grey":  # which may have been made before the photo was resized
            stage, change = "colour", f"{change}then grey, "
        floating = now.steps.antialias and not explanation.whole
        fault = _FLOATING_POINT if floating else None
        ways.append(Way(stage, f"{change}by deploykit", _way_of(now), fault))
        for finding, change, treatment in _differences(now, goal):
            ways.append(Way(finding.stage, change, _way_of(treatment)))
            findings.append(finding)
    return Beginning(
        training.name, lambda photo: training(photo.training), tuple(ways), tuple(findings)
    )


def _way_of(treatment: Treatment) -> Callable[[DecodedPhoto], NetworkInput]:
    return lambda photo: treatment(photo.ours)


def _unexplained(name: str, explanation: Explanation | None) -> Finding:
    if explanation is None:
        nearest = "its values do not even rise with the photos' brightness"
    else:
        nearest = (
            f"of {explanation.tried} usual combinations of size, filter, EXIF rotation and "
            f"channels the nearest, {explanation.treatment.steps.describe()}, is "
            f"{explanation.residual:.1f} of 255 grey levels away, at most {explanation.worst:.0f}"
        )
    return Finding(
        stage="preprocessing",
        message=f"training: {name}, which nothing usual explains: {nearest}",
        hint="deploykit resizes, crops and normalises. Let the network do what else the transform "
        "does, and export it so; or leave that out of the transform, and train again. Where the "
        "transform flips photos, name that of the evaluation.",
    )


def _differences(now: Treatment, goal: Treatment) -> Iterator[tuple[Finding, str, Treatment]]:
    """Go from what training does to what is recorded, one thing at a time.

    Yields:
        The difference, what is done from here on, and the treatment that does it.
    """

    def named(
        stage: Stage, training: str, bundle: str, options: Options = (), hint: str = ""
    ) -> tuple[Finding, str]:
        message = f"training: {training}; the bundle: {bundle}"
        hint = export_again(options) if options else hint
        finding = Finding(stage=stage, message=message, hint=hint, options=options)
        return finding, f"{bundle} instead of {training}"

    steps, goal_steps = now.steps, goal.steps
    if steps.upright != goal_steps.upright:
        now = with_steps(now, upright=goal_steps.upright)
        turned = "photos are turned as their EXIF orientation says"
        yield *named("decode", turned, "no EXIF rotation", hint=TURNING_HINT), now
    if (steps.resize, steps.crop_size) != (goal_steps.resize, goal_steps.crop_size):
        now = with_steps(now, resize=goal_steps.resize, crop_size=goal_steps.crop_size)
        hint = "deploykit always resizes: train with a Resize in the transform."
        sizes = steps.describe_size(), goal_steps.describe_size()
        yield *named("resize", *sizes, size_options(steps), hint), now
    wanted = goal_steps.interpolation, goal_steps.antialias
    if (steps.interpolation, steps.antialias) != wanted:
        now = with_steps(now, interpolation=wanted[0], antialias=wanted[1])
        filters = steps.describe_filter(), goal_steps.describe_filter()
        yield *named("resize", *filters, filter_options(steps), ANTIALIAS_HINT), now
    if steps.channels != goal_steps.channels:
        hint, mean, std = _GREY_HINT, now.mean, now.std
        now = with_steps(now, channels=goal_steps.channels)
        if steps.channels == "BGR":
            mean, std = mean[::-1], std[::-1]
            hint = f"{BGR_HINT}, here --mean {format_values(mean)} --std {format_values(std)}."
            if (mean, std) == (goal.mean, goal.std):  # turned around once it was normalised
                now = msgspec.structs.replace(now, mean=mean, std=std)
        colours = _COLOURS[steps.channels], _COLOURS[goal_steps.channels]
        yield *named("colour", *colours, hint=hint), now
    for name in ("mean", "std"):
        values, goal_values = getattr(now, name), getattr(goal, name)
        if values != goal_values:
            now = msgspec.structs.replace(now, **{name: goal_values})
            yield (
                *named(
                    "normalise",
                    f"{name} {describe_values(values, name)}",
                    f"{name} {describe_values(goal_values, name)}",
                    ((f"--{name}", format_values(values)),),
                ),
                now,
            )


def with_steps(treatment: Treatment, **changes: object) -> Treatment:
    """A treatment with other steps to pixels."""
    steps = msgspec.structs.replace(treatment.steps, **changes)
    return msgspec.structs.replace(treatment, steps=steps)


def size_options(steps: PixelSteps) -> Options:
    """The options of ``export`` for a way of getting the size; empty where there are none."""
    resize, crop_size = steps.resize, steps.crop_size
    if resize is None:
        return ()
    crop: Options = () if crop_size is None else (("--crop-size", format_size(crop_size)),)
    return ("--resize", str(resize) if isinstance(resize, int) else format_size(resize)), *crop


def filter_options(steps: PixelSteps) -> Options:
    """The option of ``export`` for a filter; empty where there is none."""
    return (("--interpolation", steps.interpolation),) if steps.antialias else ()


def as_typed(options: Options) -> str:
    """Options as they are typed: ``--resize 256 --crop-size 224x224``."""
    return command_line([word for option in options for word in option])


def export_again(options: Options) -> str:
    """The hint that options of ``export`` correct it."""
    return f"Export again with {as_typed(options)}"


def answer_ways(
    beginning: Beginning, photos: StagePhotos, network: NormalisedSession, progress: Progress
) -> list[Logits]:
    """Let the network answer what each way makes of the photos, one by one.

    What a way makes just as the one before did is not computed again.

    Returns:
        (N, K) logits of the beginning, then of each way.
    """
    makes = (beginning.first, *(way.make for way in beginning.ways))
    answers: list[list[Logits]] = [[] for _ in makes]
    for number, file in enumerate(photos.files):
        progress(Step("from decoding to normalising", number, len(photos.files)))
        photo = DecodedPhoto(open_as_training(file.path), decode_rgb(file.path))
        before: NetworkInput | None = None
        for make, rows in zip(makes, answers, strict=True):
            inputs = make(photo)
            if before is None or not np.array_equal(before, inputs):
                logits = network.run_normalised(inputs[None])
            rows.append(logits)
            before = inputs
    return [np.concatenate(rows) for rows in answers]
