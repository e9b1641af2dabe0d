"""Options that several commands share."""

from __future__ import annotations

import glob
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploykit.console.help import GENERAL
from deploykit.system.gpu import EXPERIMENTAL

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from deploykit.specs.model import Precision

_UNITS = {"kib": 2**10, "mib": 2**20, "gib": 2**30}

RUNTIME_NAMES = "onnxruntime-cpu, onnxruntime-cuda, openvino, tensorrt, tensorrt_rtx, rehearsal"
GPU_RUNTIMES = f"CUDA and TensorRT are {EXPERIMENTAL}"
#: Groups of options that several commands have.
WHAT_RUNS = "Runtime options"
REFERENCE = "Reference options"
PREPROCESSING = "Preprocessing options"
BUDGET = "Budget options"


def _starting_with(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """What a shell completes an option's value from."""

    def matching(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return matching


def _bundle_names(incomplete: str) -> list[str]:
    """The bundles in the folder that deploykit looks in by default."""
    from deploykit.bundle.folder import default_artifacts
    from deploykit.bundle.manifest import MANIFEST_NAME

    home = default_artifacts()
    manifests = home.glob(f"{glob.escape(incomplete)}*/{MANIFEST_NAME}")
    return sorted(manifest.parent.name for manifest in manifests)


Json = Annotated[
    bool,
    typer.Option("--json", rich_help_panel=GENERAL, help="Print one JSON object on stdout."),
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", rich_help_panel=GENERAL, help="Show where an error comes from."
    ),
]
Artifacts = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        rich_help_panel=GENERAL,
        help="The folder of all bundles.  [default: artifacts, or $DEPLOYKIT_ARTIFACTS]",
        envvar="DEPLOYKIT_ARTIFACTS",
        show_default=False,
        show_envvar=False,
    ),
]
BundleName = Annotated[
    str | None,
    typer.Option(
        "--bundle",
        metavar="NAME|DIR",
        help="The bundle, by name or folder.  [default: the newest]",
        autocompletion=_bundle_names,
    ),
]
ArchArgs = Annotated[
    list[str] | None,
    typer.Option(
        "--arch-arg", metavar="KEY=VALUE", help="An argument of the architecture; repeatable."
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle",
        help="Run the code inside the checkpoint; only for files you made yourself.",
    ),
]
Runtime = Annotated[
    str | None,
    typer.Option(
        "--runtime",
        metavar="NAME",
        rich_help_panel=WHAT_RUNS,
        help=f"The runtime: {RUNTIME_NAMES}; {GPU_RUNTIMES}.  [default: all that run here]",
        autocompletion=_starting_with(RUNTIME_NAMES.split(", ")),
    ),
]
AutoRuntime = Annotated[
    str,
    typer.Option(
        "--runtime",
        metavar="NAME",
        rich_help_panel=WHAT_RUNS,
        help=f"The runtime: {RUNTIME_NAMES}, or auto for the fastest proven; {GPU_RUNTIMES}.",
        autocompletion=_starting_with(["auto", *RUNTIME_NAMES.split(", ")]),
    ),
]
PrecisionName = Annotated[
    str | None,
    typer.Option(
        "--precision",
        metavar="NAME",
        rich_help_panel=WHAT_RUNS,
        help="The precision: fp32, fp16, bf16 or int8.  [default: any]",
        autocompletion=_starting_with(("fp32", "fp16", "bf16", "int8")),
    ),
]
Tf32 = Annotated[
    bool,
    typer.Option(
        "--tf32",
        rich_help_panel=WHAT_RUNS,
        help="Compute FP32 in TensorFloat-32 on onnxruntime-cuda: faster, less exact.",
    ),
]
NoDiagnose = Annotated[
    bool,
    typer.Option(
        "--no-diagnose", help="Skip the search for the wrong node if the comparison fails."
    ),
]
SearchSeconds = Annotated[
    float | None,
    typer.Option(
        "--search-seconds",
        min=0,
        metavar="SECONDS",
        help="Time to search for the nodes that must stay in FP32, for each graph.  [default: 300]",
    ),
]

MaxFlips = Annotated[
    str | None,
    typer.Option(
        "--max-flips",
        metavar="RATE",
        rich_help_panel=BUDGET,
        help="Below FP32, allow so many changed decisions: 1% or 0.01.  [default: what the "
        "precision allows]",
    ),
]
MaxAccuracyDrop = Annotated[
    str | None,
    typer.Option(
        "--max-accuracy-drop",
        metavar="POINTS",
        rich_help_panel=BUDGET,
        help="Below FP32, allow the accuracy on labelled images to fall by so many points.",
    ),
]


def artifacts_folder(artifacts: Path | None) -> Path:
    """The folder of all bundles that an option or the environment names, or the default."""
    from deploykit.bundle.folder import default_artifacts

    return artifacts or default_artifacts()


def parsed_arch_args(items: list[str] | None) -> dict[str, object] | None:
    """``--arch-arg`` as keyword arguments; None when it was not given."""
    if not items:
        return None
    from deploykit.models.registry import parse_arch_args

    return parse_arch_args(items)


def named_path(text: str) -> Path:
    """A path that is not empty: ``""``, an unset variable, must not mean the current folder."""
    if not text:
        raise typer.BadParameter("the path is empty; the current folder is '.'.")
    return Path(text)


Expected = Annotated[
    Path | None,
    typer.Option(
        "--expected",
        parser=named_path,
        metavar="FILE",
        help="A CSV of the images' classes: path, then names or 0/1 columns.  [default: what "
        "their folders tell]",
    ),
]


def only_one(values: Sequence[Path] | None, option: str) -> Path | None:
    """The one value of an option that writes one file: of two, one would be lost.

    Raises:
        UsageError: There are several.
    """
    if values and len(values) > 1:
        from deploykit.errors import UsageError

        raise UsageError(
            f"{option} is given {len(values)} times: {', '.join(map(str, values))}.",
            hint="One run writes one such file: leave the others out.",
        )
    return values[0] if values else None


def whole_number(text: str) -> int:
    """A number without a fraction, at least 1."""
    if not re.fullmatch("[0-9]{1,9}", text) or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is not a whole number of at least 1.")
    return int(text)


def parsed_bytes(text: str | None) -> int | None:
    """``2GiB`` as bytes; None when it was not given."""
    if text is None:
        return None
    from deploykit.errors import UsageError

    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(KiB|MiB|GiB)", text.strip(), re.IGNORECASE)
    value = int(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if value < 1:
        raise UsageError(
            f"{text!r} is not an amount of memory.", hint="Write it as 512MiB or 2GiB."
        )
    return value


def parsed_precision(name: str | None) -> Precision | None:
    """``--precision`` as a precision; None when it was not given.

    Raises:
        UsageError: There is no such precision.
    """
    from deploykit.specs.model import PRECISIONS
    from deploykit.specs.value import choice

    return None if name is None else choice(name, PRECISIONS, "precision")
