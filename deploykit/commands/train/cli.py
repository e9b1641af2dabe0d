"""``deploykit train``: the tutorials' recipe, so that a newcomer has a checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import ArchArgs, Json, Verbose, parsed_arch_args
from deploykit.system.shell import command_line

if TYPE_CHECKING:
    from deploykit.commands.train.history import EpochResult


def train(
    folder: Annotated[Path, typer.Argument(help="Photos, one sub-folder a class.")],
    arch: Annotated[
        str, typer.Option(help="The architecture; `deploykit archs` lists them.")
    ] = "dpn92",
    output: Annotated[
        Path, typer.Option(help="The folder for best_model.pth, classes.txt and curves.png.")
    ] = Path(),
    epochs: Annotated[int, typer.Option(help="How many in all.")] = 40,
    batch_size: Annotated[int, typer.Option(help="Photos a step.")] = 4,
    learning_rate: Annotated[
        float, typer.Option(help="Adam's; multiplied by 0.92 every 4 epochs.")
    ] = 1e-4,
    input_size: Annotated[
        str | None,
        typer.Option(metavar="HxW", help="What photos are stretched to.  [default: 224x224]"),
    ] = None,
    test_fraction: Annotated[
        float, typer.Option(help="The part of the photos that tests and does not train.")
    ] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split, the weights and the order.")] = 0,
    arch_arg: ArchArgs = None,
    threads: Annotated[
        int | None, typer.Option(min=1, help="CPU threads.  [default: one a core]")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on after the last finished epoch.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an earlier training's files.")
    ] = False,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a classifier on a folder of photos; keeps the epoch with the best test accuracy."""
    with command("train", as_json=json, verbose=verbose) as console, _temporary_font_folder():
        from deploykit.commands.export.preprocessing import (
            PreprocessingOptions,
            choose_preprocessing,
            parse_size,
        )
        from deploykit.commands.train.curves import write_curves
        from deploykit.commands.train.run import CURVES, train_classifier
        from deploykit.commands.train.text import training_text, training_value
        from deploykit.errors import DeploykitError
        from deploykit.models.presets import timm_preprocessing
        from deploykit.models.registry import resolve_architecture
        from deploykit.system.deps import need

        architecture = resolve_architecture(arch, allow_user_code=True)
        size = parse_size(input_size, "--input-size") if input_size else None

        need("matplotlib")  # now, rather than after an epoch of hours

        def draw(history: tuple[EpochResult, ...]) -> None:
            try:
                write_curves(history, output / CURVES)
            except (DeploykitError, OSError) as exc:  # no picture is worth a training
                console.note(f"no {CURVES} this time, the training goes on: {exc}")

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
            threads=threads,
            resume=resume,
            overwrite=overwrite,
            device=device,
            progress=console.progress,
            on_epoch=draw,
        )
        # Said in full: export cannot tell from the weights what size of images they were made for.
        following = ["deploykit", "export", "--arch", arch, "--ckpt", str(result.checkpoint)]
        following += ["--input-size", input_size] if input_size else []
        following += [word for item in arch_arg or () for word in ("--arch-arg", item)]
        console.result(
            lambda: training_value(result),
            lambda: training_text(result, command_line(following)),
        )


@contextlib.contextmanager
def _temporary_font_folder() -> Iterator[None]:
    """Keep matplotlib's list of fonts out of the user's home, unless the user says where it is."""
    import tempfile

    name = "MPLCONFIGDIR"
    if name in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-", ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            del os.environ[name]
