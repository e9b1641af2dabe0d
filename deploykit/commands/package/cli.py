"""``deploykit package``: a bundle becomes what a server, a colleague or a container takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    Artifacts,
    BundleName,
    Json,
    Verbose,
    named_path,
    parsed_precision,
    whole_number,
)

_TRITON = "Options of --format triton"


def package(
    output: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="OUT",
            help="The folder to write, or the .zip file. It must not be there.",
        ),
    ],
    format: Annotated[  # noqa: A002  # it is the option's name
        str,
        typer.Option(
            metavar="NAME",
            help="triton: a model repository; zip: the bundle in one file; container: a Dockerfile "
            "with all that it copies; web: a page that runs it in a browser.",
        ),
    ],
    bundle: BundleName = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a package that is there.")
    ] = False,
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_TRITON,
            help="The deploy graph to serve: fp32, fp16 or int8.  [default: fp32]",
        ),
    ] = None,
    engine: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_TRITON,
            help="A TensorRT engine to serve instead; repeat it for GPUs of several kinds.",
        ),
    ] = None,
    preprocess: Annotated[
        bool,
        typer.Option(
            "--preprocess",
            rich_help_panel=_TRITON,
            help="Take image files, too: an ensemble that decodes them as deploykit does.",
        ),
    ] = False,
    max_batch: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            parser=whole_number,
            rich_help_panel=_TRITON,
            help="The most images in one run.  [default: 32; the engine's]",
        ),
    ] = None,
    onnxruntime_web: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="DIR",
            rich_help_panel="Options of --format web",
            help="The package onnxruntime-web, unpacked, for a machine without npm.  "
            "[default: npm gets it]",
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Pack a bundle: for Triton, a container, a browser; as a file.

    What is there already is replaced only with --overwrite, and only if this command wrote it.
    """
    with command(
        "package", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        from deploykit.bundle.folder import find_bundle
        from deploykit.commands.package.request import PACKAGE_FORMATS, PackageRequest
        from deploykit.commands.package.run import package_bundle
        from deploykit.commands.package.text import package_text, package_value
        from deploykit.specs.value import choice

        request = PackageRequest(
            format=choice(format, PACKAGE_FORMATS, "format"),
            output=output,
            overwrite=overwrite,
            precision=parsed_precision(precision),
            engines=tuple(engine or ()),
            preprocess=preprocess,
            max_batch=max_batch,
            onnxruntime_web=onnxruntime_web,
        )
        result = package_bundle(
            find_bundle(bundle, artifacts, console.progress, packed=True),
            request,
            console.progress,
        )
        console.result(lambda: package_value(result), lambda: package_text(result))
