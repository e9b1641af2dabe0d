"""Run candidates against a reference, judge what was measured, and keep what passed."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TypeAlias

import msgspec

from deploykit.bundle.folder import Bundle
from deploykit.bundle.manifest import Manifest, read_manifest, update_manifest
from deploykit.bundle.verdicts import ImageKind, ImageSet, KeptVerdict, ProofKind
from deploykit.errors import BundleError
from deploykit.parity.answers import Answers
from deploykit.parity.budget import Budget
from deploykit.parity.compare import (
    MAX_BATCH_SIZE,
    NamedBatch,
    ask_sessions,
    batch_sizes,
    measure_answers,
    regroup,
)
from deploykit.parity.measurement import Measurement
from deploykit.parity.tolerance import Population, Tolerance, tolerance_for
from deploykit.proof.policy import budgets_of
from deploykit.proof.reference import Reference
from deploykit.runtime.opener import REHEARSAL
from deploykit.specs.model import Labels
from deploykit.specs.session import Logits, Place, Session, SessionSpec
from deploykit.specs.value import Value
from deploykit.system.deps import installed_versions
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.text import now

VerdictKind: TypeAlias = ProofKind | Literal["served", "told"]
_KINDS: dict[Place, VerdictKind] = {"here": "executed", "server": "served", "table": "told"}


class Verdict(Value, frozen=True):
    """What was measured of one candidate, what is allowed, and the reasons why it did not pass.

    It failed if the numbers exceed the tolerance. It is unproven, neither passed nor failed, if the
    images show too little. Only a failure takes away a proof that there is.

    Attributes:
        candidate: What ran.
        kind: ``executed`` on the runtime itself or ``rehearsed`` on a model of the hardware; by a
            server ``served``, and of another tool's table ``told``. These two say nothing about the
            bundle's own files, and prove none of them.
        measurement: What was found.
        tolerance: What is allowed.
        reasons: A sentence for each way in which it failed; empty when it passed.
        population: What the images were chosen from by their margins; None if they were not.
        extremes: Those of the reasons that extreme images give.
        budget: What the user allows, which made the tolerance; None for the precision's own.
        mislabelled: That its classes have other names or another order, a sentence; "" if not.
    """

    candidate: SessionSpec
    kind: VerdictKind
    measurement: Measurement
    tolerance: Tolerance
    reasons: tuple[str, ...]
    population: Population | None = None
    extremes: tuple[str, ...] = ()
    budget: Budget | None = None
    mislabelled: str = ""

    @property
    def passed(self) -> bool:
        """Whether there is no reason against it."""
        return not self.reasons

    @property
    def failed(self) -> bool:
        """Whether the compared images exceed the tolerance, whatever the skipped images do."""
        return bool(self.exceeded or self.extremes or self.mislabelled)

    @property
    def exceeded(self) -> tuple[str, ...]:
        """How the compared images exceed the tolerance, a sentence each."""
        return self.tolerance.exceeded(self.measurement, self._compared)

    @property
    def _compared(self) -> Population | None:
        """The population, as if those of it that were not compared changed nothing."""
        among = self.population
        return among and msgspec.structs.replace(among, others_hold=True)

    @property
    def changes_too_many(self) -> bool:
        """Whether more decisions of the compared images changed than may."""
        return self.tolerance.changes_too_many(self.measurement, self._compared)

    @property
    def among(self) -> int:
        """The number of images that it speaks for."""
        return self.measurement.images if self.population is None else self.population.images

    def refused(self, reason: str) -> Verdict:
        """A copy with one more reason against it."""
        return msgspec.structs.replace(self, reasons=(*self.reasons, reason))

    def with_labels(self, reason: str) -> Verdict:
        """A copy with what speaks against the names that a server gives the classes, if anything.

        Args:
            reason: A sentence; "" for nothing.
        """
        if not reason:
            return self
        return msgspec.structs.replace(self, reasons=(*self.reasons, reason), mislabelled=reason)

    def with_extremes(self, reasons: tuple[str, ...]) -> Verdict:
        """A copy with what extreme images show against the candidate."""
        every = (*self.reasons, *reasons)
        return msgspec.structs.replace(self, reasons=every, extremes=reasons)


def judge_sessions(
    reference: Session | Logits,
    candidates: Sequence[Session],
    images: Iterable[NamedBatch],
    labels: Labels,
    progress: Progress,
    *,
    count: int,
    kind: ImageKind,
    expected: Mapping[str, Collection[str]] = MappingProxyType({}),
    budgets: Mapping[str, Budget] = MappingProxyType({}),
) -> tuple[Verdict, ...]:
    """Compare candidates with a reference, in batches of several sizes, and judge them.

    Args:
        reference: See :func:`answer_images`, as the arguments below that are not told here.
        candidates: What is compared with it.
        images: The images.
        labels: What the logits mean.
        progress: Called after every batch.
        count: How many images there are.
        kind: See :func:`judge_answers`, as the arguments below.
        expected: The classes that are known.
        budgets: What the user allows.
    """
    answers = answer_images(reference, candidates, images, labels, progress, count=count)
    specs = [candidate.spec for candidate in candidates]
    return judge_answers(answers, specs, labels, kind=kind, expected=expected, budgets=budgets)


def answer_images(
    reference: Session | Logits,
    candidates: Sequence[Session],
    images: Iterable[NamedBatch],
    labels: Labels,
    progress: Progress,
    *,
    count: int,
) -> Answers:
    """Let a reference and candidates answer the same images, in batches of several sizes.

    Args:
        reference: What is right by definition; or what it answered to these images, (N, K).
        candidates: What is compared with it.
        images: The images.
        labels: What the logits mean.
        progress: Called after every batch; it tells how many changed their decision so far.
        count: How many images there are, at most.
    """

    def on_batch(done: int, changed: int) -> None:
        detail = f"comparing, {changed} changed their {labels.head.decided}" if changed else ""
        progress(Step("comparing", done, count, detail))

    limits = [each.spec.largest_batch for each in candidates if each.spec.largest_batch]
    sizes = batch_sizes(count, min(limits, default=MAX_BATCH_SIZE))
    return ask_sessions(reference, candidates, regroup(images, sizes), labels, on_batch)


def judge_answers(
    answers: Answers,
    candidates: Sequence[SessionSpec],
    labels: Labels,
    *,
    kind: ImageKind = "photos",
    expected: Mapping[str, Collection[str]] = MappingProxyType({}),
    budgets: Mapping[str, Budget] = MappingProxyType({}),
) -> tuple[Verdict, ...]:
    """Measure each candidate's answers, and judge it.

    Args:
        answers: Of the reference and the candidates.
        candidates: Whose answers they are, in the order of ``answers.candidates``.
        labels: What the logits mean.
        kind: Whose images they are. Only of the user's photos are others like them to be expected,
            for which a bound holds.
        expected: The classes of those images of which they are known, by the images' names.
        budgets: What the user allows, by the graph or engine; the precision's own tolerance for
            those that are not in it.
    """
    measurements = measure_answers(
        answers, candidates, labels, bounded=kind == "photos", expected=expected
    )
    return tuple(
        judge(each, found, budget=budgets.get(each.graph))
        for each, found in zip(candidates, measurements, strict=True)
    )


def judge(
    candidate: SessionSpec,
    measurement: Measurement,
    population: Population | None = None,
    budget: Budget | None = None,
) -> Verdict:
    """Hold a measurement against what is allowed.

    Args:
        candidate: What ran.
        measurement: What was found.
        population: What the images were chosen from by their margins; None if they were not. Such
            images tell nothing about an accuracy, and by none are they judged.
        budget: What the user allows below FP32; None for what the precision allows.
    """
    if candidate.precision == "fp32" and candidate.place != "table":
        budget = None
    tolerance = tolerance_for(candidate.precision, budget, candidate.gives)
    if population is not None and budget is not None:
        tolerance = msgspec.structs.replace(tolerance, max_accuracy_drop=None)
        budget = budget.of_flips
    return Verdict(
        candidate=candidate,
        kind="rehearsed" if candidate.runtime == REHEARSAL else _KINDS[candidate.place],
        measurement=measurement,
        tolerance=tolerance,
        reasons=tolerance.reasons(measurement, population),
        population=population,
        budget=budget,
    )


def _by_own_rule(verdict: Verdict, budget: Budget | None) -> Verdict:
    """The same by what its graph was made within, or by its precision's tolerance where by none."""
    own = judge(verdict.candidate, verdict.measurement, verdict.population, budget)
    return own.with_extremes(verdict.extremes)


