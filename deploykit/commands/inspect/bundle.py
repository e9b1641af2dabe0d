"""Whether a bundle's files are whole, what is proven of them, and what would run here."""

from __future__ import annotations

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import sha256_of
from deploykit.commands.inspect.engine import inspect_bundle_engine
from deploykit.commands.inspect.results import (
    AutoChoice,
    BundleFile,
    BundleInspection,
    FileState,
    InspectedVerdict,
)
from deploykit.errors import DeploykitError
from deploykit.inference.candidates import Candidate
from deploykit.inference.engines import engines_left_out
from deploykit.proof.auto import open_best
from deploykit.proof.policy import status_of
from deploykit.system.progress import Note, Step


def inspect_bundle(bundle: Bundle) -> BundleInspection:
    """Look at all of a bundle; what is missing or changed in it is told, not raised."""
    manifest, left_out = bundle.manifest, engines_left_out(bundle)
    return BundleInspection(
        folder=str(bundle.folder),
        manifest=manifest,
        files=tuple(
            BundleFile(
                name=name,
                bytes=record.bytes,
                state="left out" if name in left_out else _state(bundle, name),
            )
            for name, record in manifest.files.items()
        ),
        engines=tuple(
            inspect_bundle_engine(bundle, file) for file in manifest.engines if file not in left_out
        ),
        verdicts=tuple(
            InspectedVerdict(status=known.word, reason=known.reason, verdict=each)
            for each in manifest.verdicts
            for known in [status_of(bundle, each)]
        ),
        auto=_choose(bundle),
    )


def _state(bundle: Bundle, name: str) -> FileState:
    path = bundle.folder / name
    if not path.is_file():
        return "missing"
    return "ok" if sha256_of(path) == bundle.manifest.files[name].sha256 else "changed"


def _choose(bundle: Bundle) -> AutoChoice:
    """Let ``auto`` choose, as ``predict`` does."""
    reasons: list[str] = []

    def on_event(event: Step | Note) -> None:
        if isinstance(event, Note):
            reasons.append(event.message)

    try:
        with open_best(bundle, progress=on_event) as session:
            spec = session.spec
    except DeploykitError as exc:
        return AutoChoice(runs="", reasons=(*reasons, *str(exc).splitlines()))
    chosen = Candidate(spec.graph, spec.runtime, spec.precision)
    return AutoChoice(runs=f"{chosen} ({spec.device})", reasons=tuple(reasons))
