"""Run candidates against a reference, judge what was measured, and keep what passed."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from importlib import metadata

import msgspec

from deploykit.parity.compare import (
    MAX_BATCH_SIZE,
    NamedBatch,
    batch_sizes,
    compare_sessions,
    regroup,
)
from deploykit.progress import Progress, Step
from deploykit.proofs import (
    Measurement,
    PhotoSet,
    Proof,
    ProofKind,
    ReferenceKind,
    Tolerance,
    tolerance_for,
)
from deploykit.runtime.opener import REHEARSAL
from deploykit.session import Session, SessionSpec
from deploykit.specs import Labels, Value

_PACKAGES = (
    *("deploykit", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "pillow"),
    *("tensorrt", "tensorrt_rtx", "torch"),
)


class Verdict(Value, frozen=True):
    """What was measured of one candidate, what is allowed, and what speaks against it.

    Attributes:
        candidate: What ran.
        kind: ``executed`` on the runtime itself or ``rehearsed`` on a model of the hardware.
        measurement: What was found.
        tolerance: What is allowed.
        objections: A sentence for each way in which it failed; empty when it passed.
    """

    candidate: SessionSpec
    kind: ProofKind
    measurement: Measurement
    tolerance: Tolerance
    objections: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.objections

    def refused(self, objection: str) -> Verdict:
        """A copy with one more thing that speaks against it."""
        return msgspec.structs.replace(self, objections=(*self.objections, objection))


def judge_sessions(
    reference: Session,
    candidates: Sequence[Session],
    batches: Iterable[NamedBatch],
    count: int,
    labels: Labels,
    progress: Progress,
) -> tuple[Verdict, ...]:
    """Compare candidates with a reference, in batches of several sizes, and judge them.

    Args:
        reference: What is right by definition.
        candidates: What is compared with it.
        batches: The images; see :func:`deploykit.parity.compare.regroup`.
        count: How many images there are, if all can be read.
        labels: The classes' names.
        progress: Called after every batch.
    """

    def on_images(done: int) -> None:
        progress(Step("comparing", done, count))

    limits = [each.spec.largest_batch for each in candidates if each.spec.largest_batch]
    groups = regroup(batches, batch_sizes(count, min(limits, default=MAX_BATCH_SIZE)))
    measurements = compare_sessions(reference, candidates, groups, labels, on_images)
    return tuple(
        judge(candidate.spec, measurement)
        for candidate, measurement in zip(candidates, measurements, strict=True)
    )


def judge(candidate: SessionSpec, measurement: Measurement) -> Verdict:
    """Hold a measurement against its precision's tolerance."""
    tolerance = tolerance_for(candidate.precision)
    return Verdict(
        candidate=candidate,
        kind="rehearsed" if candidate.runtime == REHEARSAL else "executed",
        measurement=measurement,
        tolerance=tolerance,
        objections=tolerance.objections(measurement),
    )


def proof_of(
    verdict: Verdict,
    *,
    graph_sha256: str,
    reference: str,
    reference_kind: ReferenceKind,
    photos: PhotoSet,
) -> Proof:
    """Turn a verdict that passed into what the manifest keeps.

    Raises:
        ValueError: It did not pass.
    """
    if not verdict.passed:
        raise ValueError(f"not a proof: {'; '.join(verdict.objections)}")
    spec = verdict.candidate
    return Proof(
        graph=spec.graph,
        graph_sha256=graph_sha256,
        runtime=spec.runtime,
        device=spec.device,
        precision=spec.precision,
        kind=verdict.kind,
        reference=reference,
        reference_kind=reference_kind,
        photos=photos,
        measurement=verdict.measurement,
        tolerance=verdict.tolerance,
        created=now(),
        versions=installed_versions(),
    )


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed_versions() -> dict[str, str]:
    """The versions of Python and of the packages whose version can change an answer."""
    versions = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
