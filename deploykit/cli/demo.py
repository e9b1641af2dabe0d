"""``deploykit demo``: the whole flow on packaged photos."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from deploykit.cli.console import command
from deploykit.cli.options import Json, Verbose

# The quickest of what was tried that gets at least 95 % of the test crops right on every seed.
_TRAINING = (
    *("--arch", "resnet_cifar96", "--epochs", "6"),
    *("--batch-size", "8", "--learning-rate", "2e-4"),
)

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
    """Train, export, verify and predict on photos that scikit-image ships; one to two minutes.

    Shows each command as you would type it for photos of your own.
    """
    with command("demo", as_json=json, verbose=verbose) as console:
        from deploykit.jobs.demo_photos import make_demo_photos

        started = time.perf_counter()
        console.note(f"making {output / 'photos'}: crops of the photographs of scikit-image")
        photos = make_demo_photos(output / "photos")
        artifacts, table = output / "artifacts", output / "predictions.csv"
        steps = _steps(photos.train, photos.test, output, artifacts, table)
        for step in steps:
            console.note("\n$ deploykit " + shlex.join(step))
            # Each in a process of its own, as it would be typed; stdout is ours alone under --json.
            done = subprocess.run(  # noqa: S603 - our own program, the arguments are above
                [sys.executable, "-m", "deploykit", *step, *(["-v"] if verbose else [])],
                stdout=sys.stderr if json else None,
                check=False,
            )
            if done.returncode:
                raise typer.Exit(done.returncode)
        seconds = time.perf_counter() - started
        console.result(
            lambda: {
                "commands": ["deploykit " + shlex.join(step) for step in steps],
                "folder": str(output),
                "seconds": round(seconds, 1),
            },
            lambda: _FAREWELL.format(seconds=seconds, table=table, artifacts=artifacts),
        )


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
