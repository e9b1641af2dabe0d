"""``deploykit train``: the recipe of the tutorials, so that a newcomer has a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import ArchArgs, Json, Verbose, parsed_arch_args
from deploykit.system.text import command_line


def train(
    folder: Annotated[Path, typer.Argument(help="Photos, with one sub-folder a class.")],
    arch: Annotated[
        str, typer.Option(help="The architecture; `deploykit archs` lists them.")
    ] = "dpn92",
    output: Annotated[
        Path, typer.Option(help="The folder for best_model.pth, classes.txt and curves.png.")
    ] = Path(),
    epochs: Annotated[int, typer.Option(help="The number of epochs in all.")] = 40,
    batch_size: Annotated[int, typer.Option(help="Photos in a training step.")] = 4,
    learning_rate: Annotated[
        float,
        typer.Option(
            "--learning-rate",
            "--lr",
            help="The learning rate of Adam; multiplied by 0.92 every 4 epochs.",
        ),
    ] = 1e-4,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            help="The size that photos are resized to.  [default: the architecture's, or 224x224]",
        ),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="The share of the photos to test on and not to train on.")
    ] = 0.2,
    seed: Annotated[
        int, typer.Option(help="The seed of the split, the first weights and the shuffling.")
    ] = 0,
    arch_arg: ArchArgs = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0, help="Processes that read photos.  [default: 0 on a CPU, up to 8 for a GPU]"
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the last finished epoch.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier training.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier on a folder of photos, and keep the epoch with the best test accuracy."""
    with command("train", as_json=json, verbose=verbose) as console:
        from deploykit.commands.train.run import train_classifier
        from deploykit.commands.train.text import training_text, training_value
        from deploykit.models.registry import resolve_architecture, timm_preprocessing
        from deploykit.specs.preprocessing_options import (
            PreprocessingOptions,
            choose_preprocessing,
            parse_size,
        )

        architecture = resolve_architecture(arch, allow_user_code=True)
        size = parse_size(input_size, "--input-size") if input_size else None
        result = train_classifier(
            folder,
            arch=arch,
            arch_args=parsed_arch_args(arch_arg),
            output=output,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            preprocessing=choose_preprocessing(
                PreprocessingOptions(input_size=size),
                default=architecture.preprocessing,
                timm=lambda: timm_preprocessing(architecture),
            ),
            test_fraction=test_fraction,
            seed=seed,
            device=device,
            workers=workers,
            resume=resume,
            overwrite=overwrite,
            progress=console.progress,
        )
        # With every option: export cannot see in the weights which size of images they are for.
        following = ["deploykit", "export", "--arch", arch, "--ckpt", str(result.checkpoint)]
        following += ["--input-size", input_size] if input_size else []
        following += [word for item in arch_arg or () for word in ("--arch-arg", item)]
        console.result(
            lambda: training_value(result),
            lambda: training_text(result, command_line(following)),
        )