def keep_verdicts(
    bundle: Bundle,
    verdicts: Sequence[Verdict],
    reference: Reference,
    images: ImageSet,
    progress: Progress,
) -> None:
    """Put into the manifest what passed, and what failed: that takes an earlier proof away.

    What showed too little either way is not kept, nor what passed on images that were chosen by
    their margins, nor what ran in TF32: of plain FP32 that shows nothing. That a self-test passed
    is kept only where one has failed. What failed within a budget that the user named is judged by
    what its graph was made by, and kept only if it fails by that, too.

    Args:
        bundle: The bundle, as it was when it was measured.
        verdicts: On its graphs and engines.
        reference: What they were compared with.
        images: On which images.
        progress: Called with a note when the bundle cannot be changed, or a failure is not kept.
    """
    measured = bundle.manifest.files
    made_within = budgets_of(
        bundle.manifest, [each.candidate.graph for each in verdicts], images.kind
    )
    kept = []
    for each in verdicts:
        verdict = each
        if verdict.failed and verdict.budget is not None:
            verdict = _by_own_rule(verdict, made_within.get(verdict.candidate.graph))
            if not verdict.failed:
                progress(
                    Note(
                        f"{verdict.candidate.title}: that it fails is not kept, as it keeps to "
                        "what it was made by"
                    )
                )
                continue
        if not verdict.candidate.tf32 and (
            verdict.failed or (verdict.passed and verdict.population is None)
        ):
            sha256 = measured[verdict.candidate.graph].sha256
            kept.append(kept_verdict(verdict, sha256, reference, images))
    add_verdicts(bundle, kept, progress, only_mending=reference.kind == "golden")


