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
from deploykit.system.shell import command_line

# The quickest of what was tried that gets at least 95 % of the test crops right on every seed.
_TRAINING = (
    *("--arch", "resnet_cifar96", "--epochs", "6"),
    *("--batch-size", "8", "--learning-rate", "2e-4"),
)
# How a process ends that Ctrl-C interrupted: by the signal, or with Windows' STATUS_CONTROL_C_EXIT.
_INTERRUPTIONS = (INTERRUPTED, -signal.SIGINT, 0xC000013A)
_LARGEST_EXIT_CODE = 255

_FAREWELL = """
That was the whole flow, in {seconds:.0f} s. The rows are in {table}, the bundle is in {artifacts}.
With a checkpoint of yours:

$ deploykit export --arch dpn92 --ckpt best_model.pth --classes ./bird_photos
$ deploykit predict ./bird_photos"""


def demo(
    output: Annotated[
        Path, typer.Option(help="The folder for the photos, the checkpoint and the bundle.")
    ] = Path("demo"),
    json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train, export, verify and predict on photos that scikit-image ships, in under two minutes.

    Shows each command as you would type it for photos of your own.
    """
    with command("demo", as_json=json, verbose=verbose) as console:
        from deploykit.commands.demo.photos import claim_folder, make_demo_photos
        from deploykit.system.deps import need

        started = time.perf_counter()
        need("skimage")  # before anything is written
        claim_folder(output)
        console.note(f"making {output / 'photos'}: crops of the photographs of scikit-image")
        photos = make_demo_photos(output / "photos")
        artifacts, table = output / "artifacts", output / "predictions.csv"
        steps = _steps(photos.train, photos.test, output, artifacts, table)
        for step in steps:
            console.note("\n$ " + _typed(step))
            # Each in a process of its own, as it would be typed; stdout is ours alone under --json.
            done = subprocess.run(  # noqa: S603 - our own program, the arguments are above
                [sys.executable, "-m", "deploykit", *step, *(["-v"] if verbose else [])],
                stdout=sys.stderr if json else None,
                check=False,
            )
            if done.returncode:
                raise _failed(step, done.returncode)
        seconds = time.perf_counter() - started
        console.result(
            lambda: {
                "commands": [_typed(step) for step in steps],
                "folder": str(output),
                "seconds": round(seconds, 1),
            },
            lambda: _FAREWELL.format(seconds=seconds, table=table, artifacts=artifacts),
        )


def _failed(step: tuple[str, ...], code: int) -> DeploykitError:
    """The error of a step's process, which ends the demo as the step ended."""
    line = _typed(step)
    if code in _INTERRUPTIONS:
        error = DeploykitError(f"Interrupted in the step: {line}")
        error.exit_code = INTERRUPTED
    else:
        error = DeploykitError(
            f"A step of the demo failed with exit code {code}: {line}",
            hint="Its own message is above, on stderr.",
        )
        # A process that a signal killed has a negative code, a crashed one on Windows a huge one.
        error.exit_code = code if 0 < code <= _LARGEST_EXIT_CODE else DeploykitError.exit_code
    return error


def _typed(step: tuple[str, ...]) -> str:
    return command_line(("deploykit", *step))


def _steps(
    train: Path, test: Path, output: Path, artifacts: Path, table: Path
) -> list[tuple[str, ...]]:
    home = ("--artifacts", str(artifacts))
    checkpoint = output / "best_model.pth"
    return [
        ("train", str(train), *_TRAINING, "--output", str(output), "--overwrite"),
        (
            *("export", "--arch", "resnet_cifar96", "--ckpt", str(checkpoint)),
            *("--classes", str(train), "--overwrite", *home),
        ),
        ("verify", "--images", str(test), *home),
        ("predict", str(test), "--output", str(table), *home),
    ]
