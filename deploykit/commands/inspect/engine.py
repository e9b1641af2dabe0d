"""What an engine tells without TensorRT and without a GPU: its header, and its passport."""

from __future__ import annotations

import hashlib
from pathlib import Path

from deploykit.bundle.folder import Bundle
from deploykit.commands.inspect.results import EngineInspection
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

ENGINE_ENDINGS = (".engine", ".plan", ".trt")
_HEADER_BYTES = 64


def is_engine(path: Path) -> bool:
    """Whether a file is an engine, by its header or by its ending."""
    if path.suffix.lower() in ENGINE_ENDINGS:
        return True
    try:
        with path.open("rb") as file:
            return read_header(file.read(_HEADER_BYTES)) is not None
    except OSError:
        return False  # whoever reads it next says why it cannot be read


def inspect_engine(path: Path) -> EngineInspection:
    """Look into an engine and the passport beside it.

    Raises:
        InputError: It cannot be read, or neither its header nor a passport shows an engine.
    """
    try:
        plan = path.read_bytes()
    except OSError as exc:
        raise InputError(
            f"The engine {path} cannot be read ({exc.strerror}).", hint="Check the path."
        ) from exc
    passport, reason = _passport_of(path)
    header = read_header(plan)
    if header is None and passport is None:
        raise InputError(
            f"{path} is no engine that is known here: its header is none of TensorRT's, and "
            "no passport is beside it.",
            hint="Build one: deploykit build-trt",
        )
    reasons = [] if reason is None else [reason]
    if passport is not None:
        reasons += _contradictions(plan, passport)
    return _inspection(str(path), len(plan), header, passport, reasons)


def inspect_bundle_engine(bundle: Bundle, file: str) -> EngineInspection:
    """Look into an engine of a bundle, which was built from one of the bundle's graphs.

    Args:
        bundle: The bundle.
        file: Relative to the bundle.
    """
    path = bundle.folder / file
    if not path.is_file():
        passport, _ = _passport_of(path)
        return _inspection(file, 0, None, passport, ["it is not there"])
    plan = path.read_bytes()
    try:
        engine = named_engine(bundle, file)
        bundle.checked(file)
    except BundleError as exc:
        passport, _ = _passport_of(path)
        return _inspection(file, len(plan), read_header(plan), passport, [exc.message.rstrip(".")])
    reasons = _contradictions(plan, engine.passport)
    return _inspection(file, len(plan), read_header(plan), engine.passport, reasons)


def _passport_of(engine: Path) -> tuple[Passport | None, str | None]:
    """The passport beside an engine, or why there is none."""
    try:
        return read_passport(passport_path(engine)), None
    except BundleError as exc:
        return None, exc.message.rstrip(".")


def _contradictions(plan: bytes, passport: Passport) -> list[str]:
    """What speaks against an engine's being that of its passport."""
    damage = check_plan(plan, passport.flavour)
    if damage is not None:
        return [damage]
    if hashlib.sha256(plan).hexdigest() != passport.engine_sha256:
        return ["its hash is not that of its passport"]
    return []


def _inspection(
    name: str,
    size: int,
    header: PlanHeader | None,
    passport: Passport | None,
    reasons: list[str],
) -> EngineInspection:
    return EngineInspection(
        path=name,
        bytes=size,
        flavour=None if header is None else header.flavour,
        version=None if header is None else header.version,
        targets=None if header is None else header.targets,
        passport=passport,
        reasons=tuple(reasons),
    )
