"""``deploykit.train``: the recipe of the tutorials, from Python."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from deploykit.commands.python import PathLike, SizeLike, option_text, verb
from deploykit.commands.train.run import TrainingResult, train_classifier
from deploykit.specs.preprocessing_options import (
    PreprocessingOptions,
    choose_preprocessing,
    parse_size,
)
from deploykit.system.progress import Progress, silent


@verb
def train(
    folder: PathLike,
    *,
    arch: str = "dpn92",
    output: PathLike = ".",
    epochs: int = 40,
    batch_size: int = 4,
    learning_rate: float = 1e-4,
    input_size: SizeLike | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    arch_args: Mapping[str, object] | None = None,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a classifier on a folder of photos, and keep the epoch with the best test accuracy.

    Args:
        folder: Photos, with one sub-folder a class.
        arch: The architecture, as for :func:`deploykit.export`.
        output: The folder for best_model.pth, classes.txt and curves.png.
        epochs: The number of epochs in all.
        batch_size: Photos in a training step.
        learning_rate: Of Adam; multiplied by 0.92 every 4 epochs.
        input_size: What photos are resized to, in pixels; None for the architecture's, or 224x224.
        test_fraction: The share of the photos to test on and not to train on, 0..1.
        seed: Of the split, the first weights and the shuffling.
        arch_args: Further arguments of the architecture.
        device: ``auto`` for the GPU if there is one.
        workers: Processes that read photos; None for 0 on a CPU, and up to 8 for a GPU.
        resume: Continue after the last finished epoch.
        overwrite: Replace the files of an earlier training.
        progress: Called with every batch, and with a note on every epoch.

    Raises:
        UsageError: An argument makes no sense.
        InputError: The photos or the architecture cannot be used, or the loss became NaN.
        MissingError: A package or the device is not here.
    """
    from deploykit.models.presets import timm_preprocessing
    from deploykit.models.registry import resolve_architecture

    architecture = resolve_architecture(arch, allow_user_code=True)
    size = option_text(input_size, "x")
    preprocessing = choose_preprocessing(
        PreprocessingOptions(input_size=parse_size(size, "--input-size") if size else None),
        default=architecture.preprocessing,
        timm=lambda: timm_preprocessing(architecture),
    )
    return train_classifier(
        Path(folder),
        arch=arch,
        arch_args=arch_args,
        output=Path(output),
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        preprocessing=preprocessing,
        test_fraction=test_fraction,
        seed=seed,
        device=device,
        workers=workers,
        resume=resume,
        overwrite=overwrite,
        progress=progress,
    )
