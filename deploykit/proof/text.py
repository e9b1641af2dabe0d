"""The words of verdicts and proofs, for a terminal, JSON and pages."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.bundle.verdicts import ImageKind, ImageSet, KeptVerdict, ReferenceKind
from deploykit.inference.candidates import Candidate
from deploykit.parity.measurement import AccuracyChange, Measurement
from deploykit.proof.policy import IMAGE_NAMES, Status, status, too_few_images
from deploykit.specs.session import Given, SessionSpec
from deploykit.specs.value import plain_value
from deploykit.system.text import (
    NARROW_SPACE,
    bound,
    counted,
    joined,
    rate_digits,
    table_text,
    visible,
)

if TYPE_CHECKING:
    from deploykit.parity.accuracy import ClassChange
    from deploykit.parity.budget import Budget
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
_SHOWN_LOSSES = 10

_Words = TypeVar("_Words", bound=Hashable)
Outcome: TypeAlias = Literal["passed", "failed", "unproven"]

#: An outcome in a terminal.
OUTCOMES: dict[Outcome, str] = {
    "passed": "passed",
    "failed": "FAILED",
    "unproven": "UNPROVEN",
}
_WITHOUT_BOUND: dict[ImageKind, str] = {
    "photos": "They were chosen by their margins, so no rate follows for others.",
    "golden": "They were chosen at export for their margins, so no rate follows for photos.",
    "generated": "They are generated images, and say nothing about real photos.",
}
#: What was not compared, by what a candidate gives.
_UNKNOWN: dict[Given, str] = {
    "probabilities": "gives probabilities, and its logits were not to be had: decisions and "
    "changes of probability were compared.",
    "headline": "tells the probability of its decision alone: decisions and the changes of that "
    "probability were compared.",
    "decisions": "tells decisions alone: no logit and no probability was compared.",
}
#: Fewer images than these may well get the same answer.
_LEAST_VARIED = 3
#: Answers whose probabilities vary by less than this hardly depend on the image.
_LEAST_SPREAD = 0.01


def stand_in_text(reason: str | None) -> str:
    """What a report begins with where the canonical graph stands in for the checkpoint."""
    why = f": {reason}" if reason else ""
    return f"Compared with {CANONICAL_GRAPH}, not with the checkpoint{why}."


def outcome_of(verdict: Verdict) -> Outcome:
    """A verdict that did not pass has failed where the numbers themselves break the tolerance."""
    if verdict.passed:
        return "passed"
    return "failed" if verdict.failed else "unproven"


def verdicts_text(verdicts: Iterable[Verdict]) -> str:
    """A table with a row for each candidate."""
    rows = [
        (
            verdict.candidate.graph,
            verdict.candidate.runtime,
            verdict.candidate.precision,
            flips_of(verdict.measurement),
            error_of(verdict.measurement),
            changes_of(verdict.measurement),
            ",".join(map(str, verdict.measurement.batch_sizes)),
            OUTCOMES[outcome_of(verdict)],
        )
        for verdict in verdicts
    ]
    return table_text(_VERDICT_COLUMNS, rows)


def flips_of(measurement: Measurement) -> str:
    """``0 of 225, at most 1.3 %``: the flips and the bound on their rate."""
    if not measurement.decidable:
        return f"nothing decided on {counted(measurement.images, 'image')}"
    text = f"{measurement.flips} of {measurement.decidable}"
    if measurement.flip_rate_bound is not None:
        text += f", at most {rate_digits(measurement.flip_rate_bound)} %"
    if measurement.undecidable:
        changed = measurement.undecidable_flips
        text += f" ({measurement.undecidable} undecidable{f', {changed} changed' * bool(changed)})"
    return text


def error_of(measurement: Measurement) -> str:
    """The largest error of a logit as a part of the scale; ``-`` where there are no logits."""
    return f"{measurement.max_relative_error:.1e}" if measurement.has_logits else "-"


def changes_of(measurement: Measurement) -> str:
    """``1.8e-02, largest 9.1e-02``: the 99th percentile of the changes of probability, as judged.

    Where it is the largest, as of few images, it stands alone. ``-`` where there are none.
    """
    if not measurement.has_probabilities:
        return "-"
    judged = f"{measurement.p99_probability_change:.1e}"
    largest = f"{measurement.max_probability_change:.1e}"
    return judged if judged == largest else f"{judged}, largest {largest}"


def accuracy_change_text(change: AccuracyChange) -> str:
    """``accuracy 0.8 points lower on the same 128 images (95 %: 2.2 lower to 0.6 higher)``."""

    def points(drop: float) -> str:
        return f"{abs(drop):.1f} {'higher' if drop < 0 else 'lower'}"

    low, high = change.drop_interval
    said = "unchanged" if change.drop == 0 else points(change.drop).replace(" ", " points ")
    return (
        f"{change.name} {said} on the same {counted(change.images, 'image')} (95 %: "
        f"{points(high)} to {points(low)})"
    )


def budget_text(budget: Budget, measurement: Measurement) -> str:
    """``budget: at most 2 % of the decisions may change``, with what is judged by it."""
    change = measurement.accuracy
    judged = ""
    if budget.max_accuracy_drop is not None and change is not None:
        judged = f"; {accuracy_change_text(change)}"
    return f"budget: {budget}{judged}"


def losses_text(changes: Iterable[ClassChange]) -> str:
    """``loses: hen 3 of 41, ostrich 1 of 60``; "" where no class loses an image."""
    lost = [each for each in changes if each.lost > 0]
    shown = [f"{each.label} {each.lost:,} of {each.images:,}" for each in lost[:_SHOWN_LOSSES]]
    if len(lost) > _SHOWN_LOSSES:
        shown.append(f"and {counted(len(lost) - _SHOWN_LOSSES, 'more class', 'more classes')}")
    return f"loses: {', '.join(shown)}" if shown else ""


def numbers_text(verdict: Verdict) -> str:
    """What was measured of a candidate, in a line."""
    found = verdict.measurement
    within = f", {budget_text(verdict.budget, found)}" if verdict.budget else ""
    error = f"error {error_of(found)} of the scale, " if found.has_logits else ""
    changes = f"|dp| {changes_of(found)}, " if found.has_probabilities else ""
    where = {"served": "by", "told": "by"}.get(verdict.kind, "on")
    return (
        f"flips {flips_of(found)}, {error}"
        f"{changes}{verdict.kind} {where} {visible(verdict.candidate.device)}, "
        f"batches of {', '.join(map(str, found.batch_sizes))}{within}"
    )


def names_text(verdicts: Iterable[Verdict]) -> str:
    """``model.onnx on onnxruntime-cpu and deploy/int8.onnx on onnxruntime-cpu and openvino``."""
    runtimes: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.candidate.place == "table":  # which nothing runs
            runtimes[verdict.candidate.title] = []
            continue
        graph, _, runtime = verdict.candidate.title.rpartition(" on ")
        runtimes.setdefault(graph, []).append(runtime)
    return joined(
        f"{graph} on {joined(names)}" if names else graph for graph, names in runtimes.items()
    )


def said_once(told: Iterable[tuple[_Words, Verdict]]) -> list[tuple[_Words, list[Verdict]]]:
    """What is told of candidates, each once with all that it is told of."""
    found: dict[_Words, list[Verdict]] = {}
    for words, verdict in told:
        found.setdefault(words, []).append(verdict)
    return [*found.items()]


def budgets_text(verdicts: Iterable[Verdict]) -> list[str]:
    """What the user allows the candidates that passed within it, a line each."""
    told = (
        (budget_text(verdict.budget, verdict.measurement), verdict)
        for verdict in verdicts
        if verdict.budget is not None and verdict.passed
    )
    return [f"{names_text(of)}: {budget}" for budget, of in said_once(told)]


def reasons_text(verdicts: Iterable[Verdict]) -> list[str]:
    """Why candidates did not pass, a line for each reason."""
    told = (
        ((OUTCOMES[outcome_of(verdict)], reason), verdict)
        for verdict in verdicts
        for reason in verdict.reasons
    )
    return [f"{word}  {names_text(of)}: {reason}" for (word, reason), of in said_once(told)]


def decisions_text(verdicts: Sequence[Verdict], reference: str, kind: ImageKind) -> Iterator[str]:
    """What was decided where every candidate passed, and what follows, a sentence each.

    Args:
        verdicts: One at least.
        reference: What the candidates were compared with: ``the trained model``.
        kind: Of the images.
    """
    noun = "photo" if kind == "photos" else "image"
    found = [verdict.measurement for verdict in verdicts]
    changed = [verdict for verdict in verdicts if verdict.measurement.flips]
    turned = [verdict for verdict in verdicts if verdict.measurement.undecidable_flips]
    counts = ((each.measurement.flips, each.measurement.decidable) for each in changed)
    for (flips, decidable), of in said_once(zip(counts, changed, strict=True)):
        decisions = counted(decidable, "decision")
        yield f"{flips:,} of {decisions} changed in {names_text(of)}, which is allowed."
    if not changed:
        count = len(verdicts)
        place = verdicts[0].candidate.place
        one = {"here": "the deployed one", "server": "the server"}
        deployed = one.get(place, verdicts[0].candidate.title)
        if count > 1:
            deployed = f"each of the {count} deployed ones"
        # What decides in the lowest precision decides in all.
        compared, judged = found[0].images, min(each.decidable for each in found)
        images = f"All {compared:,} {noun}s" if compared != 1 else f"The one {noun}"
        if turned:
            images = f"The {judged:,} of {counted(compared, noun)} that can be judged"
        yield f"{images} got the same answer from {reference} and from {deployed}."
    for number, of in said_once((each.measurement.undecidable_flips, each) for each in turned):
        yield (
            f"{counted(number, f'undecidable {noun}')} got another {found[0].decision} from "
            f"{names_text(of)}: within rounding, and judged apart."
        )
    yield from _bound_text(verdicts, reference, kind)


def _bound_text(verdicts: Sequence[Verdict], reference: str, kind: ImageKind) -> Iterator[str]:
    """What follows for other images."""
    bounds = [(verdict.measurement.flip_rate_bound, verdict) for verdict in verdicts]
    known = [rate for rate, _ in bounds if rate is not None]
    if not known:
        yield _WITHOUT_BOUND[kind]
        return
    undecidable = any(verdict.measurement.undecidable for verdict in verdicts)
    decisions = "the decisions that can be judged" if undecidable else "the decisions"
    yield (
        f"If the photos to come are like these, at most {rate_digits(max(known))} % of "
        f"{decisions} will differ from those of {reference}, with 95 % confidence."
    )
    if without := [verdict for rate, verdict in bounds if rate is None]:
        yield f"For {names_text(without)} no such rate follows."


def limits_text(verdicts: Sequence[Verdict], images: ImageSet) -> Iterator[str]:
    """What verdicts do not show, a sentence each, and each once."""
    noun = "photo" if images.kind == "photos" else "image"
    rehearsed = [each.candidate for each in verdicts if each.kind == "rehearsed"]
    if rehearsed:
        graphs = [*dict.fromkeys(spec.graph for spec in rehearsed)]
        was, has = ("was", "has") if len(graphs) == 1 else ("were", "have")
        hardware = joined(dict.fromkeys(spec.precision for spec in rehearsed))
        yield (
            f"{joined(graphs)} {was} rehearsed on a model of {hardware} hardware, and {has} not "
            "run on the hardware itself: verify again there."
        )
    yield from _limits_elsewhere(verdicts)
    with_tf32 = dict.fromkeys(each.candidate.graph for each in verdicts if each.candidate.tf32)
    if with_tf32:
        yield (
            f"{joined(with_tf32)} ran with TensorFloat-32, which shows nothing about plain FP32."
        )
    undecidable = (
        ((found.undecidable, found.images, found.decision), verdict)
        for verdict in verdicts
        if (found := verdict.measurement).undecidable and not found.non_finite
    )
    for (count, compared, decision), of in said_once(undecidable):
        precisions = joined(dict.fromkeys(verdict.candidate.precision for verdict in of))
        yield (
            f"{count:,} of {counted(compared, noun)} {'is' if count == 1 else 'are'} undecidable "
            f"in {precisions}: either {decision} would do, so that no change of them counts as a "
            "flip."
        )


def _limits_elsewhere(verdicts: Sequence[Verdict]) -> Iterator[str]:
    """What answers from elsewhere do not show, a sentence each."""
    if served := [verdict for verdict in verdicts if verdict.kind == "served"]:
        asked = "was asked as it" if len(served) == 1 else "were asked as they"
        yield (
            f"{names_text(served)} {asked} answered then: that proves no file of this bundle, "
            "and nothing of what the server answers once it is changed."
        )
    for spec in (verdict.candidate for verdict in verdicts):
        if limit := _UNKNOWN.get(spec.gives):
            yield f"{spec.title} {limit}"


def few_images_text(verdicts: Iterable[Verdict], images: ImageSet) -> Iterator[str]:
    """Which candidates passed on too few images to be proven by them, a sentence a reason."""
    told = (
        (reason, verdict)
        for verdict in verdicts
        if verdict.passed and verdict.population is None
        if (reason := too_few_images(verdict.candidate.precision, verdict.measurement, images))
    )
    for reason, of in said_once(told):
        stays = "stays" if len(of) == 1 else "stay"
        yield f"{names_text(of)} passed, and {stays} unproven: {reason}."


def uniform_text(found: Measurement, kind: ImageKind = "photos") -> str:
    """That the network tells images apart badly or not at all, a sentence; "" where it does."""
    if found.images < _LEAST_VARIED or found.non_finite or kind == "golden":
        return ""
    images = f"all {found.images:,} {'photos' if kind == 'photos' else 'generated images'}"
    alike = found.spread < _LEAST_SPREAD
    if found.classes > 1:
        hardly = (
            f"The network's answers hardly depend on the image: over {images} no probability "
            f"differs by more than {found.spread:.1g}. Its weights may be untrained, or another "
            "network's."
        )
        return hardly if alike else ""
    why = f"photos of one {found.decision} do that, and so does an untrained network"
    if kind == "generated":
        why = "generated images may do that; photos show whether it decides (--images DIR)"
    within = f", with probabilities within {found.spread:.1g}" if alike else ""
    return f"The network gives {images} the same {found.decided}{within}: {why}."


def flips_text(*verdicts: Verdict) -> list[str]:
    """A line for each image whose decision changed, the largest margins first.

    Args:
        verdicts: Of candidates that changed the same decisions.
    """
    flipped = verdicts[0].measurement.flipped
    lines = [
        visible(
            f"flip  {names_text(verdicts)}: {flip.path}: {flip.reference} -> {flip.candidate}, "
            f"margin {flip.margin:.2e}{'' if flip.decidable else ' (undecidable)'}"
        )
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
    change = verdict.measurement.accuracy
    return {
        **plain_value(verdict),
        "failed": verdict.failed,
        "passed": verdict.passed,
        "accuracy_drop": None
        if change is None
        else {"points": change.drop, "interval": change.drop_interval},
    }


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
        return f"{known.word}: {known.why}"
    found = proof.measurement
    rate = found.flip_rate_bound
    sure = "" if rate is None else f", at most {rate_digits(rate)} % would"
    alike = f", all of one {found.decision}" * bool(uniform_text(found, proof.images.kind))
    within = f"; {budget_text(proof.budget, found)}" if proof.budget else ""
    images = counted(proof.images.count, IMAGE_NAMES[proof.images.kind])
    return (
        f"{known.word}: {found.flips} of {counted(found.decidable, 'decision')} differ from "
        f"{_ANSWERED[proof.reference_kind]}{sure} ({images}{alike}{skipped_text(proof.images)}, "
        f"preprocessed as recorded, {proof.created[:10]}{within})"
    )


def status_value(known: Status) -> dict[str, Any]:
    """A status as plain values: the word, the reason, and the verdict that shows it."""
    return {
        "status": known.word,
        "reason": known.reason or None,
        "command": known.command or None,
        "verdict": None if known.verdict is None else plain_value(known.verdict),
    }


def kept_verdict_text(kept: KeptVerdict) -> str:
    """``executed on CPU, 225 photos of bird_photos: flips 0 of 225, at most 1.3 %; ...``."""
    found = kept.measurement
    within = f"; {budget_text(kept.budget, found)}" if kept.budget and kept.passed else ""
    return (
        f"{kept.kind} on {kept.device}, {images_text(kept.images)}: flips {flips_of(found)}; "
        f"error {found.max_relative_error:.1e} of the scale; "
        f"|dp| {changes_of(found)}; against {_REFERENCES[kept.reference_kind]}; "
        f"{kept.created[:10]}{within}"
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
    turned = f"; {found.undecidable_flips:,} of them changed" * bool(found.undecidable_flips)
    alike = uniform_text(found, proof.images.kind)
    how = f"Rehearsed in {proof.precision} on a model of the hardware, which has not run it yet"
    if proof.kind == "executed":
        how = f"Executed in {proof.precision} on {proof.runtime}, {proof.device}"
    return [
        f"{found.flips} of {counted(found.decidable, 'decision')} changed (flipped) against the "
        f"{proof.reference}{sure}.",
        *([alike] if alike else []),
        *(
            [f"{more} undecidable{turned}: either {found.decision} would do."]
            if found.undecidable
            else []
        ),
        f"{how}; with {images_text(proof.images)}, through the recorded preprocessing.",
        f"The 99th percentile of the changes of probability was {changes_of(found)}; the largest "
        f"error of a logit {found.max_relative_error:.1e} of the scale.",
        *([f"It was judged by a {budget_text(proof.budget, found)}."] if proof.budget else []),
    ]
