"""``deploykit predict``: one row for each image file."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    GPU_RUNTIMES,
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
from deploykit.system.cloud import as_path
from deploykit.system.files import STDOUT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from deploykit.commands.predict.outputs import Outputs
    from deploykit.commands.predict.run import TopK
    from deploykit.commands.predict.schedulers import Scheduler
    from deploykit.commands.predict.tally import PredictionSummary
    from deploykit.console.command import Console

_DEFAULT_OUTPUT = Path("predictions.csv")
CLUSTER = "A cluster"


def named_place(text: str) -> Path:
    """A path, or a URL, that is not empty."""
    named_path(text)
    return as_path(text)


def _seconds(text: str) -> Fraction:
    from deploykit.images.sources.video import parsed_every

    try:
        return parsed_every(text)
    except UsageError as exc:
        raise typer.BadParameter(f"{exc.message} {exc.hint}") from exc


def _top_k(text: str) -> TopK:
    return "all" if text == "all" else whole_number(text)


def predict(
    source: Annotated[
        Path,
        typer.Argument(
            parser=named_place,
            metavar="SOURCE",
            help="A folder of images, a .txt file that lists them, a .tar, .zip or .parquet file, "
            "a video, one image; or the s3://, gs:// or https:// URL of one.",
        ),
    ],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            parser=named_place,
            metavar="FILE",
            help="The table: .csv, .jsonl or .parquet, or - for JSON lines on stdout; "
            f"repeatable.  [default: {_DEFAULT_OUTPUT}; of one image none]",
        ),
    ] = None,
    html: Annotated[
        list[Path] | None,
        typer.Option(
            parser=named_place,
            metavar="FILE",
            help="Write an HTML page with the images and their classes.",
        ),
    ] = None,
    embeddings: Annotated[
        list[Path] | None,
        typer.Option(
            parser=named_place,
            metavar="FILE",
            help="Write what the network's last layer takes of each image, too: .npy or .parquet; "
            "of a bundle exported with --embeddings.",
        ),
    ] = None,
    overwrite: Annotated[
        bool,
        typer.Option("--overwrite", help="Replace outputs that another command wrote."),
    ] = False,
    every: Annotated[
        Fraction | None,
        typer.Option(
            parser=_seconds,
            metavar="TIME",
            help="Of a video: the time from one frame to the next, 2s or 500ms.  [default: 1s]",
        ),
    ] = None,
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
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Predict one of N parts, as one of N processes; deploykit collect makes the "
            "tables.",
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="ray|ray://HOST:PORT",
            rich_help_panel=CLUSTER,
            help="Predict on a Ray cluster: this machine's, RAY_ADDRESS's or the one named.",
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            rich_help_panel=CLUSTER,
            help="Processes on the cluster.  [default: as many as there is room for]",
        ),
    ] = None,
    gpus_per_worker: Annotated[
        float,
        typer.Option(
            metavar="X",
            rich_help_panel=CLUSTER,
            help="GPUs of each process, or a part of one: 0.5.",
            show_default=False,
        ),
    ] = 0.0,
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
            help=f"The runtime: {RUNTIME_NAMES}, or auto for the fastest proven; {GPU_RUNTIMES}.",
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
            help="CPU threads.  [default: one for each core; with --on ray one a worker]",
        ),
    ] = None,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Predict images: one row for each file.

    A file that cannot be read gets a row that says why. Rows are kept in <output>.run until the
    table is whole, so an interrupted run loses none. The same command replaces its own table; one
    of another model, source or settings stays, unless --overwrite. One image's answer is printed.
    """
    no_table = not (output or html or embeddings or resume or shard or on) and _is_one_image(source)
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
        from deploykit.commands.predict.job import predict_into
        from deploykit.commands.predict.outputs import Outputs
        from deploykit.commands.predict.run import PredictRequest
        from deploykit.commands.predict.tally import ShardSummary
        from deploykit.commands.predict.text import shard_text, shard_value

        if json and STDOUT in paths:
            raise UsageError(
                "--json and --output - both want stdout.", hint="Name a file as --output."
            )

        if shard is not None and strict:
            raise UsageError(
                "--strict judges all rows, and --shard predicts a part of them.",
                hint="Say it to deploykit collect.",
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
            scheduler=_chosen_scheduler(shard, on, workers, gpus_per_worker),
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
                embeddings=vectors is not None,
                every=every,
            )
            chosen = find_bundle(bundle, artifacts, progress, packed=True)
            with _telling_what_is_kept(outputs, console):
                done = predict_into(outputs, chosen, request, progress)
        if isinstance(done, ShardSummary):
            console.result(lambda: shard_value(done), lambda: "" if quiet else shard_text(done))
        else:
            show_summary(console, done, strict=strict, quiet=quiet)


def _chosen_scheduler(
    shard: str | None, on: str | None, workers: int | None, gpus_per_worker: float
) -> Scheduler | None:
    from deploykit.commands.predict.schedulers.choice import chosen_scheduler

    return chosen_scheduler(shard, on, workers, gpus_per_worker)


def show_summary(
    console: Console, summary: PredictionSummary, *, strict: bool, quiet: bool
) -> None:
    """Show a run's summary and end the command."""
    from deploykit.commands.predict.text import prediction_text, prediction_value

    failed = summary.tally.failures.total()
    console.result(
        lambda: prediction_value(summary),
        lambda: "" if quiet else prediction_text(summary),
        exit_code=UnreadableImagesError.exit_code if strict and failed else 0,
    )


def _is_one_image(source: Path) -> bool:
    from deploykit.images.sources.opening import is_one_image

    with contextlib.suppress(OSError):  # of which the run has more to say
        return is_one_image(source)
    return False


@contextlib.contextmanager
def _stdout_for_rows(*, wanted: bool) -> Iterator[Callable[[str], bool] | None]:
    """Keep stdout for rows alone; what else the command has to say goes to stderr then."""
    if not wanted:
        yield None
        return
    with reserved_stdout(whole_process=True) as stdout:
        yield partial(write_while_read, stdout)


@contextlib.contextmanager
def _telling_what_is_kept(outputs: Outputs, console: Console) -> Iterator[None]:
    """When a run does not come to its end, say how it can."""
    try:
        yield
    except BaseException:
        if outputs.has_begun and outputs.ledger is not None and (rows := outputs.ledger.count()):
            way = (
                "the same command" if outputs.scheduler.shared else "the same command with --resume"
            )
            console.warn(f"{rows} rows are kept in {outputs.ledger.folder}: {way} goes on")
        raise
