"""``deploykit predict``: one row for each image file."""

from __future__ import annotations

import contextlib
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    RUNTIME_NAMES,
    WHAT_RUNS,
    Artifacts,
    BundleName,
    Json,
    PrecisionName,
    Tf32,
    Verbose,
    named_path,
    only_one,
    parsed_precision,
    whole_number,
)
from deploykit.console.streams import reserved_stdout, write_while_read
from deploykit.errors import UnreadableImagesError, UsageError
from deploykit.system.files import STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.commands.predict.outputs import Outputs
    from deploykit.commands.predict.run import TopK
    from deploykit.console.command import Console

_DEFAULT_OUTPUT = Path("predictions.csv")


def _top_k(text: str) -> TopK:
    return "all" if text == "all" else whole_number(text)


def predict(
    source: Annotated[
        Path,
        typer.Argument(
            parser=named_path,
            metavar="SOURCE",
            help="A folder of images, a .txt file that lists them, or one image file.",
        ),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="The table: .csv, .jsonl or .parquet, or - for JSON lines on stdout; "
            f"repeatable.  [default: {_DEFAULT_OUTPUT}; of one image none]",
        ),
    ] = None,
    html: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="Write an HTML page with the images and their classes."),
    ] = None,
    embeddings: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Write what the network's last layer takes of each image, too: .npy or .parquet; "
            "of a bundle exported with --embeddings.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace outputs that another command wrote."),
    ] = False,
    top_k: Annotated[
        Any,
        typer.Option(
            parser=_top_k,
            metavar="K|all",
            help="The number of classes in a row.  [default: at most 5]",
        ),
    ] = None,
    expected: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            help="A CSV of what is right: a path a row, then names, or columns of 0 and 1.",
        ),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue this command's interrupted run.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Exit with 6 if an image cannot be read.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Show no progress, notes or summary.")
    ] = False,
    bundle: BundleName = None,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            rich_help_panel=WHAT_RUNS,
            help=f"The runtime: {RUNTIME_NAMES}, or auto for the fastest proven.",
        ),
    ] = "auto",
    precision: PrecisionName = None,
    tf32: Tf32 = False,
    batch_size: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            rich_help_panel=WHAT_RUNS,
            help="Images in a batch.  [default: 2 on the CPU, 8 on a GPU]",
        ),
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            rich_help_panel=WHAT_RUNS,
            help="CPU threads.  [default: one for each core]",
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Predict images: one row for each file.

    A file that cannot be read gets a row that says why. Rows are kept in <output>.journal until the
    table is whole, so an interrupted run loses none. The same command replaces its own table; one
    of another model, source or settings stays, unless --overwrite. One image's answer is printed.
    """
    no_table = not (output or html or embeddings or resume) and _is_one_image(source)
    paths = [] if no_table else output or [_DEFAULT_OUTPUT]
    with (
        _stdout_for_rows(wanted=STDOUT in paths and not json) as emit,
        command(
            "predict",
            as_json=json,
            verbose=verbose,
            quiet=quiet,
            bundle=bundle,
            artifacts=artifacts,
        ) as console,
    ):
        from deploykit.bundle.folder import find_bundle
        from deploykit.commands.predict.outputs import Outputs, write_run
        from deploykit.commands.predict.run import PredictionRun, PredictRequest
        from deploykit.commands.predict.text import prediction_text, prediction_value
        from deploykit.proof.text import status_of_run

        if json and STDOUT in paths:
            raise UsageError(
                "--json and --output - both want stdout.", hint="Name a file as --output."
            )

        progress = console.progress
        known_precision = parsed_precision(precision)
        page, vectors = only_one(html, "--html"), only_one(embeddings, "--embeddings")
        with Outputs(
            paths,
            source=source,
            page=page,
            expected=expected,
            embeddings=vectors,
            emit=emit,
            resume=resume,
            overwrite=overwrite,
        ) as outputs:
            request = PredictRequest(
                source=source,
                top_k=top_k,
                runtime=runtime,
                precision=known_precision,
                tf32=tf32,
                batch_size=batch_size,
                threads=threads,
                expected=expected,
                done=outputs.done,
                embeddings=vectors is not None,
            )
            chosen = find_bundle(bundle, artifacts, progress)
            with PredictionRun(chosen, request, progress) as run:
                spec = run.spec
                console.note(f"{spec.graph} in {spec.precision} on {spec.runtime}, {spec.device}")
                outputs.begin(run)
                _note_resumption(outputs, console, resume=resume)
                with _telling_what_is_kept(outputs, console):
                    nothing_predicted = write_run(run, outputs, progress)
                    if page is not None and outputs.journal is not None:
                        from deploykit.commands.predict.page import write_prediction_page

                        rows, status = outputs.journal.rows(), status_of_run(chosen, spec)
                        write_prediction_page(run, status, rows, page, progress)
                outputs.finish()
        if nothing_predicted:
            raise nothing_predicted
        failed, status = run.tally.failures.total(), status_of_run(chosen, spec)
        written = [*outputs.tables, *filter(None, [page, vectors])]
        record = chosen.manifest.embeddings if vectors else None
        console.result(
            lambda: prediction_value(run, status, written, record),
            lambda: "" if quiet else prediction_text(run, status, written, record),
            exit_code=UnreadableImagesError.exit_code if strict and failed else 0,
        )


def _is_one_image(source: Path) -> bool:
    from deploykit.images.scan import LIST_EXTENSION

    with contextlib.suppress(OSError):  # of which the run has more to say
        return source.is_file() and source.suffix.lower() != LIST_EXTENSION
    return False


@contextlib.contextmanager
def _stdout_for_rows(*, wanted: bool) -> Iterator[Callable[[str], bool] | None]:
    """Keep stdout for rows alone; what else the command has to say goes to stderr then."""
    if not wanted:
        yield None
        return
    with reserved_stdout(whole_process=True) as stdout:
        yield partial(write_while_read, stdout)


def _note_resumption(outputs: Outputs, console: Console, *, resume: bool) -> None:
    if outputs.journal is None or not resume:
        return
    if outputs.journal.damaged:
        console.warn(
            f"{outputs.journal.damaged} lines of {outputs.journal.path} are damaged: "
            "their files are predicted again"
        )
    if outputs.done:
        console.note(f"{len(outputs.done)} rows are in {outputs.journal.path}: resuming")
    elif not outputs.journal.damaged:
        console.note(f"{outputs.journal.path} has no rows of an earlier run: starting afresh")


@contextlib.contextmanager
def _telling_what_is_kept(outputs: Outputs, console: Console) -> Iterator[None]:
    """When a run does not come to its end, say how it can."""
    try:
        yield
    except BaseException:
        if outputs.journal is not None and outputs.journal.count:
            console.warn(
                f"{outputs.journal.count} rows are kept in {outputs.journal.path}: "
                "the same command with --resume goes on"
            )
        raise
