"""Results as plain values, for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from deploykit.jobs.export import ExportResult
from deploykit.jobs.tally import Tally
from deploykit.jobs.train import TrainingResult
from deploykit.jobs.verdicts import Verdict
from deploykit.jobs.verification import Verification
from deploykit.parity.blame import StageReport
from deploykit.proofs import Proof
from deploykit.report.claims import claim_of, limits_of
from deploykit.session import SessionSpec
from deploykit.stages import Stage


def export_value(result: ExportResult) -> dict[str, Any]:
    """The bundle, its manifest and the verdicts."""
    return {
        "bundle": str(result.bundle.folder),
        "manifest": msgspec.to_builtins(result.bundle.manifest),
        "photos": msgspec.to_builtins(result.photos),
        "verdicts": [verdict_value(verdict) for verdict in result.verdicts],
        "seconds": result.seconds,
    }


def verification_value(result: Verification, stages: StageReport | None = None) -> dict[str, Any]:
    """The verdicts, what was compared, and how often each side is right on labelled images.

    Args:
        result: What was found.
        stages: The walk over the stages, which may limit what was proven; None without one.
    """
    reference, *candidates = result.accuracy or (None,)
    return {
        "passed": result.passed,
        "reference": result.reference,
        "reference_kind": result.reference_kind,
        "is_recorded": result.is_recorded,
        "obstacle": result.obstacle,
        "claim": claim_of(result).holds,
        "limit": " ".join(limits_of(result, stages)) or None,
        "photos": msgspec.to_builtins(result.photos),
        "unreadable": result.unreadable,
        "verdicts": [verdict_value(verdict) for verdict in result.verdicts],
        "accuracy": {
            "reference": msgspec.to_builtins(reference),
            "candidates": msgspec.to_builtins(candidates),
        }
        if reference is not None
        else None,
        "mining": None
        if result.mining is None
        else {**plain_value(result.mining), "sentences": list(result.mining.sentences)},
        "created": result.created,
        "seconds": None if result.seconds is None else round(result.seconds, 3),
        "versions": result.versions,
    }


def verdict_value(verdict: Verdict) -> dict[str, Any]:
    """A verdict with what can be derived from it."""
    return {**plain_value(verdict), "broken": verdict.broken, "passed": verdict.passed}


def plain_value(value: msgspec.Struct) -> dict[str, Any]:
    """A value as plain types; numbers that are not finite become null."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(value))
    return plain


def training_value(result: TrainingResult) -> dict[str, Any]:
    """The best epoch, every epoch, and where the checkpoint is."""
    return {
        "checkpoint": str(result.checkpoint),
        "classes": result.classes,
        "best": msgspec.to_builtins(result.best),
        "history": msgspec.to_builtins(result.history),
        "train_photos": result.train_photos,
        "test_photos": result.test_photos,
        "seconds": round(result.seconds, 3),
    }


def prediction_value(
    tally: Tally,
    spec: SessionSpec,
    stage_seconds: Mapping[Stage, float],
    outputs: list[str],
    proof: Proof | None = None,
) -> dict[str, Any]:
    """The tally, what ran, what each stage took, and the proof; null for one that is not there."""
    return {
        "rows": tally.rows,
        "ok": tally.ok,
        "failures": dict(tally.failures),
        "labels": dict(tally.labels),
        "skipped": tally.skipped,
        "labelled": tally.labelled,
        "correct": tally.correct,
        "accuracy": tally.accuracy,
        "seconds": round(tally.seconds, 3),
        "images_per_second": tally.images_per_second,
        "stage_seconds": {stage: round(value, 3) for stage, value in stage_seconds.items()},
        "session": msgspec.to_builtins(spec),
        "proof": None if proof is None else plain_value(proof),
        "outputs": outputs,
    }
