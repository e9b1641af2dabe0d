"""Options that several commands share."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.console.command import Console
    from deploykit.specs.model import Precision

_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", help="Show where an error comes from.")]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        help="The home of bundles.  [default: artifacts]",
        envvar="DEPLOYKIT_ARTIFACTS",
        show_default=False,
        show_envvar=False,
    ),
]
BundleName = Annotated[
    str | None,
    typer.Option("--bundle", help="A bundle's name or folder.  [default: the newest]"),
]
ArchArgs = Annotated[
    list[str] | None,
    typer.Option("--arch-arg", metavar="KEY=VALUE", help="An argument of the architecture."),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Let the checkpoint run the code in it; only for files you made yourself.",
    ),
]
RUNTIME_NAMES = "onnxruntime-cpu, onnxruntime-cuda, openvino, tensorrt, tensorrt_rtx, rehearsal"
PrecisionName = Annotated[
    str | None, typer.Option("--precision", help="Of the computation: fp32, fp16, bf16 or int8.")
]
Tf32 = Annotated[
    bool,
    typer.Option("--tf32", help="Let onnxruntime-cuda compute FP32 in TensorFloat-32: faster."),
]


def artifacts_folder(artifacts: Path | None) -> Path:
    """The home of bundles that an option or the environment names, or the default."""
    from deploykit.bundle.folder import default_artifacts

    return artifacts or default_artifacts()


def chosen_bundle(name: str | None, artifacts: Path | None, console: Console) -> Bundle:
    """The bundle that is meant, said aloud when nobody named it."""
    from deploykit.bundle.folder import find_bundle

    bundle, note = find_bundle(name, artifacts_folder(artifacts))
    if note:
        console.note(note)
    return bundle


def parsed_arch_args(items: list[str] | None) -> dict[str, object] | None:
    """``--arch-arg`` as keyword arguments; None when it was not given."""
    if not items:
        return None
    from deploykit.models.registry import parse_arch_args

    return parse_arch_args(items)


def named_path(text: str) -> Path:
    """A path that must be named: of an unset variable, ``""``, the current folder is not meant."""
    if not text:
        raise typer.BadParameter("the path is empty; the current folder is '.'.")
    return Path(text)


def parsed_bytes(text: str | None) -> int | None:
    """``2GiB`` as bytes; None when it was not given."""
    if text is None:
        return None
    from deploykit.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB)", text.strip(), re.IGNORECASE)
    value = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if value < 1:
        raise UsageError(f"{text!r} is no amount of memory.", hint="Write it as 512MiB or 2GiB.")
    return value


def parsed_precision(name: str | None) -> Precision | None:
    """``--precision`` as a precision; None when it was not given.

    Raises:
        UsageError: There is no such precision.
    """
    from deploykit.specs.model import PRECISIONS
    from deploykit.specs.value import choice

    return None if name is None else choice(name, PRECISIONS, "precision")
