"""``deploykit quantize``: graphs in FP16 or INT8 that are proven to decide as the checkpoint."""

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
)


def quantize(
    bundle: BundleName = None,
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="The precision: fp16 or int8.")
    ] = "int8",
    images: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="Images: some to search and calibrate on, others to prove on.  "
            "[default: those of the export; else golden.npz]",
        ),
    ] = None,
    expected: Expected = None,
    max_flips: MaxFlips = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    search_seconds: SearchSeconds = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="The runtime of the INT8 graph for CPUs: openvino or onnxruntime-cpu.  "
            "[default: openvino where it is installed]",
        ),
    ] = None,
    cpu: Annotated[
        str | None,
        typer.Option(
            "--for",
            metavar="CPU",
            help="The CPUs of the INT8 graph: vnni, avx2 (without VNNI) or any, which makes one "
            "for each.  [default: this CPU]",
        ),
    ] = None,
    no_diagnose: NoDiagnose = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Make an FP16 or INT8 graph and prove it on other images.

    As few nodes as possible stay in FP32. Exits with 3 if no graph passes.
    """
    with command(
        "quantize", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        from deploykit.bundle.folder import find_bundle
        from deploykit.commands.quantize.request import (
            CPU_KINDS,
            SCHEMES,
            SEARCH_SECONDS,
            QuantizeRequest,
        )
        from deploykit.commands.quantize.run import quantize_bundle
        from deploykit.commands.quantize.text import quantization_text, quantization_value
        from deploykit.errors import ParityError
        from deploykit.parity.budget import Budget
        from deploykit.specs.value import choice

        request = QuantizeRequest(
            precision=choice(precision, tuple(SCHEMES), "precision to quantize to"),
            images=images,
            search_seconds=SEARCH_SECONDS if search_seconds is None else search_seconds,
            runtime=runtime,
            cpu=None if cpu is None else choice(cpu, CPU_KINDS, "kind of CPU"),
            diagnose=not no_diagnose,
            expected=expected,
            budget=Budget.parse(max_flips, max_accuracy_drop),
        )
        result = quantize_bundle(
            find_bundle(bundle, artifacts, console.progress), request, console.progress
        )
        console.result(
            lambda: quantization_value(result),
            lambda: quantization_text(result),
            exit_code=0 if result.passed else ParityError.exit_code,
        )
