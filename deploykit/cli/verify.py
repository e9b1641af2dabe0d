"""``deploykit verify``: does the bundle decide as the checkpoint does?"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    named_path,
    parsed_arch_args,
    parsed_precision,
)
from deploykit.cli.verify_walks import Walks
from deploykit.errors import ParityError, UsageError
from deploykit.report.destinations import (
    check_all_different,
    check_destination,
    check_page_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from deploykit.bundle import Bundle
    from deploykit.cli.console import Console
    from deploykit.jobs.verification import Verification
    from deploykit.jobs.verify import VerifyRequest
    from deploykit.report.blame import Blame


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
        typer.Option("--stages", help="Walk from the photo to the runtime, one change at a time."),
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
            min=0.0,
            max=1.0,
            help="With --stages, what training had, 0 to 1: far below it, the usual mistakes are "
            "tried.",
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
        from deploykit.jobs.reference import ReferenceRequest
        from deploykit.jobs.verify import VerifyRequest

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
        _verify(request, walks, _Files(html, junit), console, bundle, artifacts)


def _verify(
    request: VerifyRequest,
    walks: Walks,
    files: _Files,
    console: Console,
    bundle: str | None,
    artifacts: Path | None,
) -> None:
    """Refuse what makes no sense, compare, walk, write and show."""
    from deploykit.jobs.export_again import export_command
    from deploykit.jobs.verify import verify_bundle

    walks.check(request)
    request.check()
    files.check()
    chosen = chosen_bundle(bundle, artifacts, console)
    plan = walks.prepare(chosen, request, console.progress)
    with ExitStack() as stack:
        try:
            reference = walks.open_reference(chosen, request, stack, console.progress)
            result = verify_bundle(chosen, request, console.progress, reference=reference)
        except UsageError:
            raise
        except BaseException:
            files.forget()  # or an earlier run's would be taken for this one's
            raise
        blame = walks.walk(chosen, request, result, plan, reference, console.progress)
    mend = export_command(chosen, blame.stages.findings) if blame.stages else None
    files.write(chosen, result, blame, mend, request.images)
    _show(console, result, blame, mend, files)


def _show(
    console: Console, result: Verification, blame: Blame, mend: str | None, files: _Files
) -> None:
    """Show the verdicts and the walks; what fails in either exits with 3, or as a broken walk."""
    from deploykit.report.blame import blame_value
    from deploykit.report.terminal import verdict_text
    from deploykit.report.values import verification_value

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
    from deploykit.report.blame import Blame, blame_text
    from deploykit.report.claims import limit_of_stages
    from deploykit.report.terminal import comparison_text, verification_text

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


@dataclass(frozen=True)
class _Files:
    """What is written beside the result.

    Attributes:
        html: The certificate; None for none.
        junit: JUnit XML; None for none.
    """

    html: Path | None
    junit: Path | None

    @property
    def paths(self) -> list[Path]:
        """The files that are wanted."""
        return [path for path in (self.html, self.junit) if path is not None]

    def check(self) -> None:
        """Refuse early what could not be written in the end."""
        if self.html is not None:
            check_page_path(self.html)
        if self.junit is not None:
            check_destination(self.junit, "report", (".xml",))
        check_all_different({"output": self.paths})

    def forget(self) -> None:
        """Remove what an earlier run has written under these names."""
        for path in self.paths:
            path.unlink(missing_ok=True)

    def write(
        self,
        bundle: Bundle,
        result: Verification,
        blame: Blame,
        mend: str | None,
        images: Path | None,
    ) -> None:
        """Write what is wanted, whatever the verdicts are."""
        layers = blame.layers or ()
        if self.html is not None:
            from deploykit.report.html.certificate import write_certificate

            # Of a file that lists photos, their names are relative to its folder.
            folder = images.parent if images is not None and images.is_file() else images
            write_certificate(
                self.html,
                bundle,
                result,
                stages=blame.stages,
                layers=layers,
                broken_off=blame.broken_off,
                mend=mend,
                photos_folder=folder,
            )
        if self.junit is not None:
            from deploykit.report.junit import write_junit

            write_junit(
                self.junit,
                bundle,
                result,
                stages=blame.stages,
                layers=layers,
                broken_off=blame.broken_off,
            )
