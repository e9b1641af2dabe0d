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
    named_path,
    parsed_arch_args,
    parsed_precision,
)
from deploykit.errors import ParityError, UsageError
from deploykit.system.progress import Progress, without_repeats

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.bundle.folder import Bundle
    from deploykit.commands.diagnose.text import Diagnosis
    from deploykit.commands.verify.result import Verification
    from deploykit.commands.verify.run import VerifyRequest
    from deploykit.console.command import Console


def verify(
    images: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PATH",
            help="Photos to compare on.  [default: those of the export, else golden.npz]",
        ),
    ] = None,
    max_images: Annotated[
        int | None, typer.Option(min=1, help="At most so many, even over the classes.")
    ] = None,
    budget: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Only the N photos with the lowest margins, the lowest first: a flip shows after "
            "few, but there is no bound and no proof.",
        ),
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
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="PATH",
            help="Compare with this checkpoint.  [default: the recorded one]",
        ),
    ] = None,
    arch_arg: ArchArgs = None,
    trust_pickle: TrustPickle = False,
    self_test: Annotated[
        bool,
        typer.Option("--self-test", help="Compare with the recorded answers; needs no torch."),
    ] = False,
    stages: Annotated[
        bool,
        typer.Option("--stages", help="Find the stage that moves the answer."),
    ] = False,
    transform: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.PY:FUNCTION",
            help="With --stages, your own training transform, to compare the recorded one with.",
        ),
    ] = None,
    trained_accuracy: Annotated[
        float | None,
        typer.Option(
            help="With --stages, the accuracy of the training on its test photos, 0 to 1. "
            "Below it, the usual mistakes are tried.",
        ),
    ] = None,
    layers: Annotated[
        bool, typer.Option("--layers", help="Look for the node that adds the error.")
    ] = False,
    html: Annotated[
        Path | None,
        typer.Option(
            parser=named_path, metavar="PATH", help="Write a page for people: the certificate."
        ),
    ] = None,
    junit: Annotated[
        Path | None,
        typer.Option(
            parser=named_path, metavar="PATH", help="Write JUnit XML, which CI systems read."
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a bundle's graphs with the checkpoint; exit code 3 when they decide differently."""
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
) -> tuple[Verification, Diagnosis]:
    """Compare, then walk, with one reference."""
    from deploykit.commands.verify.run import verify_bundle

    progress = without_repeats(progress)  # the comparison and each walk choose the same photos
    plan = walks.prepare(bundle, request, progress)
    with ExitStack() as stack:
        reference = walks.open_reference(bundle, request, stack, progress)
        result = verify_bundle(bundle, request, progress, reference=reference)
        return result, walks.walk(bundle, request, result, plan, reference, progress)


def _show(
    console: Console, result: Verification, blame: Diagnosis, mend: str | None, files: Files
) -> None:
    """Show the verdicts and the walks; what fails in either exits with 3, or as a broken walk."""
    from deploykit.commands.diagnose.text import diagnosis_value
    from deploykit.commands.verify.text import verdict_text, verification_value

    passed = result.passed and blame.passed
    failed = next((walk.exit_code for walk in blame.broken_off), ParityError.exit_code)
    console.result(
        lambda: {
            **verification_value(result, blame.stages),
            **diagnosis_value(blame),
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


def _findings(result: Verification, blame: Diagnosis, mend: str | None) -> Iterator[str]:
    """What the comparison found, and each walk; where there are walks, each with its verdict."""
    from deploykit.commands.diagnose.text import Diagnosis, diagnosis_text
    from deploykit.commands.verify.claims import limit_of_stages
    from deploykit.commands.verify.text import comparison_text, verification_text

    if blame == Diagnosis():
        yield verification_text(result)
        return
    yield f"{verification_text(result)}\n{comparison_text(result)}"
    yield from diagnosis_text(blame)
    if mend is not None:
        yield f"To mend all that export can:\n{mend}"
    limit = limit_of_stages(result, blame.stages)
    if limit:
        yield limit
