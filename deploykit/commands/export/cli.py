"""``deploykit export``: a checkpoint becomes a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
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
            help="The architecture: dpn92, torchvision/NAME, timm/NAME, package.module:function "
            "or file.py:Name; `deploykit archs` lists them."
        ),
    ],
    ckpt: Annotated[Path, typer.Option(help="The checkpoint: a .pth, .pt or .safetensors file.")],
    classes: Annotated[
        str | None,
        typer.Option(
            help="The classes: the folder of the training, a text file, or a comma list.  "
            "[default: classes.txt beside the checkpoint]"
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(help="Photos to verify on.  [default: the folder that --classes names]"),
    ] = None,
    preset: Annotated[
        str | None,
        typer.Option(help="The preprocessing: tutorial, torchvision or timm."),
    ] = None,
    input_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="What the network takes, in pixels.")
    ] = None,
    resize: Annotated[
        str | None,
        typer.Option(metavar="N|HxW", help="N: the shorter side; HxW: stretch both sides."),
    ] = None,
    crop_size: Annotated[
        str | None, typer.Option(metavar="HxW", help="The centre crop after resizing.")
    ] = None,
    interpolation: Annotated[
        str | None,
        typer.Option(help="The filter: bilinear, bicubic, nearest, lanczos, box or hamming."),
    ] = None,
    mean: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Subtracted from the image in 0..1.")
    ] = None,
    std: Annotated[
        str | None, typer.Option(metavar="R,G,B", help="Divides the image after that.")
    ] = None,
    arch_arg: ArchArgs = None,
    golden: Annotated[
        str,
        typer.Option(help="The self-test's 8 images: photos, or generated if they are private."),
    ] = "photos",
    opset: Annotated[int | None, typer.Option(help="The ONNX operator set.")] = None,
    name: Annotated[
        str | None, typer.Option(help="The bundle's name.  [default: the architecture's]")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a bundle of that name.")
    ] = False,
    trust_pickle: TrustPickle = False,
    no_diagnose: NoDiagnose = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Export a checkpoint to a bundle, verified before it is published."""
    with command("export", as_json=json, verbose=verbose) as console:
        from deploykit.commands.export.request import GOLDEN_CHOICES, ExportRequest
        from deploykit.commands.export.run import export_bundle
        from deploykit.commands.export.text import export_text, export_value
        from deploykit.specs.preprocessing_options import parse_options
        from deploykit.specs.value import choice

        request = ExportRequest(
            arch=arch,
            checkpoint=ckpt,
            arch_args=parsed_arch_args(arch_arg) or {},
            classes=classes,
            preprocessing=parse_options(
                preset=preset,
                input_size=input_size,
                resize=resize,
                crop_size=crop_size,
                interpolation=interpolation,
                mean=mean,
                std=std,
            ),
            images=images,
            golden=choice(golden, GOLDEN_CHOICES, "choice of golden images"),
            opset=opset,
            name=name,
            artifacts=artifacts_folder(artifacts),
            overwrite=overwrite,
            trust_pickle=trust_pickle,
            diagnose=not no_diagnose,
        )
        result = export_bundle(request, console.progress)
        console.result(lambda: export_value(result), lambda: export_text(result))
