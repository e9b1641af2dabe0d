"""``deploykit serve``: a bundle behind HTTP."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import command
from deploykit.console.options import (
    WHAT_RUNS,
    Artifacts,
    AutoRuntime,
    BundleName,
    Json,
    PrecisionName,
    Tf32,
    Verbose,
    named_path,
    parsed_bytes,
    parsed_precision,
    whole_number,
)

LIMITS = "Limits"
ACCESS = "Access options"


def serve(
    bundle: BundleName = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", rich_help_panel=ACCESS, help="The address to bind to.")
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            metavar="N", rich_help_panel=ACCESS, help="The port; 0 takes one that is free."
        ),
    ] = 8000,
    api_key_file: Annotated[
        Path | None,
        typer.Option(
            parser=named_path,
            metavar="FILE",
            rich_help_panel=ACCESS,
            help="API keys, one a line: only who has one may ask.",
        ),
    ] = None,
    no_api_key: Annotated[
        bool,
        typer.Option(
            "--no-api-key",
            rich_help_panel=ACCESS,
            help="Let everybody ask who reaches an address that is not this machine's alone.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Reload the bundle when it changes, as SIGHUP does."),
    ] = False,
    workers: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Processes.  [default: 1]",
        ),
    ] = None,
    top_k: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            help="Classes that a row ranks.  [default: at most 5]",
        ),
    ] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            rich_help_panel=WHAT_RUNS,
            help="Images in a batch at most.  [default: 2 on the CPU, 8 on a GPU]",
        ),
    ] = None,
    max_delay_ms: Annotated[
        float,
        typer.Option(
            metavar="MS",
            rich_help_panel=WHAT_RUNS,
            help="How long an image waits for others to fill its batch.",
        ),
    ] = 2.0,
    runtime: AutoRuntime = "auto",
    precision: PrecisionName = None,
    tf32: Tf32 = False,
    threads: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            rich_help_panel=WHAT_RUNS,
            help="CPU threads.  [default: one for each core, shared among workers]",
        ),
    ] = None,
    max_queue: Annotated[
        int | None,
        typer.Option(
            parser=whole_number,
            metavar="N",
            rich_help_panel=LIMITS,
            help="Images let in and not answered yet; more are told to come back.  [default: 256]",
        ),
    ] = None,
    max_body: Annotated[
        str,
        typer.Option(metavar="SIZE", rich_help_panel=LIMITS, help="The largest body of a request."),
    ] = "32MiB",
    timeout: Annotated[
        float,
        typer.Option(metavar="SECONDS", rich_help_panel=LIMITS, help="Time for a request, in all."),
    ] = 30.0,
    artifacts: Artifacts = None,
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Serve a bundle over HTTP: predict images, KServe v2, metrics.

    What answers has given the recorded answers to the bundle's golden images first. SIGTERM ends
    the server once every request that was let in is answered; SIGHUP opens the bundle again.
    """
    with command(
        "serve", as_json=json, verbose=verbose, bundle=bundle, artifacts=artifacts
    ) as console:
        from deploykit.commands.serve import run
        from deploykit.commands.serve.admission import Limits
        from deploykit.commands.serve.process import ServeRequest
        from deploykit.commands.serve.served import Chosen
        from deploykit.commands.serve.text import started_text, summary_text, summary_value

        request = ServeRequest(
            chosen=Chosen(
                bundle=bundle,
                artifacts=artifacts,
                runtime=runtime,
                precision=parsed_precision(precision),
                tf32=tf32,
                threads=threads,
                top_k=top_k,
                max_batch=max_batch,
                max_delay_ms=max_delay_ms,
            ),
            limits=Limits(max_queue or Limits.queue, parsed_bytes(max_body) or 0, timeout),
            host=host,
            port=port,
            workers=workers or 1,
            watch=watch,
            api_key_file=api_key_file,
            no_api_key=no_api_key,
        )
        summary = run.serve(request, console.progress, lambda url: console.note(started_text(url)))
        console.result(lambda: summary_value(summary), lambda: summary_text(summary))
