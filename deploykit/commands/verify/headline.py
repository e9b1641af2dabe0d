"""A verification's verdict in plain language: what it is, what it means, what it leaves open."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from deploykit.commands.verify.claims import claim_of, limit_of_stages, limits_of
from deploykit.html.words import bound, sentence_of
from deploykit.proof.policy import MAX_FLIP_RATE_BOUND
from deploykit.proof.text import photos_text
from deploykit.system.text import counted

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from deploykit.bundle.verdicts import PhotoKind
    from deploykit.commands.diagnose.text import BrokenDiagnosis
    from deploykit.commands.verify.result import Verification
    from deploykit.parity.diagnosis import LayerReport, StageReport
    from deploykit.parity.measurement import Measurement
    from deploykit.proof.verdict import Verdict

Outcome: TypeAlias = Literal["passed", "failed", "unproven"]

_WITHOUT_BOUND: dict[PhotoKind, str] = {
    "photos": "They were chosen by their margins, so no rate follows for others.",
    "golden": "They were chosen at export for their margins, so no rate follows for photos.",
    "generated": "They are generated images, and say nothing about real photos.",
}


@dataclass(frozen=True)
class Headline:
    """What stands first.

    Attributes:
        outcome: ``unproven`` where nothing failed, and nothing was shown either.
        sentence: The verdict.
        meaning: What that means and what to do, for whoever does not know the field.
        reservations: What the comparison leaves open, a sentence each.
    """

    outcome: Outcome
    sentence: str
    meaning: tuple[str, ...]
    reservations: tuple[str, ...]


def headline_of(
    verification: Verification,
    stages: StageReport | None,
    layers: Sequence[LayerReport],
    broken_off: Sequence[BrokenDiagnosis] = (),
) -> Headline:
    """Put everything that was found into one verdict; what failed anywhere fails the whole.

    Args:
        verification: What was found.
        stages: The walk over the stages; None where none was made.
        layers: The walks over the nodes.
        broken_off: The walks that could not be made.
    """
    claim = claim_of(verification)
    blame = [
        *_blame(stages, layers),
        *(
            f"The walk over the {walk.name} could not be made: {walk.message}"
            for walk in broken_off
        ),
    ]
    outcomes = [outcome_of(verdict) for verdict in verification.verdicts]
    outcome: Outcome
    if "failed" in outcomes:
        outcome, (sentence, *meaning) = "failed", _failure(verification, blame)
    elif blame and verification.passed:
        outcome = "failed"
        sentence, *meaning = _passed_but_blamed(verification, stages, layers, blame)
    elif blame:
        outcome = "failed"
        sentence = "A fault was found on the way to the deployed model."
        meaning = [*blame, f"Nothing shows that it {claim.holds}."]
    elif not verification.passed:
        outcome, (sentence, *meaning) = "unproven", _nothing_shown(verification)
    else:
        flips = any(verdict.measurement.flips for verdict in verification.verdicts)
        outcome = "passed"
        deployed = "The deployed model"
        worst = worst_of(verification.verdicts)
        if (worst.flip_rate_bound or 0) > MAX_FLIP_RATE_BOUND:  # so few photos are named
            deployed = f"On {counted(worst.decidable, _noun(verification))}, the deployed model"
        sentence = f"{deployed} {claim.holds}"
        sentence += ", within what is allowed." if flips else "."
        meaning = _meaning(verification)
    reservations = (*limits_of(verification, stages), *_reservations(verification))
    left_open = tuple(each for each in reservations if each not in meaning)
    return Headline(outcome, sentence, tuple(meaning), left_open)


def outcome_of(verdict: Verdict) -> Outcome:
    """A verdict that did not pass has failed where the numbers themselves break the tolerance."""
    if verdict.passed:
        return "passed"
    return "failed" if verdict.failed else "unproven"


def worst_of(verdicts: Sequence[Verdict]) -> Measurement:
    """The measurement that shows most changes, or is least sure of none.

    Args:
        verdicts: At least one.
    """
    return max(
        (verdict.measurement for verdict in verdicts),
        key=lambda found: (found.flip_rate, found.flip_rate_bound or 0.0),
    )


def _blame(stages: StageReport | None, layers: Sequence[LayerReport]) -> list[str]:
    """Who is to blame, a sentence each; nothing when every walk that was made passed."""
    sentences = []
    if stages is not None and not stages.passed:
        sentences += _blamed_stages(stages)
    for layer in layers:
        if not layer.passed:
            sentences.append(f"To blame in {layer.candidate.graph}: {_blamed_node(layer)}.")
    return sentences


def _passed_but_blamed(
    verification: Verification,
    stages: StageReport | None,
    layers: Sequence[LayerReport],
    blame: Sequence[str],
) -> list[str]:
    """The verdict and its meaning where every candidate passed, and a walk did not."""
    holds = f"The deployed model {claim_of(verification).holds}"
    if limit := limit_of_stages(verification, stages):
        fault = f"{holds} with the recorded preprocessing, but a fault was found."
        return [fault, *blame, limit]
    meaning = [f"{holds}, but a walk to find faults did not pass.", *blame]
    first = None if stages is None else stages.first
    if first is not None or not all(layer.passed for layer in layers):
        meaning.append("These photos bear it; others may not.")
    return meaning


def _blamed_stages(stages: StageReport) -> list[str]:
    """The faults that have a name, else the first stage that left its tolerance."""
    blamed = [(finding.stage, finding.message) for finding in stages.findings]
    if not blamed and stages.first is not None:
        blamed = [(stages.first.stage, stages.first.change)]
    return [f"To blame: {stage}. {sentence_of(what)}" for stage, what in blamed] or [
        "The walk over the stages compared nothing."
    ]


def _blamed_node(layer: LayerReport) -> str:
    if layer.first is not None:
        of = f" of {layer.first.module}" if layer.first.module else ""
        return f"{layer.first.node} ({layer.first.operator}{of})"
    return layer.differences[0] if layer.differences else "no node was compared"


def _nothing_shown(verification: Verification) -> list[str]:
    """The verdict and its meaning where nothing failed, and nothing was shown either."""
    doubtful = next((verdict for verdict in verification.verdicts if not verdict.passed), None)
    what = "the deployed model"
    if doubtful is not None and len(verification.verdicts) > 1:
        what = doubtful.candidate.graph
    return [
        f"Nothing shows whether {what} {claim_of(verification).holds}.",
        sentence_of("no candidate was compared" if doubtful is None else doubtful.reasons[0]),
        "That is no proof of a fault, and none of the opposite.",
    ]


def _failure(verification: Verification, blame: Sequence[str]) -> list[str]:
    """The verdict and its meaning where the numbers break a tolerance."""
    broken = [verdict for verdict in verification.verdicts if outcome_of(verdict) == "failed"]
    worst = max(broken, key=lambda verdict: verdict.measurement.flips)
    found, graph = worst.measurement, worst.candidate.graph
    if any(verdict.measurement.non_finite for verdict in broken):
        sentence = "Some of the answers are no numbers at all."
    elif found.flips:
        sentence = f"The deployed model {claim_of(verification).fails}."
    else:
        sentence = "The deployed model's answers moved further than is allowed."
    if found.flips:
        what = f"{found.flips:,} of {counted(found.decidable, 'decision')} changed in {graph}."
    else:
        what = f"In {graph}, {worst.reasons[0]}."
    names = " and ".join(dict.fromkeys(verdict.candidate.graph for verdict in broken))
    advice = f"Do not deploy {names if len(verification.verdicts) > 1 else 'it'} as it is."
    how = (
        "To find out who is to blame, run deploykit verify --stages, which names the step, and "
        "--layers, which names the node."
    )
    return [sentence, what, advice, *(blame or [how])]


def _meaning(verification: Verification) -> list[str]:
    worst = worst_of(verification.verdicts)
    count, claim = len(verification.verdicts), claim_of(verification)
    deployed = "the deployed one" if count == 1 else f"each of the {count} deployed ones"
    if worst.flips:
        changed = counted(worst.decidable, "decision")
        decided = f"{worst.flips:,} of {changed} changed, which is allowed."
    else:
        kind = _noun(verification)
        judged = " that could be judged" if worst.undecidable else ""
        photos = f"The one {kind}" if worst.decidable == 1 else f"All {worst.decidable:,} {kind}s"
        decided = (
            f"{photos}{judged} got the same answer from {claim.reference} and from {deployed}."
        )
    if worst.flip_rate_bound is None:
        return [decided, _WITHOUT_BOUND[verification.photos.kind]]
    return [
        decided,
        f"If the photos to come are like these, at most {bound(worst.flip_rate_bound)} of the "
        f"decisions will differ from those of {claim.reference}, with 95\u202f% confidence.",
    ]


def _reservations(verification: Verification) -> tuple[str, ...]:
    """What else no verdict, passed or not, says."""
    sentences: list[str] = []
    if verification.photos.duplicates or verification.photos.calibration:
        sentences.append(f"Compared were {photos_text(verification.photos)}.")
    for verdict in verification.verdicts:
        sentences += _reservations_of(verdict, _noun(verification))
    if verification.photos.kind != "photos":
        sentences.append(
            f"It was compared on {photos_text(verification.photos)}; what counts is your photos."
        )
    if verification.unreadable:
        unread = counted(verification.unreadable, "more photo", "more photos")
        sentences.append(f"{unread} could not be read, and so not be compared.")
    if verification.mining is not None:
        sentences += verification.mining.sentences
    elif not verification.accuracy:
        sentences.append(
            f"Whether the answers are right is another question: these {_noun(verification)}s "
            "have no labels."
        )
    return tuple(sentences)


def _reservations_of(verdict: Verdict, photo: str) -> Iterator[str]:
    spec, found = verdict.candidate, verdict.measurement
    if verdict.kind == "rehearsed":
        yield (
            f"{spec.graph} was rehearsed on a model of {spec.precision} hardware, and has not run "
            "on the hardware itself: verify it again there."
        )
    if spec.tf32:
        yield f"{spec.graph} ran with TensorFloat-32, which shows nothing about plain FP32."
    if found.undecidable:
        yield (
            f"{found.undecidable:,} of {counted(found.images, photo)} "
            f"{'is' if found.undecidable == 1 else 'are'} too close to call in {spec.precision} "
            f"({spec.graph}), and not judged."
        )


def _noun(verification: Verification) -> str:
    return "photo" if verification.photos.kind == "photos" else "image"
