"""``deploykit build-trt``: a proven deploy graph becomes a TensorRT engine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    Artifacts,
    BundleName,
    Expected,
    Json,
    MaxAccuracyDrop,
    MaxFlips,
    NoDiagnose,
    SearchSeconds,
    Verbose,
    parsed_bytes,
)

_ENGINE = "Engine options"


def build_trt(
    bundle: BundleName = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="The precision: fp16, int8 or fp32.")
    ] = "fp16",
    target: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GPU",
            help="The GPU to build for: portable, current, sm75, sm80, sm86, sm89 (RTX 40), sm120 "
            "(RTX 50) or sm121; repeat it for one engine for several.  [default: portable; "
            "current for tensorrt]",
        ),
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Images to make the FP16 or INT8 graph anew with.  "
            "[default: the graph that is there; else those of the export, else golden.npz]",
        ),
    ] = None,
    expected: Expected = None,
    max_flips: MaxFlips = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    search_seconds: SearchSeconds = None,
    flavour: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=_ENGINE,
            help="tensorrt, tensorrt_rtx, or auto for the installed one that fits.",
        ),
    ] = "auto",
    min_batch: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=_ENGINE, help="The smallest batch it accepts."),
    ] = 1,
    opt_batch: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=_ENGINE, help="The batch it is tuned for."),
    ] = 8,
    max_batch: Annotated[
        int,
        typer.Option(metavar="N", rich_help_panel=_ENGINE, help="The largest batch it accepts."),
    ] = 32,
    workspace: Annotated[
        str | None,
        typer.Option(
            metavar="SIZE",
            rich_help_panel=_ENGINE,
            help="The most device memory for a layer, as 2GiB or 512MiB.  [default: all]",
        ),
    ] = None,
    no_diagnose: NoDiagnose = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Build a TensorRT engine from a proven graph.

    The FP16 or INT8 graph is made first where it is missing, and proven by rehearsal. The passport
    beside the engine says where it runs. Engines are experimental, not run on a GPU.
    """
    with command(
        "build-trt", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        from deploykit.bundle.folder import find_bundle
        from deploykit.commands.build.run import BUILD_PRECISIONS, BuildRequest, build_engine
        from deploykit.commands.build.text import build_text, build_value
        from deploykit.commands.quantize.request import SEARCH_SECONDS
        from deploykit.errors import ParityError
        from deploykit.parity.budget import Budget
        from deploykit.specs.engine import FLAVOURS, Profile
        from deploykit.specs.value import choice

        request = BuildRequest(
            precision=choice(precision, BUILD_PRECISIONS, "precision for engines"),
            flavour=None if flavour == "auto" else choice(flavour, FLAVOURS, "flavour"),
            targets=tuple(target or ()),
            profile=Profile(min_batch=min_batch, opt_batch=opt_batch, max_batch=max_batch),
            workspace_bytes=parsed_bytes(workspace),
            images=images,
            search_seconds=SEARCH_SECONDS if search_seconds is None else search_seconds,
            diagnose=not no_diagnose,
            expected=expected,
            budget=Budget.parse(max_flips, max_accuracy_drop),
        )
        result = build_engine(
            find_bundle(bundle, artifacts, console.progress), request, console.progress
        )
        console.result(
            lambda: build_value(result),
            lambda: build_text(result),
            exit_code=0 if result.passed else ParityError.exit_code,
        )
