"""A verification in plain words: the one place that text, JSON, page and JUnit take them from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from deploykit.bundle.folder import CANONICAL_GRAPH
from deploykit.html.words import sentence_of
from deploykit.parity.tolerance import MAX_FLIP_RATE_BOUND
from deploykit.proof.text import (
    Outcome,
    budgets_text,
    decisions_text,
    few_images_text,
    images_text,
    limits_text,
    names_text,
    said_once,
    stand_in_text,
    uniform_text,
)
from deploykit.system.text import counted

if TYPE_CHECKING:
    from deploykit.commands.verify.result import Verification
    from deploykit.parity.diagnosis import LayerReport, Stage, StageReport
    from deploykit.proof.verdict import Verdict

RECORDED_PREPROCESSING_ONLY = (
    "This holds for images that go through the recorded preprocessing: the diagnosis by stage "
    "found a fault before it."
)
_PREPROCESSING: frozenset[Stage] = frozenset(
    {"decode", "resize", "preprocessing", "colour", "normalise"}
)
_NOTHING = "no candidate was compared"
_NAMES_THE_FAULT = "This names the stage at fault; --layers beside it, the node"
_TRIES_CHANGES = "This tries which usual change gives these answers"


@dataclass(frozen=True)
class Conclusion:
    """What a verification shows.

    Attributes:
        outcome: ``unproven`` where nothing failed, and nothing was shown either.
        sentence: The verdict.
        reasons: What it rests on and what to do, a sentence each.
        limits: What the comparison does not show, a sentence each.
        stand_in: That the trained network itself was not asked, and why; "" where it was.
        command: The whole command that asks it; "" where none can.
        diagnosis: The whole command that finds the fault; "" where nothing failed, or it is found.
    """

    outcome: Outcome
    sentence: str
    reasons: tuple[str, ...]
    limits: tuple[str, ...]
    stand_in: str = ""
    command: str = ""
    diagnosis: str = ""


def conclusion_of(found: Verification) -> Conclusion:
    """Put everything that was found into one verdict; a failure anywhere fails the whole."""
    faults = [*_faults(found)]
    broken = [verdict for verdict in found.verdicts if verdict.failed]
    open_still = [verdict for verdict in found.verdicts if not (verdict.passed or verdict.failed)]
    passed = [verdict for verdict in found.verdicts if verdict.passed]
    does, _ = _claims(found)
    outcome: Outcome = "failed"
    if broken:
        sentence, reasons = _failure(found, broken, faults)
    elif faults and found.candidates_passed:
        sentence, reasons = f"{_subject(found)} {does}, but a fault was found.", faults
    elif faults:
        sentence = "A fault was found on the way to the deployed model."
        reasons = [*faults, f"Nothing shows whether it {does}."]
    elif not found.candidates_passed:
        outcome = "unproven"
        which = names_text(open_still) if passed else _subject(found, capital=False)
        sentence = f"Nothing shows whether {which} {does}."
        why = [each.reasons[0] for each in open_still] or [_NOTHING]
        reasons = [*map(sentence_of, dict.fromkeys(why))]
        reasons.append("That proves neither a fault nor its absence.")
    else:
        outcome = "passed"
        total = totals_of(found.verdicts)
        few = (total.bound or 0) > MAX_FLIP_RATE_BOUND  # so few images are named
        where = ""
        if few:
            where = f"On {counted(total.images, noun_of(found))}, "
        subject = _subject(found, capital=not few)
        allowed = "the budget" if any(each.budget for each in found.verdicts) else "what is allowed"
        within = f", within {allowed}" if total.flips else ""
        sentence = f"{where}{subject} {does}{within}."
        reasons = [
            *decisions_text(found.verdicts, reference_name(found), found.images.kind),
            *(f"{line}." for line in budgets_text(found.verdicts)),
            *few_images_text(found.verdicts, found.images),
        ]
    if found.verdicts and found.mining is None:
        reasons += filter(None, [uniform_text(found.verdicts[0].measurement, found.images.kind)])
    photos = ("--images", found.images.source) if found.images.kind == "photos" else ()
    return Conclusion(
        outcome,
        sentence,
        tuple(reasons),
        tuple(_limits(found)),
        *_stand_in(found),
        found.command("--stages", *photos) if _asks_for_stages(found, broken, faults) else "",
    )


def _asks_for_stages(found: Verification, broken: Sequence[Verdict], faults: Sequence[str]) -> bool:
    """Whether the diagnosis by stage may find what is at fault, and has not been made."""
    tried = bool(found.diagnosis.explanations)
    is_possible = not found.options or found.images.kind == "photos"
    return bool(broken) and not faults and not tried and is_possible


def _subject(found: Verification, *, capital: bool = True) -> str:
    """What was compared: ``The deployed model``."""
    if found.table is not None:
        return found.table.name
    article = "The" if capital else "the"
    return f"{article} {'server' if found.options else 'deployed model'}"


def names_the_fault(found: Verification) -> str:
    """What the command of :attr:`Conclusion.diagnosis` does."""
    return _TRIES_CHANGES if found.options else _NAMES_THE_FAULT


def _stand_in(found: Verification) -> tuple[str, str]:
    """What must be known first where the trained network was not asked; see Conclusion."""
    reference = found.reference
    if reference.kind != "graph":
        return "", ""
    images = ("--images", found.images.source) if found.images.kind == "photos" else ()
    command = found.command(*reference.module_options, *images) if reference.module_options else ""
    return stand_in_text(reference.module_reason), command


@dataclass(frozen=True)
class Totals:
    """What the measurements of all candidates show at worst.

    Attributes:
        images: How many images were compared.
        flips: The most flips of one candidate.
        undecidable_flips: The most undecidable images whose decision one candidate changed.
        bound: The largest bound; None where no candidate has one.
        bounded: How many candidates have a bound.
    """

    images: int
    flips: int
    undecidable_flips: int
    bound: float | None
    bounded: int


def totals_of(verdicts: Sequence[Verdict]) -> Totals:
    """The worst of each number, of one verdict at least."""
    found = [verdict.measurement for verdict in verdicts]
    bounds = [each.flip_rate_bound for each in found if each.flip_rate_bound is not None]
    return Totals(
        images=found[0].images,
        flips=max(each.flips for each in found),
        undecidable_flips=max(each.undecidable_flips for each in found),
        bound=max(bounds, default=None),
        bounded=len(bounds),
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
        yield from _faulty_stages(stages)
    if found.diagnosis.layers == ():
        yield "The diagnosis by node compared nothing."
    for layer in found.diagnosis.layers or ():
        if not layer.passed:
            yield f"The fault in {layer.candidate.graph}: {_node_at_fault(layer)}."
    for cause in filter(None, (each.cause for each in found.diagnosis.explanations)):
        yield f"With one change it is explained: {cause.change}."
    for part in found.diagnosis.broken_off:
        yield f"The diagnosis of the {part.name} could not be made: {part.message}"


def _faulty_stages(stages: StageReport) -> Iterator[str]:
    faults = [(finding.stage, finding.message) for finding in stages.findings]
    if not faults and stages.first is not None:
        faults = [(stages.first.stage, stages.first.change)]
    for stage, what in faults:
        yield f"The fault is in the stage {stage}: {what.rstrip('.')}."
    if not faults:
        yield "The diagnosis by stage compared nothing."


def _node_at_fault(layer: LayerReport) -> str:
    if layer.first is not None:
        of = f" of {layer.first.module}" if layer.first.module else ""
        return f"{layer.first.node} ({layer.first.operator}{of})"
    return layer.differences[0] if layer.differences else "no node was compared"


def _failure(
    found: Verification, broken: list[Verdict], faults: list[str]
) -> tuple[str, list[str]]:
    """The verdict and its reasons where the numbers break a tolerance."""
    if any(verdict.measurement.non_finite for verdict in broken):
        sentence = "Some of the answers are NaN or infinite."
    elif any(verdict.changes_too_many for verdict in broken):
        sentence = f"{_subject(found)} {_claims(found)[1]}."
    elif any(verdict.exceeded for verdict in broken):
        sentence = f"{_subject(found)}'s answers moved further than is allowed."
    elif any(verdict.mislabelled for verdict in broken):
        sentence = f"{_subject(found)} gives the classes other names, or another order."
    else:
        sentence = f"{_subject(found)} fails on extreme images, which no folder of photos has."
    told = said_once((verdict.reasons[0], verdict) for verdict in broken)
    what = [f"In {names_text(of)}, {reason}." for reason, of in told]
    them = names_text(broken) if len(found.verdicts) > 1 else "it"
    advice = f"Do not deploy {them} as {'it is' if len(broken) == 1 else 'they are'}."
    if found.table is not None:
        advice = "The two do not do the same to these photos, or are not of the same network."
    return sentence, [*what, *_before_the_network(found, broken), advice, *faults]


def _before_the_network(found: Verification, broken: Sequence[Verdict]) -> Iterator[str]:
    """That a server is right about pixels and wrong about files, a sentence; else nothing."""
    right = [each for each in found.verdicts if each.passed]
    if right and found.options:
        yield (
            f"{names_text(right)} is right: the fault is in what comes before, decoding, "
            f"resizing or normalising for {names_text(broken)}."
        )


def _limits(found: Verification) -> Iterator[str]:
    """What the comparison does not show, a sentence each."""
    reference, noun = found.reference, noun_of(found)
    if not reference.is_recorded:
        yield "That is no proof of this bundle, which was exported from other weights or code."
    elif reference.kind == "golden":
        yield (
            "It was compared with a few recorded answers, not with the trained model: that shows "
            "that the files and the runtime are whole, not how often decisions differ."
        )
    if any(verdict.passed for verdict in found.verdicts) and _faulty_preprocessing(
        found.diagnosis.stages
    ):
        yield RECORDED_PREPROCESSING_ONLY
    yield from limits_text(found.verdicts, found.images)
    if found.images.kind != "photos":
        yield f"It was compared on {images_text(found.images)}; what counts is your photos."
    if found.unreadable:
        more = counted(found.unreadable, "more photo", "more photos")
        yield f"{more} could not be read, and so not be compared."
    if found.mining is not None:
        yield from found.mining.sentences
    elif not found.accuracy:
        yield (f"Whether the answers are right is another question: these {noun}s have no labels.")


def _faulty_preprocessing(stages: StageReport | None) -> bool:
    """Whether what comes before the network is at fault; a runtime says nothing about that."""
    if stages is None:
        return False
    faulty = {finding.stage for finding in stages.findings}
    faulty.update(step.stage for step in stages.steps if step.reasons)
    return bool(faulty & _PREPROCESSING)
