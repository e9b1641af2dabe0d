"""``deploykit quantize``: graphs in FP16 or INT8 that are proven to decide as the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    Artifacts,
    BundleName,
    Json,
    NoDiagnose,
    Verbose,
    chosen_bundle,
)


def quantize(
    bundle: BundleName = None,
    precision: Annotated[str, typer.Option(help="fp16 or int8.")] = "int8",
    images: Annotated[
        Path | None,
        typer.Option(
            help="Photos: one sample to search and calibrate on, another to prove on.  "
            "[default: those of the export; else golden.npz]"
        ),
    ] = None,
    search_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds to look for the nodes that must stay in FP32, for each graph.  "
            "[default: 300]",
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="What the INT8 graph for CPUs is made for: openvino or onnxruntime-cpu.  "
            "[default: openvino where it is installed]"
        ),
    ] = None,
    no_diagnose: NoDiagnose = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make graphs in FP16 or INT8 that are proven, on other photos, to decide as the checkpoint."""
    with command("quantize", as_json=json, verbose=verbose) as console:
        from deploykit.commands.quantize.run import (
            SCHEMES,
            SEARCH_SECONDS,
            QuantizeRequest,
            quantize_bundle,
        )
        from deploykit.commands.quantize.text import quantization_text, quantization_value
        from deploykit.errors import ParityError
        from deploykit.specs.value import choice

        request = QuantizeRequest(
            precision=choice(precision, tuple(SCHEMES), "precision to quantize to"),
            images=images,
            search_seconds=SEARCH_SECONDS if search_seconds is None else search_seconds,
            runtime=runtime,
            diagnose=not no_diagnose,
        )
        result = quantize_bundle(
            chosen_bundle(bundle, artifacts, console), request, console.progress
        )
        console.result(
            lambda: quantization_value(result),
            lambda: quantization_text(result),
            exit_code=0 if result.passed else ParityError.exit_code,
        )
