"""The values that deploykit's parts hand to each other: frozen, and without any I/O."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Literal, Self, TypeAlias, TypeVar, cast, get_args

import msgspec

from deploykit.errors import UsageError

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]
Interpolation: TypeAlias = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Flavour: TypeAlias = Literal["tensorrt", "tensorrt_rtx"]
Size: TypeAlias = tuple[int, int]
"""Height and width in pixels, in this order everywhere."""

PRECISIONS: tuple[Precision, ...] = get_args(Precision)
INTERPOLATIONS: tuple[Interpolation, ...] = get_args(Interpolation)
FLAVOURS: tuple[Flavour, ...] = get_args(Flavour)

#: Under these keys of an ONNX file's ``metadata_props`` stand the labels (a JSON list) and the
#: preprocessing (a JSON object), so that a graph that left its bundle still tells how to feed it.
LABELS_KEY = "deploykit.labels"
PREPROCESSING_KEY = "deploykit.preprocessing"

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: A larger batch is a slip of the keyboard: 4096 photos of 224x224 take 0.6 GB as bytes alone.
MAX_ENGINE_BATCH = 4096

_Choice = TypeVar("_Choice", bound=str)


def names_user_code(architecture: str) -> bool:
    """Whether an architecture's name means the user's own code, rather than one that we know.

    Nothing but the name decides it: what a bundle says of itself is no evidence.
    """
    return ":" in architecture or architecture.endswith(".py")


class Value(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A frozen value that reads from and writes to JSON strictly: an unknown field is an error."""


