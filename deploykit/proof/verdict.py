"""Run candidates against a reference, judge what was measured, and keep what passed."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import msgspec

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest, update_manifest
from deploykit.bundle.proofs import (
    PhotoKind,
    PhotoSet,
    Proof,
    ProofKind,
    ReferenceKind,
    unseen_bound,
)
from deploykit.errors import BundleError
from deploykit.parity.answers import Answers
from deploykit.parity.compare import (
    MAX_BATCH_SIZE,
    ask_sessions,
    batch_sizes,
    measure_answers,
    regroup,
)
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import Population, Tolerance, tolerance_for
from deploykit.proof.photos import Photos
from deploykit.proof.reference import Reference
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs.labels import Labels
from deploykit.specs.session import Session, SessionSpec
from deploykit.specs.value import Value
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.versions import installed_versions, now

_PACKAGES = (
    *("deploykit", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu", "openvino"),
    *("pillow", "tensorrt", "tensorrt_rtx", "torch"),
)


class Verdict(Value, frozen=True):
    """What was measured of one candidate, what is allowed, and what speaks against it.

    What speaks against it is a breach, where the numbers break the tolerance, or a doubt: nothing
    was shown. Only a breach takes away a proof that there is.

    Attributes:
        candidate: What ran.
        kind: ``executed`` on the runtime itself or ``rehearsed`` on a model of the hardware.
        measurement: What was found.
        tolerance: What is allowed.
        objections: A sentence for each way in which it failed; empty when it passed.
        chosen_from: What the images were chosen from by their margins, if they were.
        note: What a reader should know besides, as a sentence; None for nothing.
        seconds: How long the candidate took to answer; None where nobody looked.
        searched: How many of the different images had a part in making the graph, as the manifest
            tells.
        extremes: Those of the objections that extreme images give.
    """

    candidate: SessionSpec
    kind: ProofKind
    measurement: Measurement
    tolerance: Tolerance
    objections: tuple[str, ...]
    chosen_from: Population | None = None
    note: str | None = None
    seconds: float | None = None
    searched: int = 0
    extremes: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.objections

    @property
    def broken(self) -> bool:
        """Whether numbers break the tolerance, whatever the images that were left out do."""
        return bool(self.breaches or self.extremes)

    @property
    def breaches(self) -> tuple[str, ...]:
        """What breaks the tolerance on the compared images, a sentence each."""
        among = self.chosen_from
        if among is not None:
            among = msgspec.structs.replace(among, others_hold=True)
        return self.tolerance.breaches(self.measurement, among)

    def with_searched(self, searched: int) -> Verdict:
        """A copy whose bound is over the images that had no part in making the graph."""
        bound = unseen_bound(self.measurement, searched)
        measurement = msgspec.structs.replace(self.measurement, flip_rate_bound=bound)
        return msgspec.structs.replace(self, measurement=measurement, searched=searched)

    def refused(self, objection: str) -> Verdict:
        """A copy with one more doubt."""
        return msgspec.structs.replace(self, objections=(*self.objections, objection))

    def with_extremes(self, objections: tuple[str, ...]) -> Verdict:
        """A copy with what extreme images show against the candidate."""
        every = (*self.objections, *objections)
        return msgspec.structs.replace(self, objections=every, extremes=objections)


def judge_sessions(
    reference: Session,
    candidates: Sequence[Session],
    photos: Photos,
    labels: Labels,
    progress: Progress,
) -> tuple[Verdict, ...]:
    """Compare candidates with a reference, in batches of several sizes, and judge them.

    Args:
        reference: See :func:`answer_images`, as the arguments below.
        candidates: What is compared with it.
        photos: The images, of which none is drawn yet.
        labels: The classes' names.
        progress: Called after every batch.
    """
    answers = answer_images(reference, candidates, photos, progress)
    specs = [candidate.spec for candidate in candidates]
    return judge_answers(answers, specs, labels, kind=photos.kind)


def answer_images(
    reference: Session, candidates: Sequence[Session], photos: Photos, progress: Progress
) -> Answers:
    """Let a reference and candidates answer the same images, in batches of several sizes.

    Args:
        reference: What is right by definition.
        candidates: What is compared with it.
        photos: The images, of which none is drawn yet.
        progress: Called after every batch; it tells how many changed their class so far.
    """

    def on_batch(done: int, changed: int) -> None:
        detail = f"comparing, {changed} changed their class" if changed else ""
        progress(Step("comparing", done, photos.count, detail))

    limits = [each.spec.largest_batch for each in candidates if each.spec.largest_batch]
    sizes = batch_sizes(photos.count, min(limits, default=MAX_BATCH_SIZE))
    answers = ask_sessions(reference, candidates, regroup(photos, sizes), on_batch)
    return dataclasses.replace(answers, firsts=photos.firsts)


def judge_answers(
    answers: Answers,
    candidates: Sequence[SessionSpec],
    labels: Labels,
    *,
    kind: PhotoKind = "photos",
) -> tuple[Verdict, ...]:
    """Measure each candidate's answers, and judge it.

    Args:
        answers: Of the reference and the candidates.
        candidates: Whose answers they are, in the order of ``answers.candidates``.
        labels: The classes' names.
        kind: Whose images they are. Only of the user's photos are others like them to be expected,
            for which a bound holds.
    """
    measurements = measure_answers(answers, candidates, labels, bounded=kind == "photos")
    return timed(map(judge, candidates, measurements), answers)


def timed(verdicts: Iterable[Verdict], answers: Answers) -> tuple[Verdict, ...]:
    """The verdicts with how long their candidates took to answer, where that is known."""
    if not answers.seconds:
        return tuple(verdicts)
    return tuple(
        msgspec.structs.replace(verdict, seconds=seconds)
        for verdict, seconds in zip(verdicts, answers.seconds, strict=True)
    )


def judge(
    candidate: SessionSpec, measurement: Measurement, chosen_from: Population | None = None
) -> Verdict:
    """Hold a measurement against its precision's tolerance.

    Args:
        candidate: What ran.
        measurement: What was found.
        chosen_from: What the images were chosen from by their margins, if they were.
    """
    tolerance = tolerance_for(candidate.precision)
    return Verdict(
        candidate=candidate,
        kind="rehearsed" if candidate.runtime == REHEARSAL else "executed",
        measurement=measurement,
        tolerance=tolerance,
        objections=tolerance.objections(measurement, chosen_from),
        chosen_from=chosen_from,
    )


def keep_proofs(
    bundle: Bundle,
    verdicts: Sequence[Verdict],
    reference: Reference,
    photos: Photos,
    progress: Progress,
    *,
    passed_is_proof: bool,
) -> None:
    """Put the proofs of what passed into the manifest, and take away those that are disproved.

    Args:
        bundle: The bundle, as it was when it was measured.
        verdicts: On its graphs and engines.
        reference: What they were compared with.
        photos: On which images, drawn.
        progress: Called with a note when the bundle cannot be changed, and when it has a proof on
            photos that had no part in making the graph, as some of these had.
        passed_is_proof: Whether a verdict that passed is a proof. What the self-test passes is
            none: its answers come from the export's. Nor is what photos show that were chosen by
            their margins.
    """
    measured = bundle.manifest.files

    def change(manifest: Manifest) -> Manifest:
        for verdict in verdicts:
            graph = verdict.candidate.graph
            if manifest.files.get(graph) != measured[graph]:
                continue  # exported again meanwhile: this verdict is about another graph
            if verdict.candidate.tf32:
                continue  # of FP32 it shows neither the one nor the other
            if verdict.broken:
                spec = verdict.candidate
                manifest = manifest.without_proof(graph, spec.runtime, spec.device)
            elif verdict.passed and passed_is_proof:
                proof = proof_of(
                    verdict,
                    graph_sha256=measured[graph].sha256,
                    reference=reference.description,
                    reference_kind=reference.kind,
                    photos=photos.drawn(),
                )
                bare = manifest.without_refutation(graph, proof.runtime, proof.device)
                manifest = bare.with_proof(proof)
                if manifest is bare and proof.searched:
                    progress(Note(_stays(proof)))
        return manifest

    disproved = any(verdict.broken for verdict in verdicts)
    if not disproved and not passed_is_proof:
        return
    try:
        update_manifest(bundle.folder, change)
    except (OSError, BundleError) as exc:
        # The comparison stands, whether the bundle can be written or not (a read-only mount).
        outcome = "the old proof is still there" if disproved else "the proof is not kept"
        progress(Note(f"{outcome}, {bundle.folder} cannot be changed: {exc}"))


def _stays(proof: Proof) -> str:
    return (
        f"{proof.graph} on {proof.runtime}: {proof.searched} of these images had a part in making "
        "it, and the proof that it has shows more: it stays"
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
        searched=verdict.searched,
    )
