"""``deploykit demo``: the whole flow on packaged photos."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from deploykit.console.command import INTERRUPTED, command
from deploykit.console.options import Json, Verbose
from deploykit.errors import DeploykitError
from deploykit.system.text import command_line

# The quickest of the trainings tried that get at least 95 % of the test crops right on every seed.
_TRAINING = (
    *("--arch", "resnet_cifar96", "--epochs", "6"),
    *("--batch-size", "8", "--learning-rate", "2e-4"),
)
# Exit codes of a process that Ctrl+C ended: by the signal, or Windows' STATUS_CONTROL_C_EXIT.
_INTERRUPTIONS = (INTERRUPTED, -signal.SIGINT, 0xC000013A)

_FAREWELL = """
That was the whole flow, in {seconds:.0f} s. The rows are in {table}, the bundle is in {artifacts}.
With a checkpoint of yours:

$ deploykit export --arch dpn92 --ckpt best_model.pth --classes ./bird_photos
$ deploykit predict ./bird_photos"""


def demo(
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR", help="The folder for the photos, the checkpoint and the bundle."
        ),
    ] = Path("demo"),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Try every step on photos that scikit-image ships.

    Trains, exports, verifies and predicts, and shows each command as you would type it.
    """
    with command("demo", as_json=json, verbose=verbose) as console:
        from deploykit.commands.demo.images import claim_folder, make_demo_images
        from deploykit.system.deps import need

        started = time.perf_counter()
        need("skimage")  # before anything is written
        claim_folder(output)
        console.note(f"making {output / 'photos'}: crops of the photographs of scikit-image")
        train, test = make_demo_images(output / "photos")
        artifacts, table = output / "artifacts", output / "predictions.csv"
        checkpoint, home = output / "best_model.pth", ("--artifacts", str(artifacts))
        steps = (
            ("train", str(train), *_TRAINING, "--output", str(output), "--overwrite"),
            (
                *("export", "--arch", "resnet_cifar96", "--ckpt", str(checkpoint)),
                *("--classes", str(train), "--overwrite", *home),
            ),
            ("verify", "--images", str(test), *home),
            ("predict", str(test), "--output", str(table), "--overwrite", *home),
        )
        lines = [command_line(("deploykit", *step)) for step in steps]
        for step, line in zip(steps, lines, strict=True):
            console.note(f"\n$ {line}")
            # In a process of its own, as if typed; with --json, stdout is for our object alone.
            done = subprocess.run(  # noqa: S603 - our own program, the arguments are above
                [sys.executable, "-m", "deploykit", *step, *(["-v"] if verbose else [])],
                stdout=sys.stderr if json else None,
                check=False,
            )
            if done.returncode:
                raise _failure(line, done.returncode)
        seconds = time.perf_counter() - started
        console.result(
            lambda: {"commands": lines, "folder": str(output), "seconds": round(seconds, 1)},
            lambda: _FAREWELL.format(seconds=seconds, table=table, artifacts=artifacts),
        )


def _failure(line: str, code: int) -> DeploykitError:
    """The error of a step, with which the demo ends as the step did."""
    if code in _INTERRUPTIONS:
        error = DeploykitError(f"Interrupted in the step: {line}")
        error.exit_code = INTERRUPTED
        return error
    error = DeploykitError(
        f"A step of the demo failed with exit code {code}: {line}",
        hint="Its own message is above, on stderr.",
    )
    # The code of a killed process is negative, that of a crashed one on Windows is huge.
    error.exit_code = code if 0 < code < 256 else DeploykitError.exit_code
    return error