class TensorSpec(Value, frozen=True):
    """One input or output of a graph.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the element type, ``float32``.
        shape: One entry a dimension; a name stands for a dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class KeptNode(Value, frozen=True):
    """A node that stays in FP32 in a graph of lower precision.

    Attributes:
        node: The ONNX node's name.
        operator: ``Conv``.
        module: The path of the ``nn.Module`` that it comes from, ``conv2.0.conv1``; empty where the
            exporter named none.
        reason: Why it stays, in words, with the numbers.
    """

    node: str
    operator: str
    module: str
    reason: str


class Profile(Value, frozen=True):
    """The batch sizes that an engine is built for: TensorRT's optimization profile.

    Attributes:
        min_batch: The smallest batch that it takes, at least 1.
        opt_batch: The batch that it is tuned for.
        max_batch: The largest batch that it takes.
    """

    min_batch: int = 1
    opt_batch: int = 8
    max_batch: int = 32

    def __post_init__(self) -> None:
        if not 1 <= self.min_batch <= self.opt_batch <= self.max_batch <= MAX_ENGINE_BATCH:
            raise UsageError(
                f"Batch sizes must be 1 <= min <= opt <= max <= {MAX_ENGINE_BATCH}; "
                f"got min {self.min_batch}, opt {self.opt_batch}, max {self.max_batch}.",
                hint="Set them with --min-batch, --opt-batch and --max-batch.",
            )


class Preprocessing(Value, frozen=True):
    """What happens to a photo between decoding and the network, exactly as in training.

    A photo is decoded to RGB, resized, cropped if there is a crop, scaled to 0..1 and normalised.

    Attributes:
        resize: The shorter side in pixels, keeping the aspect ratio, or (height, width) to
            stretch to.
        crop_size: The centre crop's (height, width); None for no crop.
        interpolation: Pillow's filter, antialiased as Pillow does.
        mean: Subtracted from each channel (R, G, B) of the image in 0..1.
        std: Divides each channel after that.
        source: Where the values come from, in words: ``preset tutorial``, ``zoo resnet_cifar96``.
    """

    resize: int | Size = (224, 224)
    crop_size: Size | None = None
    interpolation: Interpolation = "bilinear"
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    source: str = "preset tutorial"

    def __post_init__(self) -> None:
        sizes = [self.resize] if isinstance(self.resize, int) else [*self.resize]
        if min([*sizes, *(self.crop_size or ())]) < 1:
            raise UsageError(f"Sizes must be at least 1 pixel: {self.describe()}.")
        if isinstance(self.resize, int) and self.crop_size is None:
            raise UsageError(
                f"Resizing the shorter side to {self.resize} leaves images of different shapes.",
                hint="Add a centre crop (--crop-size), or stretch both sides (--resize HxW).",
            )
        if not all(math.isfinite(v) for v in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise UsageError(f"Mean and std must be finite, std above 0: {self.mean}, {self.std}.")
        if max(*self.mean, *self.std) > 1:
            raise UsageError(
                f"Mean {self.mean} and std {self.std} are not those of an image in 0..1.",
                hint="Divide values for 0..255 by 255.",
            )

    @property
    def input_size(self) -> Size:
        """Height and width of what the network gets."""
        # A resize of the shorter side has a crop: __post_init__ sees to it.
        return self.crop_size or cast("Size", self.resize)

    def to_metadata(self) -> str:
        """What stands under :data:`PREPROCESSING_KEY`."""
        return msgspec.json.encode(self).decode()

    def describe(self) -> str:
        """One line for people: ``resize 256 (shorter side), crop 224x224, bilinear, ...``."""
        if isinstance(self.resize, int):
            steps = [f"resize {self.resize} (shorter side)"]
        else:
            steps = [f"resize {format_size(self.resize)} (stretch)"]
        if self.crop_size is not None:
            steps.append(f"centre crop {format_size(self.crop_size)}")
        mean, std = (",".join(f"{v:g}" for v in values) for values in (self.mean, self.std))
        return ", ".join([*steps, self.interpolation, "RGB", f"mean {mean}", f"std {std}"])


def choice(text: str, choices: Sequence[_Choice], what: str) -> _Choice:
    """The choice that a text names.

    Args:
        text: As the user wrote it.
        choices: What there is.
        what: What a choice is called, ``precision``.

    Raises:
        UsageError: It names none of them.
    """
    for each in choices:
        if each == text:
            return each
    raise UsageError(f"There is no {what} {text!r}; there are {', '.join(choices)}.")


def counted(count: int, one: str, many: str | None = None) -> str:
    """``1 photo``, ``225 photos``.

    Args:
        count: How many.
        one: What one of them is called.
        many: What several are; None for the same with an s.
    """
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def format_size(size: Size) -> str:
    """Write a size as the command line takes it: ``224x224``, height first."""
    return f"{size[0]}x{size[1]}"


class Labels(Value, frozen=True):
    """The classes' names, in the order of the logits.

    Attributes:
        names: One unique name a class.
        source: Where they come from, in words: ``folder bird_photos``, ``assumed``.
    """

    names: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        repeated = sorted(name for name, count in Counter(self.names).items() if count > 1)
        if repeated:
            raise UsageError(f"Class names must be unique; repeated: {', '.join(repeated)}.")

    @classmethod
    def numbered(cls, count: int) -> Self:
        """``class_0`` ... for a model whose class names nobody gave."""
        return cls(names=tuple(f"class_{i}" for i in range(count)), source="assumed")

    def __len__(self) -> int:
        return len(self.names)

    def to_metadata(self) -> str:
        """What stands under :data:`LABELS_KEY`."""
        return msgspec.json.encode(self.names).decode()


class Ranked(Value, frozen=True):
    """One of the top-k answers for an image.

    Attributes:
        label: The class's name.
        probability: The softmax of its logit, 0..1.
    """

    label: str
    probability: float


class Prediction(Value, frozen=True):
    """The answer for one image file; exactly one for each file, whatever is wrong with it.

    Attributes:
        path: Relative to the folder that was asked for, ``/`` on every system.
        status: ``ok``, or in a word what is wrong with the file: ``corrupt``, ``truncated``, ...
        reason: The same in a sentence; empty when ok.
        label: The top-1 class; None unless ok, as the fields below.
        probability: The top-1 class's softmax, 0..1.
        margin: Top-1 logit minus top-2 logit.
        expected: The class that the file's folder names, where the folder is labelled.
        top: The best k classes, best first, rank 1 included.
    """

    path: str
    status: str = "ok"
    reason: str = ""
    label: str | None = None
    probability: float | None = None
    margin: float | None = None
    expected: str | None = None
    top: tuple[Ranked, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether the image could be read."""
        return self.status == "ok"
