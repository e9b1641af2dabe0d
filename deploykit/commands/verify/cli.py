"""``deploykit verify``: does the bundle decide as the checkpoint does?"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    REFERENCE,
    WHAT_RUNS,
    ArchArgs,
    Artifacts,
    BundleName,
    Expected,
    Json,
    MaxAccuracyDrop,
    MaxFlips,
    PrecisionName,
    Runtime,
    Tf32,
    TrustPickle,
    Verbose,
    named_path,
    parsed_arch_args,
    parsed_precision,
)
from deploykit.errors import ParityError

if TYPE_CHECKING:
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.console.command import Console

_DIAGNOSIS = "Diagnosis options"
_ELSEWHERE = "What runs elsewhere"
_REPORTS = "Report options"


def verify(
    images: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PATH",
            help="Images to compare on.  [default: those of the export, else golden.npz]",
        ),
    ] = None,
    max_images: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="The most images to compare, spread evenly over the classes."
        ),
    ] = None,
    lowest_margins: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="N",
            help="Compare only the N images with the smallest margins: finds a flip quickly, and "
            "proves nothing.",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test", help="Compare with the recorded golden answers; needs no torch."
        ),
    ] = False,
    expected: Expected = None,
    server: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            rich_help_panel=_ELSEWHERE,
            help="Compare a model server that speaks KServe v2 (deploykit serve, Triton, MLServer) "
            "instead of what runs here: http://HOST:8000/v2/models/NAME.  "
            "[default model: the bundle's name]",
        ),
    ] = None,
    protocol: Annotated[
        str | None,
        typer.Option(
            metavar="http|grpc",
            rich_help_panel=_ELSEWHERE,
            help="What the server speaks there.  [default: http]",
        ),
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=_ELSEWHERE,
            help="Compare another tool's table (CSV, JSON lines, Parquet) of the same images: "
            "how often do the two disagree, and on which?",
        ),
    ] = None,
    max_flips: MaxFlips = None,
    max_accuracy_drop: MaxAccuracyDrop = None,
    bundle: BundleName = None,
    runtime: Runtime = None,
    precision: PrecisionName = None,
    engine: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", rich_help_panel=WHAT_RUNS, help="One engine.  [default: the newest]"
        ),
    ] = None,
    tf32: Tf32 = False,
    arch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            rich_help_panel=REFERENCE,
            help="Compare with this architecture.  [default: the recorded one]",
        ),
    ] = None,
    ckpt: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=REFERENCE,
            help="Compare with this checkpoint.  [default: the recorded one]",
        ),
    ] = None,
    arch_arg: ArchArgs = None,
    trust_pickle: TrustPickle = False,
    stages: Annotated[
        bool,
        typer.Option(
            "--stages",
            rich_help_panel=_DIAGNOSIS,
            help="Find the stage that changes the answers: decode, resize, normalise, export, "
            "graph pass, precision or batch size.",
        ),
    ] = False,
    layers: Annotated[
        bool,
        typer.Option(
            "--layers", rich_help_panel=_DIAGNOSIS, help="Find the node that adds the error."
        ),
    ] = False,
    transform: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.PY:FUNCTION",
            rich_help_panel=_DIAGNOSIS,
            help="With --stages: your training transform, to compare the recorded one with.",
        ),
    ] = None,
    trained_accuracy: Annotated[
        float | None,
        typer.Option(
            metavar="0..1",
            rich_help_panel=_DIAGNOSIS,
            help="With --stages: the test accuracy in training; if it is lower now, the usual "
            "mistakes are tried.",
        ),
    ] = None,
    html: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=_REPORTS,
            help="Write an HTML certificate.",
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=_REPORTS,
            help="Write JUnit XML for a CI system.",
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a bundle's graphs and engines with the checkpoint.

    Exits with 3 if one decides differently, or if the images decide nothing.
    """
    with command(
        "verify", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        from deploykit.commands.verify.request import VerifyRequest
        from deploykit.parity.budget import Budget
        from deploykit.proof.reference import ReferenceRequest
        from deploykit.specs.session import SERVER_PROTOCOLS
        from deploykit.specs.value import choice

        request = VerifyRequest(
            images=images,
            max_images=max_images,
            lowest_margins=lowest_margins,
            budget=Budget.parse(max_flips, max_accuracy_drop),
            runtime=runtime,
            precision=parsed_precision(precision),
            engine=engine,
            tf32=tf32,
            reference=ReferenceRequest(arch, ckpt, parsed_arch_args(arch_arg), trust_pickle),
            self_test=self_test,
            stages=stages,
            transform=transform,
            trained_accuracy=trained_accuracy,
            layers=layers,
            expected=expected,
            server=server,
            protocol=None if protocol is None else choice(protocol, SERVER_PROTOCOLS, "protocol"),
            against=against,
        )
        _verify(request, html, junit, console, bundle, artifacts)


def _verify(
    request: VerifyRequest,
    html: Path | None,
    junit: Path | None,
    console: Console,
    name: str | None,
    artifacts: Path | None,
) -> None:
    """Verify, write the reports, and show the result."""
    from deploykit.bundle.folder import find_bundle
    from deploykit.commands.verify.reports import verify_with_reports
    from deploykit.commands.verify.text import verdict_text, verification_text, verification_value

    open_it = partial(find_bundle, name, artifacts, console.progress, packed=True)
    result = verify_with_reports(
        open_it, request, html=html, junit=junit, progress=console.progress
    )
    outputs = [path for path in (html, junit) if path is not None]
    broken_off = result.diagnosis.broken_off
    failed = broken_off[0].exit_code if broken_off else ParityError.exit_code
    console.result(
        lambda: {**verification_value(result), "outputs": [str(path) for path in outputs]},
        lambda: "\n".join(
            (
                verification_text(result),
                *(f"written    {path}" for path in outputs),
                verdict_text(result),
            )
        ),
        exit_code=0 if result.passed else failed,
    )
