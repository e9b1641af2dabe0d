"""Whether a bundle's files are whole, what is proven of them, and what would run here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.inspect.engine import EngineInspection, inspect_bundle_engine
from deploykit.errors import BundleError, DeploykitError, GraphError
from deploykit.inference.candidates import Candidate
from deploykit.inference.engines import engines_not_copied
from deploykit.proof.auto import open_best
from deploykit.proof.policy import Status, status_of
from deploykit.specs.value import Shown
from deploykit.system.progress import Note, Step

FileState: TypeAlias = Literal["ok", "changed", "missing", "not copied", "refused"]
"""``not copied`` is said of an engine and its passport when neither is there; ``refused`` of a
graph that has weights in another file, or that the manifest contradicts."""


@dataclass(frozen=True, repr=False)
class BundleInspection(Shown):
    """A bundle.

    Attributes:
        folder: Where it is.
        manifest: What it says of itself.
        files: Whether each of its files is the recorded one.
        engines: The engines that are there, the newest last.
        verdicts: What has been shown, the newest last, and what the policy makes of it here.
        runs: What ``auto`` takes here, ``deploy/fp32.onnx on onnxruntime-cpu (CPU)``; empty when
            nothing would run.
        reasons: What ``auto`` would not take, and why; or why nothing runs, and what to do.
    """

    folder: str
    manifest: Manifest
    files: dict[str, FileState]
    engines: tuple[EngineInspection, ...]
    verdicts: tuple[tuple[KeptVerdict, Status], ...]
    runs: str
    reasons: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether every file is the recorded one, and each engine that of its passport."""
        return {*self.files.values()} <= {"ok", "not copied"} and all(
            engine.sound for engine in self.engines
        )


def inspect_bundle(bundle: Bundle) -> BundleInspection:
    """Look at all of a bundle; what is missing or changed in it is told, not raised."""
    manifest, absent = bundle.manifest, engines_not_copied(bundle)
    runs, reasons = _auto(bundle)
    files: dict[str, FileState] = {
        name: "not copied" if name in absent else _state(bundle, name) for name in manifest.files
    }

    def status(kept: KeptVerdict) -> Status:
        state = files.get(kept.graph, "missing")
        if state in ("changed", "missing", "refused"):
            return Status("unproven", None, f"{kept.graph} is {state}")
        return status_of(bundle, kept)

    return BundleInspection(
        folder=str(bundle.folder),
        manifest=manifest,
        files=files,
        engines=tuple(
            inspect_bundle_engine(bundle, file) for file in manifest.engines if file not in absent
        ),
        verdicts=tuple((each, status(each)) for each in manifest.verdicts),
        runs=runs,
        reasons=tuple(reasons),
    )


def _state(bundle: Bundle, name: str) -> FileState:
    if not os.path.isfile(bundle.folder / name):  # noqa: PTH113  # False for any name that cannot be
        return "missing"
    try:
        bundle.checked(name)
    except BundleError as exc:
        return "refused" if isinstance(exc.__cause__, GraphError) else "changed"
    return "ok"


def _auto(bundle: Bundle) -> tuple[str, list[str]]:
    """Let ``auto`` choose, as ``predict`` does: what runs, and the reasons against others."""
    reasons: list[str] = []

    def on_event(event: Step | Note) -> None:
        if isinstance(event, Note):
            reasons.append(event.message)

    try:
        with open_best(bundle, progress=on_event) as session:
            spec = session.spec
    except DeploykitError as exc:
        return "", [*reasons, *str(exc).splitlines()]
    return f"{Candidate(spec.graph, spec.runtime, spec.precision)} ({spec.device})", reasons
