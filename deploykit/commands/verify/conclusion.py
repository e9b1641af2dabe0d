"""A verification in plain words: the one place that text, JSON, page and JUnit take them from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.html.words import sentence_of
from deploykit.proof.policy import MAX_FLIP_RATE_BOUND
from deploykit.proof.text import images_text
from deploykit.system.text import counted, rate_digits

if TYPE_CHECKING:
    from deploykit.bundle.verdicts import ImageKind
    from deploykit.commands.verify.result import Verification
    from deploykit.parity.diagnosis import LayerReport, Stage, StageReport
    from deploykit.parity.measurement import Measurement
    from deploykit.proof.verdict import Verdict

Outcome: TypeAlias = Literal["passed", "failed", "unproven"]

RECORDED_PREPROCESSING_ONLY = (
    "This holds for images that go through the recorded preprocessing: the diagnosis by stage "
    "found a fault before it."
)
_PREPROCESSING: frozenset[Stage] = frozenset(
    {"decode", "resize", "preprocessing", "colour", "normalise"}
)
_NOTHING = "no candidate was compared"
_WITHOUT_BOUND: dict[ImageKind, str] = {
    "photos": "They were chosen by their margins, so no rate follows for others.",
    "golden": "They were chosen at export for their margins, so no rate follows for photos.",
    "generated": "They are generated images, and say nothing about real photos.",
}


@dataclass(frozen=True)
class Conclusion:
    """What a verification shows.

    Attributes:
        outcome: ``unproven`` where nothing failed, and nothing was shown either.
        sentence: The verdict.
        reasons: What it rests on and what to do, a sentence each.
        limits: What the comparison does not show, a sentence each.
    """

    outcome: Outcome
    sentence: str
    reasons: tuple[str, ...]
    limits: tuple[str, ...]


def conclusion_of(found: Verification) -> Conclusion:
    """Put everything that was found into one verdict; a failure anywhere fails the whole."""
    faults = [*_faults(found)]
    broken = [verdict for verdict in found.verdicts if verdict.failed]
    does, _ = _claims(found)
    outcome: Outcome = "failed"
    if broken:
        sentence, reasons = _failure(found, broken, faults)
    elif faults and found.candidates_passed:
        sentence, reasons = f"The deployed model {does}, but a fault was found.", faults
    elif faults:
        sentence = "A fault was found on the way to the deployed model."
        reasons = [*faults, f"Nothing shows whether it {does}."]
    elif not found.candidates_passed:
        outcome = "unproven"
        sentence = f"Nothing shows whether the deployed model {does}."
        reasons = [
            sentence_of(
                next((each.reasons[0] for each in found.verdicts if each.reasons), _NOTHING)
            ),
            "That proves neither a fault nor its absence.",
        ]
    else:
        outcome = "passed"
        worst = worst_of(found)
        few = (worst.flip_rate_bound or 0) > MAX_FLIP_RATE_BOUND  # so few images are named
        where = f"On {counted(worst.decidable, noun_of(found))}, the" if few else "The"
        within = ", within what is allowed" if worst.flips else ""
        sentence = f"{where} deployed model {does}{within}."
        reasons = [*_decisions(found, worst)]
    return Conclusion(outcome, sentence, tuple(reasons), tuple(_limits(found)))


def outcome_of(verdict: Verdict) -> Outcome:
    """A verdict that did not pass has failed where the numbers themselves break the tolerance."""
    if verdict.passed:
        return "passed"
    return "failed" if verdict.failed else "unproven"


def worst_of(found: Verification) -> Measurement:
    """The measurement that shows most changes, or is least sure of none."""
    return max(
        (verdict.measurement for verdict in found.verdicts),
        key=lambda each: (each.flip_rate, each.flip_rate_bound or 0.0),
    )


def reference_name(found: Verification) -> str:
    """What the candidates were compared with, for a sentence: ``the trained model``."""
    if not found.reference.is_recorded:
        return f"the {found.reference.description}"
    names = {"module": "the trained model", "graph": CANONICAL_GRAPH, "golden": "the export"}
    return names[found.reference.kind]


def noun_of(found: Verification) -> str:
    """What one of the compared images is called."""
    return "photo" if found.images.kind == "photos" else "image"


def _claims(found: Verification) -> tuple[str, str]:
    """What a candidate that passed does, and what one with changed decisions does."""
    if found.reference.kind == "golden":
        answers = "the answers recorded at export"
        return f"gives {answers}", f"does not give {answers}"
    reference = reference_name(found)
    return f"decides as {reference} does", f"does not decide as {reference} does"


def _faults(found: Verification) -> Iterator[str]:
    """What the diagnosis found, a sentence each."""
    stages = found.diagnosis.stages
    if stages is not None and not stages.passed:
        faults = [(finding.stage, finding.message) for finding in stages.findings]
        if not faults and stages.first is not None:
            faults = [(stages.first.stage, stages.first.change)]
        for stage, what in faults:
            yield f"The fault is in the stage {stage}: {what.rstrip('.')}."
        if not faults:
            yield "The diagnosis by stage compared nothing."
    if found.diagnosis.layers == ():
        yield "The diagnosis by node compared nothing."
    for layer in found.diagnosis.layers or ():
        if not layer.passed:
            yield f"The fault in {layer.candidate.graph}: {_node_at_fault(layer)}."
    for part in found.diagnosis.broken_off:
        yield f"The diagnosis of the {part.name} could not be made: {part.message}"


def _node_at_fault(layer: LayerReport) -> str:
    if layer.first is not None:
        of = f" of {layer.first.module}" if layer.first.module else ""
        return f"{layer.first.node} ({layer.first.operator}{of})"
    return layer.differences[0] if layer.differences else "no node was compared"


def _failure(
    found: Verification, broken: list[Verdict], faults: list[str]
) -> tuple[str, list[str]]:
    """The verdict and its reasons where the numbers break a tolerance."""
    worst = max(broken, key=lambda verdict: verdict.measurement.flips)
    flips, graph = worst.measurement.flips, worst.candidate.graph
    what = f"In {graph}, {worst.reasons[0]}."
    if flips:
        decisions = counted(worst.measurement.decidable, "decision")
        what = f"{flips:,} of {decisions} changed in {graph}."
    if any(verdict.measurement.non_finite for verdict in broken):
        sentence = "Some of the answers are NaN or infinite."
    elif flips:
        sentence = f"The deployed model {_claims(found)[1]}."
    else:
        sentence = "The deployed model's answers moved further than is allowed."
    names = " and ".join(dict.fromkeys(verdict.candidate.graph for verdict in broken))
    advice = f"Do not deploy {names if len(found.verdicts) > 1 else 'it'} as it is."
    how = "deploykit verify --stages names the stage at fault, and --layers the node."
    return sentence, [what, advice, *(faults or [how])]


def _decisions(found: Verification, worst: Measurement) -> Iterator[str]:
    """What was decided where all candidates passed, and what follows for other images."""
    count, noun, reference = len(found.verdicts), noun_of(found), reference_name(found)
    if worst.flips:
        changed = counted(worst.decidable, "decision")
        yield f"{worst.flips:,} of {changed} changed, which is allowed."
    else:
        deployed = "the deployed one" if count == 1 else f"each of the {count} deployed ones"
        judged = " that could be judged" if worst.undecidable else ""
        images = f"The one {noun}" if worst.decidable == 1 else f"All {worst.decidable:,} {noun}s"
        yield f"{images}{judged} got the same answer from {reference} and from {deployed}."
    if worst.flip_rate_bound is None:
        yield _WITHOUT_BOUND[found.images.kind]
        return
    yield (
        f"If the photos to come are like these, at most {rate_digits(worst.flip_rate_bound)} % of "
        f"the decisions will differ from those of {reference}, with 95 % confidence."
    )


def _limits(found: Verification) -> Iterator[str]:
    """What the comparison does not show, a sentence each."""
    reference, noun = found.reference, noun_of(found)
    if not reference.is_recorded:
        yield "That is no proof of this bundle, which was exported from other weights or code."
    elif reference.kind == "graph":
        why = f", because {reference.module_reason}" if reference.module_reason else ""
        yield f"The trained model itself was not asked: {CANONICAL_GRAPH} stands in for it{why}."
    elif reference.kind == "golden":
        yield (
            "It was compared with a few recorded answers, not with the trained model: that shows "
            "that the files and the runtime are whole, not how often decisions differ."
        )
    if any(verdict.passed for verdict in found.verdicts) and _faulty_preprocessing(
        found.diagnosis.stages
    ):
        yield RECORDED_PREPROCESSING_ONLY
    for verdict in found.verdicts:
        yield from _limits_of(verdict, noun)
    if found.images.kind != "photos":
        yield f"It was compared on {images_text(found.images)}; what counts is your photos."
    if found.unreadable:
        more = counted(found.unreadable, "more photo", "more photos")
        yield f"{more} could not be read, and so not be compared."
    if found.mining is not None:
        yield from found.mining.sentences
    elif not found.accuracy:
        yield (f"Whether the answers are right is another question: these {noun}s have no labels.")


def _limits_of(verdict: Verdict, noun: str) -> Iterator[str]:
    spec, measured = verdict.candidate, verdict.measurement
    if verdict.kind == "rehearsed":
        yield (
            f"{spec.graph} was rehearsed on a model of {spec.precision} hardware, and has not "
            "run on the hardware itself: verify it again there."
        )
    if spec.tf32:
        yield f"{spec.graph} ran with TensorFloat-32, which shows nothing about plain FP32."
    if measured.undecidable:
        yield (
            f"{measured.undecidable:,} of {counted(measured.images, noun)} "
            f"{'is' if measured.undecidable == 1 else 'are'} undecidable in {spec.precision} "
            f"({spec.graph}), and not judged."
        )


def _faulty_preprocessing(stages: StageReport | None) -> bool:
    """Whether what comes before the network is at fault; a runtime says nothing about that."""
    if stages is None:
        return False
    faulty = {finding.stage for finding in stages.findings}
    faulty.update(step.stage for step in stages.steps if step.reasons)
    return bool(faulty & _PREPROCESSING)
