"""What an engine tells without TensorRT and without a GPU: its header, and its passport."""

from __future__ import annotations

import os
from pathlib import Path

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import sha256_of
from deploykit.engine.passport import (
    Passport,
    PlanHeader,
    check_plan,
    passport_path,
    read_header,
    read_passport,
)
from deploykit.errors import BundleError, InputError
from deploykit.inference.engines import named_engine
from deploykit.specs.value import Shown, Value
from deploykit.system.files import open_file

ENGINE_ENDINGS = (".engine", ".plan", ".trt")
_HEADER_BYTES = 64
#: A file of 1 TB takes no space on a disk if nothing is in it.
_MAX_BYTES = 2**34


class EngineInspection(Shown, Value, frozen=True):
    """A serialized TensorRT engine.

    Attributes:
        path: The file; relative to the bundle for one of a bundle's.
        bytes: Its size; 0 when it is not there.
        header: What its first bytes say; None where they are unknown.
        passport: What its passport says; None without a usable one.
        reasons: Why it cannot be used.
    """

    path: str
    bytes: int
    header: PlanHeader | None
    passport: Passport | None
    reasons: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether it can be used."""
        return not self.reasons


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, by its header or by its ending."""
    if path.suffix.lower() in ENGINE_ENDINGS:
        return True
    try:
        with open_file(path) as file:
            return read_header(file.read(_HEADER_BYTES)) is not None
    except OSError:
        return False  # whoever reads it next says why it cannot be read


def inspect_engine(path: Path) -> EngineInspection:
    """Look into an engine and the passport beside it.

    Raises:
        InputError: It cannot be read, or neither its header nor a passport shows an engine.
    """
    try:
        found = _inspection(str(path), path)
    except OSError as exc:
        raise InputError(
            f"The engine {path} cannot be read ({exc.strerror}).", hint="Check the path."
        ) from exc
    if found.header is None and found.passport is None:
        raise InputError(
            f"{path} is no engine that is known here: its header is none of TensorRT's, and "
            "no passport is beside it.",
            hint="Build one: deploykit build-trt",
        )
    return found


def inspect_bundle_engine(bundle: Bundle, file: str) -> EngineInspection:
    """Look into an engine of a bundle, which was built from one of the bundle's graphs.

    Args:
        bundle: The bundle.
        file: Relative to the bundle.
    """
    reason = None
    try:
        named_engine(bundle, file)
        bundle.checked(file)
    except BundleError as exc:
        reason = exc.message.rstrip(".")
    path = bundle.folder / file
    try:
        return _inspection(file, path, reason)
    except OSError as exc:
        lost = isinstance(exc, FileNotFoundError | NotADirectoryError)
        reason = "it is not there" if lost else f"it cannot be read ({exc.strerror})"
        return EngineInspection(path=file, bytes=0, header=None, passport=None, reasons=(reason,))


def _inspection(name: str, path: Path, reason: str | None = None) -> EngineInspection:
    """What an engine and the passport beside it tell.

    Args:
        name: What reports call it.
        path: The engine.
        reason: Why it cannot be used, where that is known.

    Raises:
        OSError: It cannot be read.
    """
    with open_file(path) as file:
        start, size = file.read(_HEADER_BYTES), os.fstat(file.fileno()).st_size
    if size > _MAX_BYTES:
        reason = reason or f"it has {size} bytes, more than any engine"
    passport = None
    try:
        passport = read_passport(passport_path(path))
    except BundleError as exc:
        reason = reason or exc.message.rstrip(".")
    else:
        reason = reason or check_plan(start, passport.flavour, size)
        if reason is None and sha256_of(path) != passport.engine_sha256:
            reason = "its hash is not that of its passport"
    return EngineInspection(
        path=name,
        bytes=size,
        header=read_header(start),
        passport=passport,
        reasons=() if reason is None else (reason,),
    )
