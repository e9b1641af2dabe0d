"""The words of verdicts and proofs, for a terminal, JSON and pages."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.bundle.verdicts import ImageSet, KeptVerdict, ReferenceKind
from deploykit.inference.candidates import Candidate
from deploykit.parity.measurement import Measurement
from deploykit.proof.policy import IMAGE_NAMES, Status, status
from deploykit.specs.session import SessionSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import NARROW_SPACE, bound, counted, rate_digits, table_text

if TYPE_CHECKING:
    from deploykit.proof.verdict import Verdict

_VERDICT_COLUMNS = (
    *("graph", "runtime", "precision"),
    *("flips", "error/scale", "|dp|", "batches", "verdict"),
)

_ANSWERED: dict[ReferenceKind, str] = {
    "module": "the trained model's",
    "graph": f"{CANONICAL_GRAPH}'s",
    "golden": "the recorded ones",
}
_REFERENCES: dict[ReferenceKind, str] = {
    "module": "the checkpoint's module",
    "graph": f"{CANONICAL_GRAPH}, not the checkpoint's module",
    "golden": "the recorded golden answers, too few to decide by",
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
    """A line for each image whose class changed, the largest margins first."""
    flipped = verdict.measurement.flipped
    lines = [
        f"flip  {verdict.candidate.title}: {flip.path}: {flip.reference} -> {flip.candidate}, "
        f"margin {flip.margin:.2e}{'' if flip.decidable else ' (undecidable)'}"
        for flip in flipped[:_SHOWN_FLIPS]
    ]
    if len(flipped) > _SHOWN_FLIPS:
        lines.append(f"      ... and {len(flipped) - _SHOWN_FLIPS} more")
    return lines


def images_text(images: ImageSet) -> str:
    """``225 photos of bird_photos (3 duplicates skipped)``."""
    count = counted(images.count, IMAGE_NAMES[images.kind])
    shown = {
        "photos": f"{count} of {images.source}",
        "golden": f"the bundle's {count}",
        "generated": f"{count}, no photos (verify again with --images)",
    }
    return f"{shown[images.kind]}{skipped_text(images)}"


def skipped_text(images: ImageSet) -> str:
    """`` (3 duplicates and 32 calibration images skipped)``; empty where none were."""
    counts = {"duplicate": images.duplicates, "calibration image": images.calibration}
    skipped = [counted(count, name) for name, count in counts.items() if count]
    return f" ({' and '.join(skipped)} skipped)" if skipped else ""


def verdict_value(verdict: Verdict) -> dict[str, Any]:
    """A verdict with what can be derived from it."""
    return {**plain_value(verdict), "failed": verdict.failed, "passed": verdict.passed}


def status_of_run(bundle: Bundle, spec: SessionSpec) -> Status:
    """Whether a bundle is proven to decide, as it ran here, as the trained network does."""
    if spec.tf32:
        return Status("unproven", None, "it ran in TF32, and the proofs are of plain FP32")
    return status(bundle, Candidate(spec.graph, spec.runtime, spec.precision), spec.device)


def status_text(known: Status) -> str:
    """``proven: 0 of 222 decisions differ from the trained model's, at most 1.3 % would ...``.

    Where nothing counts, why, and what to do.
    """
    proof = known.proof
    if proof is None:
        return f"{known.word}: {known.reason}"
    found = proof.measurement
    rate = found.flip_rate_bound
    sure = "" if rate is None else f", at most {rate_digits(rate)} % would"
    images = counted(proof.images.count, IMAGE_NAMES[proof.images.kind])
    return (
        f"{known.word}: {found.flips} of {counted(found.decidable, 'decision')} differ from "
        f"{_ANSWERED[proof.reference_kind]}{sure} ({images}{skipped_text(proof.images)}, "
        f"preprocessed as recorded, {proof.created[:10]})"
    )


def status_value(known: Status) -> dict[str, Any]:
    """A status as plain values: the word, the reason, and the verdict that shows it."""
    return {
        "status": known.word,
        "reason": known.reason or None,
        "verdict": None if known.verdict is None else plain_value(known.verdict),
    }


def kept_verdict_text(kept: KeptVerdict) -> str:
    """``executed on CPU, 225 photos of bird_photos: flips 0 of 225, at most 1.3 %; ...``."""
    found = kept.measurement
    return (
        f"{kept.kind} on {kept.device}, {images_text(kept.images)}: flips {flips_of(found)}; "
        f"error {found.max_relative_error:.1e} of the scale; "
        f"|dp| {found.max_probability_change:.1e}; against {_REFERENCES[kept.reference_kind]}; "
        f"{kept.created[:10]}"
    )


def proof_words(proof: KeptVerdict) -> list[str]:
    """What a proof shows, a sentence each, the most important first."""
    found = proof.measurement
    rate = found.flip_rate_bound
    sure = ""
    if rate is not None:
        sure = (
            f"; if your photos are like those it was proven on, at most {bound(rate)} will, "
            f"with 95{NARROW_SPACE}% confidence"
        )
    more = counted(found.undecidable, "more image was", "more images were")
    how = f"Rehearsed in {proof.precision} on a model of the hardware, which has not run it yet"
    if proof.kind == "executed":
        how = f"Executed in {proof.precision} on {proof.runtime}, {proof.device}"
    return [
        f"{found.flips} of {counted(found.decidable, 'decision')} changed (flipped) against the "
        f"{proof.reference}{sure}.",
        *([f"{more} undecidable, and not judged."] if found.undecidable else []),
        f"{how}; with {images_text(proof.images)}, through the recorded preprocessing.",
        f"The largest change of a probability was {found.max_probability_change:.1e}, the largest "
        f"error of a logit {found.max_relative_error:.1e} of the scale.",
    ]
