"""``deploykit train``: the recipe of the tutorials, so that a newcomer has a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import ArchArgs, Json, Verbose, parsed_arch_args
from deploykit.system.gpu import EXPERIMENTAL
from deploykit.system.text import command_line

_TRAINING = "Training options"


def train(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR",
            help="Labelled images, with one sub-folder for each class; or those of --labels.",
        ),
    ],
    labels: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A CSV instead of sub-folders: each image's path and its classes, "
            "a.jpg,cat|dog, or a 0 or 1 for each class below a header.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What to learn: single-label (a softmax), multi-label (a sigmoid a class) or "
            "binary (one logit, for the second of two classes).  [default: multi-label if --labels "
            "has an image of several classes or none, else single-label]",
        ),
    ] = None,
    arch: Annotated[
        str, typer.Option(metavar="NAME", help="The architecture; see `deploykit archs`.")
    ] = "dpn92",
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The folder for best_model.pth, classes.txt and curves.png."
        ),
    ] = Path(),
    epochs: Annotated[int, typer.Option(metavar="N", help="The number of epochs.")] = 40,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue after the last finished epoch.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the files of an earlier training.")
    ] = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            rich_help_panel=_TRAINING,
            help="Images in a training step.  [default: 4, or that of the training to resume]",
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            "--learning-rate",
            "--lr",
            metavar="RATE",
            rich_help_panel=_TRAINING,
            help="The learning rate of Adam; multiplied by 0.92 every 4 epochs.  "
            "[default: 1e-4, or that of the training to resume]",
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            rich_help_panel=_TRAINING,
            help="The size to stretch images to.  [default: the architecture's, or 224x224]",
        ),
    ] = None,
    test_fraction: Annotated[
        float,
        typer.Option(
            metavar="0..1",
            rich_help_panel=_TRAINING,
            help="The share of the images to test on instead of training on.",
        ),
    ] = 0.2,
    seed: Annotated[
        int,
        typer.Option(
            metavar="N",
            rich_help_panel=_TRAINING,
            help="The seed of the split, the first weights and the shuffling.",
        ),
    ] = 0,
    arch_arg: ArchArgs = None,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_TRAINING,
            help=f"auto, cpu or cuda ({EXPERIMENTAL}).",
        ),
    ] = "auto",
    workers: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="N",
            rich_help_panel=_TRAINING,
            help="Processes that read images.  [default: 0 on a CPU, up to 8 for a GPU]",
        ),
    ] = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier on a folder of labelled images.

    Keeps the epoch with the best test accuracy as best_model.pth; with several labels an image, the
    one with the best mean average precision.
    """
    with command("train", as_json=json, verbose=verbose) as console:
        from deploykit.commands.train import run
        from deploykit.commands.train.text import training_text, training_value
        from deploykit.specs.heads import HEADS
        from deploykit.specs.value import choice

        result = run.train(
            folder,
            labels=labels,
            head=None if head is None else choice(head, HEADS, "head"),
            arch=arch,
            arch_args=parsed_arch_args(arch_arg),
            output=output,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            input_size=input_size,
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
        commands = [command_line(following)]
        if labels is not None:  # of sub-folders the labels are known without being told
            trained = ["deploykit", "predict", str(folder), "--expected", str(labels)]
            commands.append(command_line(trained))
        console.result(
            lambda: training_value(result),
            lambda: training_text(result, commands),
        )
