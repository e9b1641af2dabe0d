"""``deploykit.export``: a checkpoint becomes a bundle, from Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from deploykit.bundle.folder import Bundle, default_artifacts
from deploykit.commands.export.heads import read_thresholds
from deploykit.commands.export.request import ExportRequest
from deploykit.commands.export.run import export_bundle
from deploykit.commands.python import (
    ChannelsLike,
    PathLike,
    SizeLike,
    option_text,
    optional_path,
)
from deploykit.errors import UsageError
from deploykit.specs.heads import HeadName
from deploykit.specs.preprocessing import Interpolation, PixelType
from deploykit.specs.preprocessing_options import parse_options
from deploykit.system.progress import Progress, silent


def export(
    arch: str,
    ckpt: PathLike,
    *,
    classes: PathLike | Sequence[str] | None = None,
    number_duplicates: bool = False,
    images: PathLike | None = None,
    preset: Literal["tutorial", "torchvision", "timm", "keras"] | None = None,
    input_size: SizeLike | None = None,
    resize: SizeLike | None = None,
    crop_size: SizeLike | None = None,
    interpolation: Interpolation | None = None,
    antialias: bool | None = None,
    pixels: PixelType | None = None,
    mean: ChannelsLike | None = None,
    std: ChannelsLike | None = None,
    grayscale: bool = False,
    arch_args: Mapping[str, object] | None = None,
    weights: str | None = None,
    head: HeadName | None = None,
    threshold: float | None = None,
    thresholds: PathLike | Mapping[str, float] | None = None,
    embeddings: bool = False,
    tap: str | None = None,
    golden: Literal["photos", "generated"] = "photos",
    opset: int | None = None,
    name: str | None = None,
    overwrite: bool = False,
    trust_pickle: bool = False,
    diagnose: bool = True,
    artifacts: PathLike | None = None,
    progress: Progress = silent,
) -> Bundle:
    """Export a checkpoint to a bundle, verified before it is published.

    Args:
        arch: ``dpn92``, ``torchvision/NAME``, ``timm/NAME``, ``package.module:function`` or
            ``file.py:Name``.
        ckpt: The checkpoint: a .pth, .pt or .safetensors file, or Keras' .keras or .h5.
        classes: The folder of the training, a text, CSV, JSON or YAML file, or the names, in a
            list or with commas between them; None for ``classes.txt`` beside the checkpoint.
        number_duplicates: Number the classes of equal names: ``crane``, ``crane 2``.
        images: Photos to verify on; None for the folder that ``classes`` names.
        preset: The preprocessing; None for the architecture's own, else ``tutorial``.
        input_size: Height and width that the network takes, in pixels.
        resize: A number for the shorter side; two for height and width to stretch to.
        crop_size: The centre crop after resizing.
        interpolation: The filter.
        antialias: Whether shrinking averages over the pixels it drops, as Pillow does; False as
            ``tf.image.resize`` does.
        pixels: The type of the resized pixels: ``float32`` if training resizes tensors of floats.
        mean: Subtracted from the image in 0..1.
        std: Divides the image after that.
        grayscale: Make images grey before they are resized, as training did; a network that takes
            one channel says so itself.
        arch_args: Further arguments of the architecture.
        weights: The entry of the checkpoint to load, ``ema``; None for the one that fits.
        head: What the network's answers mean: ``single-label``, ``multi-label`` or ``binary``; None
            for what the network or the checkpoint says, else ``single-label``.
        threshold: The probability above which a multi-label or binary head decides for a class;
            None for 0.5.
        thresholds: Those of single classes, by their names, or a file of them.
        embeddings: Make and prove a second graph that gives, beside the logits, what the last layer
            takes of an image: for :meth:`Model.embed` and ``deploykit predict --embeddings``.
        tap: Another tensor as the embedding: what the module of this path gives, or a tensor or a
            node by its name in the ONNX.
        golden: The self-test's 8 images: of the photos, or generated if those are private.
        opset: The ONNX operator set; None for torch's own choice.
        name: The bundle's name; None for the architecture's.
        overwrite: Replace a bundle of that name.
        trust_pickle: Let the checkpoint run the code in it; only for files you made yourself.
        diagnose: Look for the node at fault when the comparison fails.
        artifacts: The home of bundles; None for ``artifacts``.
        progress: Called with what is being done, and what was assumed.

    Raises:
        UsageError: An argument makes no sense.
        InputError: The architecture, the checkpoint or the photos cannot be used, or there is a
            bundle of that name.
        ParityError: The exported graphs do not give the checkpoint's answers.
        DependencyError: torch or onnx is not installed.
    """
    request = ExportRequest(
        arch=arch,
        checkpoint=Path(ckpt),
        arch_args=dict(arch_args or {}),
        classes=_classes_text(classes),
        number_duplicates=number_duplicates,
        preprocessing=parse_options(
            preset=preset,
            input_size=option_text(input_size, "x"),
            resize=option_text(resize, "x"),
            crop_size=option_text(crop_size, "x"),
            interpolation=interpolation,
            antialias=antialias,
            pixels=pixels,
            mean=option_text(mean, ","),
            std=option_text(std, ","),
            grayscale=grayscale,
        ),
        images=optional_path(images),
        golden=golden,
        opset=opset,
        name=name,
        artifacts=optional_path(artifacts) or default_artifacts(),
        overwrite=overwrite,
        weights=weights,
        trust_pickle=trust_pickle,
        diagnose=diagnose,
        head=head,
        threshold=threshold,
        thresholds=_thresholds(thresholds),
        embeddings=embeddings,
        tap=tap,
    )
    return export_bundle(request, progress).bundle


def _thresholds(thresholds: PathLike | Mapping[str, float] | None) -> Mapping[str, float]:
    if thresholds is None or isinstance(thresholds, Mapping):
        return thresholds or {}
    return read_thresholds(Path(thresholds))


def _classes_text(classes: PathLike | Sequence[str] | None) -> str | None:
    """Classes as ``--classes`` takes them.

    Raises:
        UsageError: A name in a list has a comma, which ends a name there.
    """
    if classes is None or isinstance(classes, Path | str):
        return None if classes is None else str(classes)
    for name in classes:
        if "," in name:
            raise UsageError(
                f"The class name {name!r} has a comma.",
                hint="Write such names to a text file, one a line, and give its path as classes.",
            )
    return "".join(f"{name}," for name in classes)