def add_verdicts(
    bundle: Bundle,
    kept: Sequence[KeptVerdict],
    progress: Progress,
    *,
    only_mending: bool = False,
) -> None:
    """Put verdicts into the manifest, or say why they are not kept: a bundle may be read-only.

    Args:
        bundle: The bundle, as it was when it was measured.
        kept: The verdicts.
        progress: Called with a note when the bundle cannot be changed.
        only_mending: Whether one that passed is put only in the place of one that failed.
    """

    def change(manifest: Manifest) -> Manifest:
        failed = [each for each in manifest.verdicts if not each.passed]
        for each in kept:
            record = manifest.files.get(each.graph)
            mends = any(each.replaces(old) for old in failed)
            # Else it was made anew meanwhile: this verdict is about another file.
            same = record is not None and record.sha256 == each.graph_sha256
            if same and (mends or not (each.passed and only_mending)):
                manifest = manifest.with_verdict(each)
        return manifest

    try:
        now_there = read_manifest(bundle.folder)
        if change(now_there) != now_there:  # or a bundle that is read-only would be complained of
            update_manifest(bundle.folder, change)
    except BundleError as exc:
        failures = any(not each.passed for each in kept)
        outcome = "an earlier proof is still there" if failures else "the proof is not kept"
        progress(Note(f"{outcome}: {exc.message}"))


def kept_verdict(
    verdict: Verdict, graph_sha256: str, reference: Reference, images: ImageSet
) -> KeptVerdict:
    """Turn a verdict into what the manifest keeps.

    Args:
        verdict: Of a graph or an engine; a proof if it passed.
        graph_sha256: Of the file that was measured.
        reference: What it was compared with.
        images: On which images.

    Raises:
        ValueError: What ran is no file of a bundle here.
    """
    spec = verdict.candidate
    if verdict.kind == "served" or verdict.kind == "told":
        raise ValueError(f"what {spec.title} answers proves no file of a bundle")
    return KeptVerdict(
        graph=spec.graph,
        graph_sha256=graph_sha256,
        runtime=spec.runtime,
        device=spec.device,
        precision=spec.precision,
        kind=verdict.kind,
        reference=reference.description,
        reference_kind=reference.kind,
        images=images,
        measurement=verdict.measurement,
        tolerance=verdict.tolerance,
        created=now(),
        versions=installed_versions(),
        among=verdict.among,
        reasons=verdict.reasons,
        budget=verdict.budget,
    )
