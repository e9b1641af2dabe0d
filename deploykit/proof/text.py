"""The words of verdicts and proofs, for a terminal, JSON and pages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.bundle.proofs import PhotoSet, Proof, ReferenceKind
from deploykit.html.words import NARROW_SPACE, bound
from deploykit.parity.measurement import Measurement
from deploykit.proof.verdict import Verdict
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import counted, rate_digits, table_text
from deploykit.system.versions import runtime_version

_VERDICT_COLUMNS = (
    *("graph", "runtime", "precision"),
    *("flips", "error/scale", "|dp|", "batches", "verdict"),
)

_ANSWERED: dict[ReferenceKind, str] = {
    "module": "the trained model's",
    "graph": f"{CANONICAL_GRAPH}'s",
    "golden": "the recorded ones",
}
_SHOWN_FLIPS = 10


def verdicts_text(verdicts: Iterable[Verdict]) -> str:
    """A table with a row for each candidate."""
    rows = [
        (
            verdict.candidate.graph,
            verdict.candidate.runtime,
            verdict.candidate.precision,
            flips_of(verdict.measurement),
            f"{verdict.measurement.max_relative_error:.1e}",
            f"{verdict.measurement.max_probability_change:.1e}",
            ",".join(map(str, verdict.measurement.batch_sizes)),
            "passed" if verdict.passed else "FAILED",
        )
        for verdict in verdicts
    ]
    return table_text(_VERDICT_COLUMNS, rows)


def flips_of(measurement: Measurement) -> str:
    """``0 of 225, at most 1.3 %``: the flips and the bound on their rate."""
    text = f"{measurement.flips} of {measurement.decidable}"
    if measurement.flip_rate_bound is not None:
        text += f", at most {rate_digits(measurement.flip_rate_bound)} %"
    if measurement.undecidable:
        text += f" ({measurement.undecidable} undecidable)"
    return text


def flips_text(verdict: Verdict) -> list[str]:
    """A line for each different image whose class changed, the largest margins first."""
    flipped = verdict.measurement.distinct_flips
    lines = [
        f"flip  {verdict.candidate.title}: {flip.path}: {flip.reference} -> {flip.candidate}, "
        f"margin {flip.margin:.2e}{'' if flip.decidable else ' (undecidable)'}"
        for flip in flipped[:_SHOWN_FLIPS]
    ]
    if len(flipped) > _SHOWN_FLIPS:
        lines.append(f"      ... and {len(flipped) - _SHOWN_FLIPS} more")
    if copies := len(verdict.measurement.flipped) - len(flipped):
        lines.append(f"      ... and {counted(copies, 'copy', 'copies')} of these")
    return lines


def photos_text(photos: PhotoSet) -> str:
    """``225 photos of bird_photos``; the bound beside it holds for photos like these only."""
    return f"{_kind_text(photos)}{copies_text(photos)}"


def copies_text(photos: PhotoSet) -> str:
    """``, 3 of them copies``: they were compared, and tell nothing of how sure that makes us."""
    if not photos.copies:
        return ""
    return f", {photos.copies} of them {'a copy' if photos.copies == 1 else 'copies'}"


def _kind_text(photos: PhotoSet) -> str:
    if photos.kind == "photos":
        return f"{counted(photos.images, 'photo')} of {photos.source}"
    if photos.kind == "golden":
        return f"the bundle's {counted(photos.images, 'golden image')}"
    made = counted(
        photos.images, "made image, which is no photo", "made images, which are no photos"
    )
    return f"{made}: verify again with --images"


def verdict_value(verdict: Verdict) -> dict[str, Any]:
    """A verdict with what can be derived from it."""
    return {**plain_value(verdict), "broken": verdict.broken, "passed": verdict.passed}


def searched_text(proof: Proof) -> str:
    """``, 22 of them had a part in making the graph``; empty where none had."""
    if not proof.searched:
        return ""
    return f", {proof.searched} of them had a part in making the graph"


def version_text(proof: Proof, versions: Mapping[str, str]) -> str:
    """``proven with onnxruntime-cpu 1.30.0; here is 1.31.1``; empty where it is the same.

    Args:
        proof: What there is.
        versions: What is installed.
    """
    then, now = proof.runtime_version, runtime_version(proof.runtime, versions)
    if not then or not now or then == now:
        return ""
    return f"proven with {proof.runtime} {then}; here is {now}"


def proof_of_run(bundle: Bundle, spec: SessionSpec) -> Proof | None:
    """What shows that a bundle decides, as it ran here, as the trained network does."""
    if spec.tf32:
        return None  # the proofs are of plain FP32
    return bundle.manifest.proof_of(spec.graph, spec.runtime, spec.device)


def proof_text(proof: Proof | None, versions: Mapping[str, str] = MappingProxyType({})) -> str:
    """``executed: 0 of 222 decisions differ from the trained model's, at most 1.3 % would ...``.

    Args:
        proof: What there is; None for none.
        versions: What is installed, where the proof may be of other versions.
    """
    if proof is None:
        return "none here: deploykit verify --images DIR"
    found, rate = proof.measurement, proof.flip_rate_bound
    sure = "" if rate is None else f", at most {rate_digits(rate)} % would"
    what = {"photos": "photo", "golden": "golden image", "generated": "made image"}
    images = counted(proof.photos.images, what[proof.photos.kind])
    other = version_text(proof, versions)
    return (
        f"{proof.kind}: {found.flips} of {counted(found.decidable, 'decision')} differ from "
        f"{_ANSWERED[proof.reference_kind]}{sure} ({images}{copies_text(proof.photos)}"
        f"{searched_text(proof)}, preprocessed as recorded, {proof.created[:10]})"
        f"{f'; {other}: deploykit verify proves it anew' if other else ''}"
    )


def flips_shown(proof: Proof) -> str:
    """``0 of 225, at most 1.3 %``: the flips, and the bound where the images are a sample."""
    return flips_of(
        msgspec.structs.replace(proof.measurement, flip_rate_bound=proof.flip_rate_bound)
    )


def proof_words(proof: Proof) -> list[str]:
    """What a proof shows, a sentence each, the most important first."""
    found = proof.measurement
    decided = (
        f"{found.flips} of {counted(found.decidable, 'decision')} changed (flipped) against the "
        f"{proof.reference}"
    )
    rate = proof.flip_rate_bound
    if rate is not None:
        decided += (
            f"; if your photos are like those it was proven on, at most "
            f"{bound(rate)} will, with 95{NARROW_SPACE}% confidence"
        )
    sentences = [f"{decided}."]
    if found.undecidable:
        what = "photo" if proof.photos.kind == "photos" else "image"
        more = counted(found.undecidable, f"more {what} was", f"more {what}s were")
        sentences.append(f"{more} too close to call, and not judged.")
    if proof.kind == "executed":
        how = f"Executed in {proof.precision} on {proof.runtime}, {proof.device}"
    else:
        how = f"Rehearsed in {proof.precision} on a model of the hardware, which has not run it yet"
    sentences.append(
        f"{how}; with {photos_text(proof.photos)}{searched_text(proof)}, through the recorded "
        "preprocessing."
    )
    sentences.append(
        f"The largest change of a probability was {found.max_probability_change:.1e}, the largest "
        f"error of a logit {found.max_relative_error:.1e} of the scale."
    )
    return sentences
