"""``deploykit export``: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    PREPROCESSING,
    ArchArgs,
    Artifacts,
    Json,
    NoDiagnose,
    TrustPickle,
    Verbose,
    artifacts_folder,
    parsed_arch_args,
)


def export(
    arch: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="The architecture: dpn92, torchvision/NAME, timm/NAME, package.module:function "
            "or file.py:Name; see `deploykit archs`.",
        ),
    ],
    ckpt: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            help="The checkpoint: a .pth, .pt, .safetensors, .keras or .h5 file with weights.",
        ),
    ],
    classes: Annotated[
        str | None,
        typer.Option(
            metavar="DIR|FILE|A,B,...",
            help="The classes: the folder of the training images, a text, CSV, JSON or YAML file, "
            "or a comma list.  [default: classes.txt beside the checkpoint]",
        ),
    ] = None,
    number_duplicates: Annotated[
        bool,
        typer.Option(
            "--number-duplicates",
            help="Number the classes of equal names: crane, crane 2.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH", help="Images to compare on.  [default: the folder of --classes]"
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The bundle's name.  [default: the architecture's]"),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle of the same name.")
    ] = False,
    arch_arg: ArchArgs = None,
    weights: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The entry of the checkpoint to load, such as ema.  [default: the one that fits]",
        ),
    ] = None,
    trust_pickle: TrustPickle = False,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="KIND",
            help="What the network's answers mean: single-label (a softmax), multi-label (a "
            "sigmoid a class) or binary (one logit).  [default: as the network or its file says]",
        ),
    ] = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            metavar="P",
            help="The probability above which a multi-label or binary head decides for a class.  "
            "[default: 0.5]",
        ),
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Thresholds of single classes: lines of class,P, or JSON."
        ),
    ] = None,
    embeddings: Annotated[
        bool,
        typer.Option(
            "--embeddings",
            help="Make and prove a second graph that also gives embeddings: what the last layer "
            "takes of an image.",
        ),
    ] = False,
    tap: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Another tensor as the embedding: what a module gives (layer4), or a tensor or "
            "node by its ONNX name.",
        ),
    ] = None,
    golden: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="The 8 images of the self-test: photos, or generated if yours are private.",
        ),
    ] = "photos",
    opset: Annotated[
        int | None, typer.Option(metavar="N", help="The version of the ONNX operator set.")
    ] = None,
    no_diagnose: NoDiagnose = False,
    preset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=PREPROCESSING,
            help="A usual preprocessing: tutorial, torchvision, timm or keras.  "
            "[default: the architecture's, else tutorial]",
        ),
    ] = None,
    input_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            rich_help_panel=PREPROCESSING,
            help="The size of the network's input in pixels.",
        ),
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(
            metavar="N|HxW",
            rich_help_panel=PREPROCESSING,
            help="Resize the shorter side to N, or stretch to HxW.",
        ),
    ] = None,
    crop_size: Annotated[
        str | None,
        typer.Option(
            metavar="HxW",
            rich_help_panel=PREPROCESSING,
            help="Crop the centre to this size after resizing.",
        ),
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=PREPROCESSING,
            help="The resize filter: bilinear, bicubic, nearest, lanczos, box or hamming.",
        ),
    ] = None,
    antialias: Annotated[
        bool | None,
        typer.Option(
            "--antialias/--no-antialias",
            rich_help_panel=PREPROCESSING,
            help="Shrink as Pillow does, or as tf.image.resize and OpenCV do.  "
            "[default: the preset's]",
            show_default=False,
        ),
    ] = None,
    pixels: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE",
            rich_help_panel=PREPROCESSING,
            help="Resized pixels: uint8, or float32 if training resizes tensors of floats.  "
            "[default: the preset's]",
        ),
    ] = None,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B|N",
            rich_help_panel=PREPROCESSING,
            help="The mean to subtract, for pixels from 0 to 1; one number for all channels.",
        ),
    ] = None,
    std: Annotated[
        str | None,
        typer.Option(
            metavar="R,G,B|N",
            rich_help_panel=PREPROCESSING,
            help="The standard deviation to divide by.",
        ),
    ] = None,
    grayscale: Annotated[
        bool,
        typer.Option(
            "--grayscale",
            rich_help_panel=PREPROCESSING,
            help="Make images grey before resizing.  [default: if the network takes one channel]",
        ),
    ] = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Export a checkpoint to a bundle and prove it.

    The bundle is published only if its graphs decide as the checkpoint does, on your photos.
    """
    with command("export", as_json=json, verbose=verbose) as console:
        from deploykit.commands.export.heads import read_thresholds
        from deploykit.commands.export.request import GOLDEN_CHOICES, ExportRequest
        from deploykit.commands.export.run import export_bundle
        from deploykit.commands.export.text import export_text, export_value
        from deploykit.specs.heads import HEADS
        from deploykit.specs.preprocessing_options import parse_options
        from deploykit.specs.value import choice

        request = ExportRequest(
            arch=arch,
            checkpoint=ckpt,
            arch_args=parsed_arch_args(arch_arg) or {},
            classes=classes,
            number_duplicates=number_duplicates,
            preprocessing=parse_options(
                preset=preset,
                input_size=input_size,
                resize=resize,
                crop_size=crop_size,
                interpolation=interpolation,
                mean=mean,
                std=std,
                antialias=antialias,
                pixels=pixels,
                grayscale=grayscale,
            ),
            images=images,
            golden=choice(golden, GOLDEN_CHOICES, "choice of golden images"),
            opset=opset,
            name=name,
            artifacts=artifacts_folder(artifacts),
            overwrite=overwrite,
            weights=weights,
            trust_pickle=trust_pickle,
            diagnose=not no_diagnose,
            head=None if head is None else choice(head, HEADS, "head"),
            threshold=threshold,
            thresholds={} if thresholds is None else read_thresholds(thresholds),
            embeddings=embeddings,
            tap=tap,
        )
        result = export_bundle(request, console.progress)
        console.result(lambda: export_value(result), lambda: export_text(result))
