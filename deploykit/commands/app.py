"""The program: its commands, and how whatever happens becomes an exit code."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from typing import Any, NamedTuple

import typer
from typer.core import TyperCommand, TyperGroup

from deploykit import __version__
from deploykit.console.command import explain, not_shown, write_error
from deploykit.console.help import GroupedCommand
from deploykit.console.streams import lead_nowhere, nobody_reads


class _Entry(NamedTuple):
    """What the help says of a command: one sentence and an example."""

    summary: str
    example: str
    folder: str = ""


#: The commands, in the order of the help.
COMMANDS = {
    "export": _Entry(
        "Export a checkpoint to a bundle and prove it.",
        "deploykit export --arch dpn92 --ckpt best_model.pth --classes ./bird_photos",
    ),
    "verify": _Entry(
        "Compare a bundle's graphs and engines with the checkpoint.",
        "deploykit verify --images ./bird_photos --html certificate.html",
    ),
    "quantize": _Entry(
        "Make an FP16 or INT8 graph and prove it on other images.",
        "deploykit quantize --precision int8 --images ./bird_photos",
    ),
    "build-trt": _Entry(
        "Build a TensorRT engine from a proven graph.",
        "deploykit build-trt --precision fp16 --target sm89",
        folder="build",
    ),
    "predict": _Entry(
        "Predict images: one row for each file.",
        "deploykit predict ./bird_photos --output birds.csv --html birds.html",
    ),
    "collect": _Entry(
        "Make the tables of a run in shards.",
        "deploykit collect birds.csv.run",
    ),
    "serve": _Entry(
        "Serve a bundle over HTTP: predict images, KServe v2, metrics.",
        "deploykit serve --bundle dpn92 --port 8000",
    ),
    "bench": _Entry(
        "Measure which proven graph or engine is the fastest here.",
        "deploykit bench --images ./bird_photos --accept",
    ),
    "package": _Entry(
        "Pack a bundle: for Triton, a container, a browser; as a file.",
        "deploykit package --format triton model_repository",
    ),
    "train": _Entry(
        "Train a classifier on a folder of labelled images.",
        "deploykit train ./bird_photos --arch dpn92 --epochs 40",
    ),
    "archs": _Entry("List the architectures that --arch accepts.", "deploykit archs dpn"),
    "identify": _Entry(
        "Find the architectures that a checkpoint fits.", "deploykit identify best_model.pth"
    ),
    "inspect": _Entry(
        "Show what is in a bundle, graph, engine or checkpoint.", "deploykit inspect dpn92"
    ),
    "doctor": _Entry("Check which runtimes work on this machine.", "deploykit doctor"),
    "demo": _Entry(
        "Try every step on photos that scikit-image ships.", "deploykit demo --output demo"
    ),
}
_FIRST_STEPS = """\b
Examples:
  deploykit export --arch dpn92 --ckpt best_model.pth --classes ./bird_photos
  deploykit build-trt
  deploykit predict ./bird_photos"""


class _Commands(TyperGroup):
    """The commands, of which only the one that runs is imported: start-up counts."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.commands = dict.fromkeys(COMMANDS, TyperCommand(None))  # never asked

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Import a command; None where there is none of that name."""
        del ctx
        if cmd_name not in COMMANDS:
            return None
        entry = COMMANDS[cmd_name]
        cli = importlib.import_module(f"deploykit.commands.{entry.folder or cmd_name}.cli")
        alone = typer.Typer(
            add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False
        )
        alone.command(cmd_name, cls=GroupedCommand, epilog=f"\b\nExample:\n  {entry.example}")(
            getattr(cli, cmd_name.replace("-", "_"))
        )
        return typer.main.get_command(alone)

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write each command with its whole sentence."""
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items()])


app = typer.Typer(
    name="deploykit",
    cls=_Commands,
    help="From a trained PyTorch image classifier to a model that runs fast and is proven to "
    "decide the same.",
    epilog=_FIRST_STEPS,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


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
        name, as_json = _called(arguments)
        hint = f"deploykit {name} --help".replace("  ", " ")
        write_error(name, exc.exit_code, exc.format_message(), f"See: {hint}", as_json=as_json)
        return exc.exit_code
    except SystemExit as exc:
        if isinstance(exc.__context__, BrokenPipeError):  # typer takes it for a failure
            return 0
        raise
    except OSError as exc:  # those within a command are explained there
        if exc.filename is not None:  # of a path among the arguments, before the command began
            name, as_json = _called(arguments)
            outcome = explain(exc)
            write_error(name, *outcome, as_json=as_json)
            return outcome[0]
        # Of a help, or of the version: stdout is what failed, so stderr is told.
        lead_nowhere(sys.stdout)
        if nobody_reads(exc):
            return 0
        error = not_shown(exc)
        write_error("", error.exit_code, error.message, error.hint, as_json=False)
        return error.exit_code
    return code if isinstance(code, int) else 0


def _called(arguments: Sequence[str]) -> tuple[str, bool]:
    """Which command is called, and whether its result is wanted as JSON."""
    return next((word for word in arguments if word in COMMANDS), ""), "--json" in arguments
