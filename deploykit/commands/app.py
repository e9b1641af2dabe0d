"""The program: its commands, and how whatever happens becomes an exit code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from io import TextIOWrapper

import typer

from deploykit import __version__
from deploykit.commands.archs import cli as archs
from deploykit.commands.bench import cli as bench
from deploykit.commands.build import cli as build_trt
from deploykit.commands.demo import cli as demo
from deploykit.commands.doctor import cli as doctor
from deploykit.commands.export import cli as export
from deploykit.commands.identify import cli as identify
from deploykit.commands.inspect import cli as inspect
from deploykit.commands.predict import cli as predict
from deploykit.commands.quantize import cli as quantize
from deploykit.commands.train import cli as train
from deploykit.commands.verify import cli as verify
from deploykit.console.command import write_error

app = typer.Typer(
    name="deploykit",
    help="From a trained PyTorch image classifier to a model that runs fast and is proven to "
    "decide the same.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("export")(export.export)
app.command("verify")(verify.verify)
app.command("build-trt")(build_trt.build_trt)
app.command("quantize")(quantize.quantize)
app.command("predict")(predict.predict)
app.command("bench")(bench.bench)
app.command("train")(train.train)
app.command("archs")(archs.archs)
app.command("identify")(identify.identify)
app.command("inspect")(inspect.inspect)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"deploykit {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Show the version and exit."
    ),
) -> None:
    del version


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Args:
        arguments: The command line without the program's name.

    Returns:
        The exit code: 0 done; 1 a bug of deploykit's; 2 wrong usage; 3 parity failed or unproven;
        4 bad input; 5 a dependency or device is missing; 6 done, but with unreadable images and
        ``--strict``; 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        # A console that cannot show a file's name must not end the run.
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    command = typer.main.get_command(app)
    try:
        code = command.main(
            list(arguments) or ["--help"], prog_name="deploykit", standalone_mode=False
        )
    except typer.TyperException as exc:
        name = next((word for word in arguments if not word.startswith("-")), "")
        as_json = "--json" in arguments
        hint = f"deploykit {name} --help".replace("  ", " ")
        write_error(name, exc.exit_code, exc.format_message(), f"See: {hint}", as_json=as_json)
        return exc.exit_code
    return code if isinstance(code, int) else 0
