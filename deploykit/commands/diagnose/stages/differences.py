"""What training does to a photo and a bundle does not: each difference by its name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import msgspec

from deploykit.commands.diagnose.stages.flips import Flip
from deploykit.images.pixel_steps import Channels, PixelSteps, recorded_steps
from deploykit.images.usual import Triple, describe_values, format_values
from deploykit.parity.diagnosis import Finding, Options, Stage
from deploykit.specs.preprocessing import Preprocessing, format_size
from deploykit.specs.value import Value
from deploykit.system.shell import command_line

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
GREY_HINT = (
    "deploykit feeds RGB: export a network that makes its input grey first, or train without "
    "Grayscale."
)
FLIP_HINT = (
    "Name the transform of the evaluation, which flips no photo: RandomHorizontalFlip and the like "
    "are for training alone. deploykit flips none."
)
_COLOURS: dict[Channels, str] = {
    "RGB": "RGB",
    "BGR": "BGR",
    "grey": "greyscale, three times the same",
}

#: Of a transform that resizes tensors: the network gets what lies between two bytes, too.
FLOATING_POINT = Finding(
    stage="resize",
    message="training: tensors are resized, in floating point; the bundle: images are, in bytes",
    hint="Resize the PIL image in training, before ToTensor, and train again; or accept what the "
    "walk's row of this change shows.",
)


class Treatment(Value, frozen=True):
    """All that happens to a decoded photo before the network.

    Attributes:
        steps: From the decoded photo to pixels.
        mean: Subtracted from each channel of the pixels in 0..1.
        std: Divides each channel after that.
        flip: What is done to the whole at last.
    """

    steps: PixelSteps
    mean: Triple
    std: Triple
    flip: Flip = "none"


@dataclass(frozen=True)
class Difference:
    """One thing that training does otherwise.

    Attributes:
        finding: Its name.
        change: What is done from here on.
        treatment: What happens to a photo once this is as recorded, as what was before it.
    """

    finding: Finding
    change: str
    treatment: Treatment


def recorded_treatment(recorded: Preprocessing) -> Treatment:
    """What a bundle does to a photo."""
    return Treatment(steps=recorded_steps(recorded), mean=recorded.mean, std=recorded.std)


def differences(now: Treatment, goal: Treatment) -> Iterator[Difference]:
    """Go from what training does to what is recorded, one thing at a time."""
    for compare in (_turning, _flip, _size, _filter, _colours, _mean, _std):
        found = compare(now, goal)
        if found is not None:
            yield found
            now = found.treatment


def _difference(
    stage: Stage,
    training: str,
    bundle: str,
    treatment: Treatment,
    *,
    options: Options = (),
    hint: str = "",
) -> Difference:
    """A difference that options of ``export`` mend, or else what the hint says."""
    message = f"training: {training}; the bundle: {bundle}"
    return Difference(
        finding=Finding(
            stage=stage,
            message=message,
            hint=export_again(options) if options else hint,
            options=options,
        ),
        change=f"{bundle} instead of {training}",
        treatment=treatment,
    )


def _with_steps(treatment: Treatment, **changes: object) -> Treatment:
    steps = msgspec.structs.replace(treatment.steps, **changes)
    return msgspec.structs.replace(treatment, steps=steps)


def _turning(now: Treatment, goal: Treatment) -> Difference | None:
    if now.steps.upright == goal.steps.upright:
        return None
    return _difference(
        "decode",
        "photos are turned as their EXIF orientation says",
        "no EXIF rotation",
        _with_steps(now, upright=goal.steps.upright),
        hint=TURNING_HINT,
    )


def _flip(now: Treatment, goal: Treatment) -> Difference | None:
    if now.flip == goal.flip:
        return None
    return _difference(
        "preprocessing",
        f"photos are {now.flip}",
        "photos as they are",
        msgspec.structs.replace(now, flip=goal.flip),
        hint=FLIP_HINT,
    )


def _size(now: Treatment, goal: Treatment) -> Difference | None:
    resize, crop_size = goal.steps.resize, goal.steps.crop_size
    if (now.steps.resize, now.steps.crop_size) == (resize, crop_size):
        return None
    return _difference(
        "resize",
        now.steps.describe_size(),
        goal.steps.describe_size(),
        _with_steps(now, resize=resize, crop_size=crop_size),
        options=size_options(now.steps),
        hint="deploykit always resizes: train with a Resize in the transform.",
    )


def _filter(now: Treatment, goal: Treatment) -> Difference | None:
    wanted = goal.steps.interpolation, goal.steps.antialias
    if (now.steps.interpolation, now.steps.antialias) == wanted:
        return None
    return _difference(
        "resize",
        now.steps.describe_filter(),
        goal.steps.describe_filter(),
        _with_steps(now, interpolation=wanted[0], antialias=wanted[1]),
        options=filter_options(now.steps),
        hint=ANTIALIAS_HINT,
    )


def _colours(now: Treatment, goal: Treatment) -> Difference | None:
    if now.steps.channels == goal.steps.channels:
        return None
    found = _with_steps(now, channels=goal.steps.channels)
    mean, std = now.mean, now.std
    if now.steps.channels == "BGR":
        mean, std = mean[::-1], std[::-1]
        if (mean, std) == (goal.mean, goal.std):  # turned around once it was normalised
            found = msgspec.structs.replace(found, mean=mean, std=std)
        values = f"--mean {format_values(mean)} --std {format_values(std)}"
        hint = f"{BGR_HINT}, here {values}."
    else:
        hint = GREY_HINT
    return _difference(
        "colour", _COLOURS[now.steps.channels], _COLOURS[goal.steps.channels], found, hint=hint
    )


def _mean(now: Treatment, goal: Treatment) -> Difference | None:
    if now.mean == goal.mean:
        return None
    return _difference(
        "normalise",
        f"mean {describe_values(now.mean, 'mean')}",
        f"mean {describe_values(goal.mean, 'mean')}",
        msgspec.structs.replace(now, mean=goal.mean),
        options=(("--mean", format_values(now.mean)),),
    )


def _std(now: Treatment, goal: Treatment) -> Difference | None:
    if now.std == goal.std:
        return None
    return _difference(
        "normalise",
        f"std {describe_values(now.std, 'std')}",
        f"std {describe_values(goal.std, 'std')}",
        msgspec.structs.replace(now, std=goal.std),
        options=(("--std", format_values(now.std)),),
    )


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
    """The hint that options of ``export`` mend it."""
    return f"Export again with {as_typed(options)}"
