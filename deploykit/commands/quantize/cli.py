"""``deploykit quantize``: INT8 deploy graphs that are proven to decide as the checkpoint does."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import Artifacts, BundleName, Json, Verbose, chosen_bundle


def quantize(
    bundle: BundleName = None,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Photos: one sample to calibrate and search on, another to prove on.  "
            "[default: those of the export; else golden.npz]"
        ),
    ] = None,
    search_seconds: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="How long to look for the nodes that must stay in FP32, for each of the two "
            "graphs.  [default: 300]",
        ),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="What the graph for CPUs is made for: openvino or onnxruntime-cpu.  "
            "[default: openvino where it is installed]"
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make INT8 graphs, for CPUs and for TensorRT: calibrated on photos, proven on others."""
    with command("quantize", as_json=json, verbose=verbose) as console:
        from deploykit.commands.quantize.request import SEARCH_SECONDS
        from deploykit.commands.quantize.run import QuantizeRequest, quantize_bundle
        from deploykit.commands.quantize.text import quantization_text, quantization_value
        from deploykit.errors import ParityError

        request = QuantizeRequest(
            images=images,
            search_seconds=SEARCH_SECONDS if search_seconds is None else search_seconds,
            runtime=runtime,
        )
        result = quantize_bundle(
            chosen_bundle(bundle, artifacts, console), request, console.progress
        )
        console.result(
            lambda: quantization_value(result),
            lambda: quantization_text(result),
            exit_code=0 if result.passed else ParityError.exit_code,
        )
