"""``deploykit verify``: does the bundle decide as the checkpoint does?"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.commands.verify.files import Files
from deploykit.commands.verify.walks import Walks
from deploykit.console.command import command
from deploykit.console.options import (
    REFERENCE,
    WHAT_RUNS,
    ArchArgs,
    Artifacts,
    BundleName,
    Json,
    PrecisionName,
    Runtime,
    Tf32,
    TrustPickle,
    Verbose,
    chosen_bundle,
    named_path,
    parsed_arch_args,
    parsed_precision,
)
from deploykit.errors import ParityError, UsageError
from deploykit.system.progress import Progress, without_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.bundle.folder import Bundle
    from deploykit.commands.diagnose.text import Blame
    from deploykit.commands.verify.result import Verification
    from deploykit.commands.verify.run import VerifyRequest
    from deploykit.console.command import Console

_DIAGNOSIS = "Diagnosis options"
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
    budget: Annotated[
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

    Exits with 3 if one decides differently, or if the images show too little.
    """
    with command("verify", as_json=json, verbose=verbose) as console:
        from deploykit.commands.verify.run import VerifyRequest
        from deploykit.proof.reference import ReferenceRequest

        named = ReferenceRequest(arch, ckpt, parsed_arch_args(arch_arg), trust_pickle)
        request = VerifyRequest(
            images=images,
            max_images=max_images,
            budget=budget,
            runtime=runtime,
            precision=parsed_precision(precision),
            engine=engine,
            tf32=tf32,
            reference=named,
            self_test=self_test,
        )
        walks = Walks(stages, transform, trained_accuracy, layers)
        _verify(request, walks, Files(html, junit), console, bundle, artifacts)


def _verify(
    request: VerifyRequest,
    walks: Walks,
    files: Files,
    console: Console,
    bundle: str | None,
    artifacts: Path | None,
) -> None:
    """Refuse what makes no sense, compare, walk, write and show."""
    from deploykit.commands.export.again import export_command

    walks.check(request)
    request.check()
    files.check()
    try:
        chosen = chosen_bundle(bundle, artifacts, console)
        result, blame = _compared(chosen, request, walks, console.progress)
        mend = None
        if blame.stages and result.is_recorded:  # another checkpoint's faults are not the bundle's
            mend = export_command(chosen, blame.stages.findings)
        files.write(chosen, result, blame, mend, request.images)
    except UsageError:
        raise
    except BaseException:
        files.forget()  # or an earlier run's would be taken for this one's
        raise
    _show(console, result, blame, mend, files)


def _compared(
    bundle: Bundle, request: VerifyRequest, walks: Walks, progress: Progress
) -> tuple[Verification, Blame]:
    """Compare, then walk, with one reference."""
    from deploykit.commands.verify.run import verify_bundle

    progress = without_repeats(progress)  # the comparison and each walk choose the same photos
    plan = walks.prepare(bundle, request, progress)
    with ExitStack() as stack:
        reference = walks.open_reference(bundle, request, stack, progress)
        result = verify_bundle(bundle, request, progress, reference=reference)
        return result, walks.walk(bundle, request, result, plan, reference, progress)


def _show(
    console: Console, result: Verification, blame: Blame, mend: str | None, files: Files
) -> None:
    """Show the verdicts and the walks; what fails in either exits with 3, or as a broken walk."""
    from deploykit.commands.diagnose.text import blame_value
    from deploykit.commands.verify.text import verdict_text, verification_value

    passed = result.passed and blame.passed
    failed = next((walk.exit_code for walk in blame.broken_off), ParityError.exit_code)
    console.result(
        lambda: {
            **verification_value(result, blame.stages),
            **blame_value(blame),
            "mend": mend,
            "passed": passed,
            "outputs": [str(path) for path in files.paths],
        },
        lambda: "\n".join(
            (
                "\n\n".join(_findings(result, blame, mend)),
                *(f"written    {path}" for path in files.paths),
                verdict_text(passed),
            )
        ),
        exit_code=0 if passed else failed,
    )


def _findings(result: Verification, blame: Blame, mend: str | None) -> Iterator[str]:
    """What the comparison found, and each walk; where there are walks, each with its verdict."""
    from deploykit.commands.diagnose.text import Blame, blame_text
    from deploykit.commands.verify.claims import limit_of_stages
    from deploykit.commands.verify.text import comparison_text, verification_text

    if blame == Blame():
        yield verification_text(result)
        return
    yield f"{verification_text(result)}\n{comparison_text(result)}"
    yield from blame_text(blame)
    if mend is not None:
        yield f"To mend all that export can:\n{mend}"
    limit = limit_of_stages(result, blame.stages)
    if limit:
        yield limit
