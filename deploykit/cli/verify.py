"""``deploykit verify``: does the bundle decide as the checkpoint does?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.console import command
from deploykit.cli.options import (
    RUNTIME_NAMES,
    ArchArgs,
    Artifacts,
    BundleName,
    Json,
    PrecisionName,
    Tf32,
    TrustPickle,
    Verbose,
    chosen_bundle,
    parsed_arch_args,
    parsed_precision,
)


def verify(
    images: Annotated[
        Path | None,
        typer.Option(help="Photos to compare on.  [default: those of the export, else golden.npz]"),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="At most so many, even over the classes.")
    ] = None,
    bundle: BundleName = None,
    runtime: Annotated[
        str | None,
        typer.Option(help=f"What executes: {RUNTIME_NAMES}.  [default: all that run here]"),
    ] = None,
    precision: PrecisionName = None,
    engine: Annotated[
        str | None, typer.Option(help="One engine, by its file's name.  [default: the newest]")
    ] = None,
    tf32: Tf32 = False,
    arch: Annotated[
        str | None, typer.Option(help="Compare with this architecture, your own code included.")
    ] = None,
    ckpt: Annotated[
        Path | None, typer.Option(help="Compare with this checkpoint.  [default: the recorded one]")
    ] = None,
    arch_arg: ArchArgs = None,
    trust_pickle: TrustPickle = False,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Compare with the recorded answers; needs no torch."),
    ] = False,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a bundle's graphs with the checkpoint; exit code 3 when they decide differently."""
    with command("verify", as_json=json, verbose=verbose) as console:
        from deploykit.errors import ParityError, UsageError
        from deploykit.jobs.reference import ReferenceRequest
        from deploykit.jobs.verify import VerifyRequest, verify_bundle
        from deploykit.report.terminal import verification_text
        from deploykit.report.values import verification_value

        reference = ReferenceRequest(
            arch=arch,
            checkpoint=ckpt,
            arch_args=parsed_arch_args(arch_arg),
            trust_pickle=trust_pickle,
        )
        if self_test and (reference.named or images is not None or max_images is not None):
            raise UsageError(
                "--self-test compares the bundle with its own recorded answers: "
                "it takes no photos and no checkpoint."
            )
        request = VerifyRequest(
            images=images,
            max_images=max_images,
            runtime=runtime,
            precision=parsed_precision(precision),
            engine=engine,
            tf32=tf32,
            reference=reference,
            self_test=self_test,
        )
        result = verify_bundle(chosen_bundle(bundle, artifacts, console), request, console.progress)
        console.result(
            lambda: verification_value(result),
            lambda: verification_text(result),
            exit_code=0 if result.passed else ParityError.exit_code,
        )
