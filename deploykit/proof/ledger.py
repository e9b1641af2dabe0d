"""Refutations: what broke the tolerance is remembered, and easier photos do not bring it back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest, update_manifest
from deploykit.bundle.proofs import Refutation
from deploykit.errors import BundleError
from deploykit.parity.answers import Answers
from deploykit.parity.copies import once_each
from deploykit.parity.measures import softmax
from deploykit.proof.photos import Photos
from deploykit.proof.verdict import Verdict
from deploykit.specs.precision import Precision
from deploykit.specs.session import Logits, SessionSpec
from deploykit.system.progress import Note, Progress
from deploykit.system.text import counted
from deploykit.system.versions import installed_versions, now, runtime_version

#: Enough to tell whether a later comparison saw what broke it.
_KEPT_PHOTOS = 16


def doubt_refuted(
    bundle: Bundle, verdicts: Sequence[Verdict], photos: Photos
) -> tuple[Verdict, ...]:
    """Refuse what passed, but is known to fail on photos that are not among these.

    Args:
        bundle: The bundle.
        verdicts: On its graphs and engines.
        photos: On which images, drawn.
    """
    return tuple(_doubted(bundle.manifest, verdict, photos) for verdict in verdicts)


def _doubted(manifest: Manifest, verdict: Verdict, photos: Photos) -> Verdict:
    known = _standing_refutation(manifest, verdict.candidate)
    if known is None or not verdict.passed or photos.digests.issuperset(known.failed):
        return verdict
    return verdict.refused(f"{refutation_words(known)}, and these photos are without those")


def _standing_refutation(manifest: Manifest, spec: SessionSpec) -> Refutation | None:
    """The refutation of what ran, by the runtime that is installed; None without."""
    version = runtime_version(spec.runtime, installed_versions())
    for each in refutations_of(manifest, spec.graph, spec.runtime, spec.precision):
        if (each.device, each.runtime_version) == (spec.device, version) and not spec.tf32:
            return each
    return None


def refutations_of(
    manifest: Manifest, file: str, runtime: str, precision: Precision
) -> list[Refutation]:
    """The refutations of a graph or an engine as it is now, on whatever device."""
    record = manifest.files.get(file)
    key = (file, record and record.sha256, runtime, precision)
    return [
        each
        for each in manifest.refutations
        if (each.graph, each.graph_sha256, each.runtime, each.precision) == key
    ]


def refutation_words(known: Refutation) -> str:
    """``it failed on 32 photos of worst.txt on 2026-11-22 (2 of 31 images changed ...)``."""
    photos = f"{counted(known.photos.images, 'photo')} of {known.photos.source}"
    return f"it failed on {photos} on {known.created[:10]} ({'; '.join(known.objections)})"


def keep_refutations(
    bundle: Bundle,
    verdicts: Sequence[Verdict],
    answers: Answers,
    photos: Photos,
    progress: Progress,
) -> None:
    """Put into the manifest which verdicts broke their tolerance, and on which photos.

    Args:
        bundle: The bundle, as it was when it was measured.
        verdicts: On its graphs and engines.
        answers: What the candidates answered, in the verdicts' order.
        photos: On which images, drawn; only of the user's photos a refutation is kept.
        progress: Called with a note when the bundle cannot be changed.
    """
    if photos.kind != "photos":
        return
    found = [
        _refutation(bundle, verdict, logits, answers, photos)
        for verdict, logits in zip(verdicts, answers.candidates, strict=True)
        if verdict.breaches and not verdict.candidate.tf32
    ]
    if not found:
        return

    def change(manifest: Manifest) -> Manifest:
        for each in found:
            record = manifest.files.get(each.graph)
            if record is not None and record.sha256 == each.graph_sha256:
                manifest = manifest.with_refutation(each)
        return manifest

    try:
        update_manifest(bundle.folder, change)
    except (OSError, BundleError) as exc:
        progress(Note(f"that it failed is not kept, {bundle.folder} cannot be changed: {exc}"))


def _refutation(
    bundle: Bundle, verdict: Verdict, logits: Logits, answers: Answers, photos: Photos
) -> Refutation:
    spec = verdict.candidate
    rows = once_each(_breaking_rows(verdict, answers, logits), answers.firsts)[:_KEPT_PHOTOS]
    return Refutation(
        graph=spec.graph,
        graph_sha256=bundle.manifest.files[spec.graph].sha256,
        runtime=spec.runtime,
        runtime_version=runtime_version(spec.runtime, installed_versions()),
        device=spec.device,
        precision=spec.precision,
        photos=photos.drawn(),
        failed=tuple(map(photos.digest, rows)),
        objections=verdict.breaches,
        created=now(),
    )


def _breaking_rows(verdict: Verdict, answers: Answers, logits: Logits) -> list[int]:
    """The places of the images that break a tolerance, the worst first.

    Those with a flip that counts, an error or a change beyond what is allowed, or a logit that is
    not finite.
    """
    tolerance, found = verdict.tolerance, verdict.measurement
    flipped = {flip.path for flip in found.flipped if flip.decidable}
    with np.errstate(invalid="ignore", divide="ignore"):
        moved = np.abs(logits.astype(np.float64) - answers.reference).max(axis=1) / found.scale
        changed = np.abs(softmax(logits) - softmax(answers.reference)).max(axis=1)
    breaking = np.isin(answers.paths, [*flipped]) | ~np.isfinite(moved)
    if tolerance.max_relative_error is not None:
        breaking |= moved > tolerance.max_relative_error
    if tolerance.max_probability_change is not None:
        breaking |= changed > tolerance.max_probability_change
    worst = np.where(np.isnan(changed), np.inf, changed)
    return sorted(
        np.flatnonzero(breaking).tolist(),
        key=lambda row: (answers.paths[row] not in flipped, -worst[row]),
    )
