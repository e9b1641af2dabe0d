"""What is asked of ``package``, and what a format tells of what it wrote."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from deploykit.bundle.folder import Bundle
from deploykit.errors import UsageError
from deploykit.specs.model import Precision

PackageFormat: TypeAlias = Literal["triton", "zip", "container", "web"]
PACKAGE_FORMATS: tuple[PackageFormat, ...] = get_args(PackageFormat)

MAX_BATCH = 32
#: Names that every server, client, URL and Dockerfile takes as they are.
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class PackageRequest:
    """What to write, and where.

    Attributes:
        format: What it becomes.
        output: The folder, or the file for ``zip``.
        overwrite: Whether a package that is there may be replaced; nothing else ever is.
        precision: Of the deploy graph; None for FP32. For ``triton``.
        engines: TensorRT engines instead of a graph, by their names. For ``triton``.
        preprocess: Whether the repository takes image files, too. For ``triton``.
        max_batch: The most images that the server puts into one run. For ``triton``.
        onnxruntime_web: A folder with that package, unpacked; None to ask npm. For ``web``.
    """

    format: PackageFormat
    output: Path
    overwrite: bool = False
    precision: Precision | None = None
    engines: tuple[str, ...] = ()
    preprocess: bool = False
    max_batch: int | None = None
    onnxruntime_web: Path | None = None

    def __post_init__(self) -> None:
        given = {
            "--precision": self.precision is not None,
            "--engine": bool(self.engines),
            "--preprocess": self.preprocess,
            "--max-batch": self.max_batch is not None,
        }
        named = [option for option, is_given in given.items() if is_given]
        if named and self.format != "triton":
            raise UsageError(
                f"Nothing is meant by {' and '.join(named)} with --format {self.format}.",
                hint="That is for --format triton: leave it out.",
            )
        if self.onnxruntime_web is not None and self.format != "web":
            raise UsageError(
                f"--onnxruntime-web means nothing to --format {self.format}.",
                hint="It is for --format web: leave it out.",
            )
        if self.max_batch is not None and self.max_batch < 1:
            raise UsageError(f"--max-batch must be at least 1; got {self.max_batch}.")
        if self.engines and self.precision is not None:
            raise UsageError(
                "--engine and --precision exclude each other.",
                hint="An engine has its precision by itself: leave --precision out.",
            )


@dataclass(frozen=True)
class Written:
    """What a format tells of what it wrote.

    Attributes:
        content: What is in it, in few words.
        notes: What its user has to know, a sentence each.
        command: What uses it, for a shell.
    """

    content: str
    notes: tuple[str, ...]
    command: str


def plain_name(bundle: Bundle) -> str:
    """A bundle's name, where it can name a model of a server.

    Raises:
        UsageError: It has other characters than letters, digits, ``_``, ``.`` and ``-``.
    """
    if not _PLAIN_NAME.fullmatch(bundle.name):
        raise UsageError(
            f"{bundle.name!r} cannot name a model: that takes letters, digits, _, . and -, and "
            "begins with a letter or a digit.",
            hint="Rename the bundle's folder.",
        )
    return bundle.name
