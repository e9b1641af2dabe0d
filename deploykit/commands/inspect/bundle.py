"""Whether a bundle's files are whole, what is proven of them, and what would run here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, TypeAlias

from deploykit.bundle.folder import GOLDEN, Bundle
from deploykit.bundle.golden import read_golden
from deploykit.bundle.manifest import Manifest
from deploykit.bundle.verdicts import KeptVerdict
from deploykit.commands.inspect.engine import EngineInspection, inspect_bundle_engine
from deploykit.errors import BundleError, DeploykitError, InputError
from deploykit.inference.candidates import Candidate
from deploykit.inference.engines import engines_not_copied
from deploykit.proof.auto import open_best
from deploykit.proof.policy import Status, status_of
from deploykit.specs.value import Shown
from deploykit.system.progress import Note, Step
from deploykit.system.text import commands_apart

FileState: TypeAlias = Literal["ok", "changed", "missing", "not copied", "refused", "unreadable"]
"""``not copied`` is said of an engine and its passport when neither is there; ``refused`` of a
file that is the recorded one and yet not used: a graph that has weights in another file, or other
labels than the manifest; ``unreadable`` of one that the system does not let us read."""


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
        damage: What is wrong with the bundle, a sentence each.
    """

    folder: str
    manifest: Manifest
    files: dict[str, FileState]
    engines: tuple[EngineInspection, ...]
    verdicts: tuple[tuple[KeptVerdict, Status], ...]
    runs: str
    reasons: tuple[str, ...]
    damage: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged: what is not would be refused by whatever uses it."""
        return not self.damage and all(engine.sound for engine in self.engines)


def inspect_bundle(bundle: Bundle) -> BundleInspection:
    """Look at all of a bundle; what is missing or changed in it is told, not raised."""
    manifest, absent = bundle.manifest, engines_not_copied(bundle)
    runs, reasons, error = _auto(bundle)
    files: dict[str, FileState] = {}
    damage: list[str] = []
    for name in manifest.files:
        files[name], reason = ("not copied", "") if name in absent else _state(bundle, name)
        damage += [reason] * bool(reason)
    if error is not None and error.message not in damage:
        damage.append(error.message)

    def status(kept: KeptVerdict) -> Status:
        state = files.get(kept.graph, "missing")
        if state not in ("ok", "not copied"):
            return Status("unproven", None, f"{kept.graph} is {state}")
        return status_of(bundle, kept)

    return BundleInspection(
        folder=str(bundle.place),
        manifest=manifest,
        files=files,
        engines=tuple(
            inspect_bundle_engine(bundle, file) for file in manifest.engines if file not in absent
        ),
        verdicts=tuple((each, status(each)) for each in manifest.verdicts),
        runs=runs,
        reasons=tuple(reasons),
        damage=tuple(damage),
    )


def _state(bundle: Bundle, name: str) -> tuple[FileState, str]:
    """How a file is, and a sentence on what is wrong with it; an empty one where nothing is."""
    try:
        path = bundle.checked(name)
    except BundleError as exc:
        if exc.__cause__ is None:
            return "changed", exc.message
        if not isinstance(exc.__cause__, OSError):
            return "refused", exc.message
        # Not Path.exists, which raises where nobody may look.
        there = os.path.lexists(bundle.folder / name)
        lost = isinstance(exc.__cause__, FileNotFoundError | NotADirectoryError)
        return "missing" if lost or not there else "unreadable", exc.message
    try:
        if path == bundle.folder / GOLDEN:
            read_golden(bundle)
    except BundleError as exc:
        return "refused", exc.message
    return "ok", ""


def _auto(bundle: Bundle) -> tuple[str, list[str], InputError | None]:
    """Let ``auto`` choose, as ``predict`` does: what runs, and the reasons against others.

    The error is told where ``predict`` would end with it because the bundle is damaged.
    """
    reasons: list[str] = []

    def on_event(event: Step | Note) -> None:
        if isinstance(event, Note):
            reasons.extend(event.message.split("\n"))

    try:
        with open_best(bundle, progress=on_event) as session:
            spec = session.spec
    except DeploykitError as exc:
        damaged = exc if isinstance(exc, InputError) else None
        return "", [*reasons, *commands_apart(str(exc)).splitlines()], damaged
    return f"{Candidate(spec.graph, spec.runtime, spec.precision)} ({spec.device})", reasons, None
