"""A table of what training may have done otherwise: each usual change alone, and what it gains.

A change is named as the likely cause of a lost accuracy where all of this holds: with it the
accuracy is no longer below training's; it makes at least six more photos right; it makes at least
three right for each that it makes wrong; and photos of at least two classes are right with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.stages.labels import (
    label_options,
    labelled_rows,
    order_finding,
    order_hint,
    other_orders,
    right_answers,
)
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.commands.diagnose.stages.preprocessing import (
    ANTIALIAS_HINT,
    BGR_HINT,
    TURNING_HINT,
    as_typed,
    export_again,
    filter_options,
    size_options,
    with_steps,
)
from deploykit.images.decode import decode_rgb
from deploykit.images.pixel_steps import Treatment, recorded_treatment
from deploykit.images.preprocess import OversizeError
from deploykit.images.usual import NORMALISATIONS, format_values, usual_sizes
from deploykit.inference.candidates import open_bundle_graph
from deploykit.parity.diagnosis import Finding, Options, Stage, StageReport, Variation
from deploykit.parity.label_order import Reordering, clear_gain
from deploykit.parity.statistics import upper_bound
from deploykit.runtime.opener import CPU
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Interpolation
from deploykit.specs.session import Logits, NormalisedSession
from deploykit.system.progress import Note, Progress, Step

#: Below this an accuracy is lost, where nobody knows that of the training.
_LEAST_ACCURACY = 0.8
#: Of no training can it be told that it errs less often.
_MOST_ACCURACY = 0.99
_SIZES_TRIED = 3
_FILTERS: tuple[tuple[Interpolation, bool], ...] = (
    ("bilinear", True),
    ("bicubic", True),
    ("bilinear", False),
)
_ORDERS_TOLD = 3
#: So many photos are tried, for each takes as many runs of the network as there are changes.
_MOST_PHOTOS = 64
#: Findings at these stages may be what lost the accuracy, so that nothing else is tried.
_EXPLAINING: tuple[Stage, ...] = ("decode", "resize", "colour", "normalise", "network")


@dataclass(frozen=True)
class _Change:
    """One thing done otherwise than the bundle records.

    Attributes:
        stage: Where.
        change: What, in words.
        treatment: What happens to a photo then.
        options: How ``export`` is told; empty when it cannot.
        hint: What to do if training did so.
        order: The order of the labels; None where it is not them that are changed.
    """

    stage: Stage
    change: str
    treatment: Treatment
    options: Options
    hint: str
    order: Reordering | None = None


def check_answers(
    bundle: Bundle,
    photos: StagePhotos,
    report: StageReport,
    trained: Logits,
    deployed: Logits,
    progress: Progress,
) -> StageReport:
    """Compare the answers with the folders' names: the labels' order, and a lost accuracy.

    Where nothing usual explains the transform, the changes are tried as well, and compared with the
    answers at the beginning.

    Args:
        bundle: The bundle.
        photos: The photos.
        report: On the steps. A fault that they showed may be what lost the accuracy.
        trained: (N, K), the answers at the beginning.
        deployed: (N, K), those of the FP32 deploy graph.
        progress: Told of the changes that are tried.
    """
    labels = bundle.manifest.labels
    order: Reordering | None = None
    if len(labelled_rows(photos)):
        right = right_answers(photos, deployed, labels.names)
        report = msgspec.structs.replace(report, correct=int(right.sum()), labelled=len(right))
        order, finding = _check_labels(photos, trained, report.correct, labels, progress)
        if finding is not None:
            report = msgspec.structs.replace(report, findings=(*report.findings, finding))
    stages = {finding.stage for finding in report.findings}
    if "preprocessing" in stages:
        return _tried(bundle, photos, report, trained, progress)
    if not report.labelled or not stages.isdisjoint(_EXPLAINING):
        return report
    if not _is_lost(report.correct, report.labelled, report.trained_accuracy):
        return report
    if order is not None and not _is_lost(order.correct, report.labelled, report.trained_accuracy):
        progress(Note("the labels explain the lost accuracy: nothing else is tried"))
        return report
    return _tried(bundle, photos, report, None, progress)


def _check_labels(
    photos: StagePhotos, trained: Logits, deployed: int, labels: Labels, progress: Progress
) -> tuple[Reordering | None, Finding | None]:
    """The order of labels that the answers follow, where it is not the recorded one."""
    recorded = int(right_answers(photos, trained, labels.names).sum())
    orders = other_orders(photos, trained, labels)
    # Where the bundle's answers are right already, its labels are, and what was named as training's
    # transform is not what the network was trained with.
    least = max(recorded, deployed)
    for order in orders:
        if order.likely and order.correct > least:
            return order, order_finding(order, photos, recorded, labels)
    unsure = [order for order in orders if order.exchanges and not order.likely]
    advice = (
        "more of them would (--max-images)"
        if photos.undrawn
        else f"more would, and {photos.source} has no more"
    )
    for order in unsure[:_ORDERS_TOLD]:
        pair = order.change.removesuffix(" exchanged")
        progress(
            Note(
                f"{pair} look exchanged, but {len(labelled_rows(photos))} labelled photos are too "
                f"few to tell that from chance: {advice}"
            )
        )
    return None, None


def _is_lost(correct: int, images: int, trained: float | None) -> bool:
    """Whether so many right answers are fewer than training's accuracy lets expect.

    Where that is known, the upper 95 % bound of the accuracy on these photos must be below it.
    """
    if trained is None:
        return correct < _LEAST_ACCURACY * images
    bound = upper_bound(correct, images)
    return bound is not None and bound < min(trained, _MOST_ACCURACY)


def _tried(
    bundle: Bundle,
    photos: StagePhotos,
    report: StageReport,
    trained: Logits | None,
    progress: Progress,
) -> StageReport:
    """Try each change on the canonical graph, and name the one that restores the accuracy.

    Args:
        bundle: The bundle.
        photos: The photos.
        report: So far.
        trained: (N, K), to compare the answers with; None to compare with the folders' names.
        progress: Told of every photo.
    """
    every = -(-len(photos.files) // _MOST_PHOTOS)
    photos = dataclasses.replace(photos, files=photos.files[::every], pixels=photos.pixels[::every])
    trained = None if trained is None else trained[::every]
    labels = bundle.manifest.labels
    own = recorded_treatment(bundle.manifest.preprocessing)
    changes = [_Change("resize", "as recorded", own, (), "")]
    changes += _changes(own, turned=bool(photos.turned))
    by_change, skipped = _answers(bundle, photos, changes, progress)
    changes = [each for each in changes if each.change not in skipped]
    for change in sorted(skipped):
        progress(Note(f"skipped: {change}: a photo would get too large"))
    if trained is None:
        truth = np.array([name for name in photos.truth if name is not None])
        right = {
            name: right_answers(photos, logits, labels.names) for name, logits in by_change.items()
        }
        recorded = by_change["as recorded"]
        for order in other_orders(photos, recorded, labels):
            change = f"labels {order.change}"
            options, hint = label_options(order, photos), order_hint(order, photos)
            changes.append(_Change("labels", change, own, options, hint, order))
            right[change] = right_answers(photos, recorded, order.names)
    else:
        truth = np.array(labels.names)[trained.argmax(axis=1)]
        right = {
            name: logits.argmax(axis=1) == trained.argmax(axis=1)
            for name, logits in by_change.items()
        }
    base = right["as recorded"]
    ranked = sorted(changes, key=lambda each: -int(right[each.change].sum()))
    report = msgspec.structs.replace(
        report,
        compared_with="accuracy" if trained is None else "agreement",
        variations=tuple(
            Variation(
                change=each.change,
                option=as_typed(each.options),
                correct=int(right[each.change].sum()),
                images=len(base),
                gained=int(right[each.change].sum()) - int(base.sum()),
            )
            for each in ranked
        ),
    )
    if trained is not None:
        return report
    likely = [
        each
        for each in ranked
        if not _is_lost(int(right[each.change].sum()), len(base), report.trained_accuracy)
        and clear_gain(
            int((right[each.change] & ~base).sum()), int((base & ~right[each.change]).sum())
        )
        and len({*truth[right[each.change]].tolist()}) > 1
    ]
    return _with_cause(report, likely)


def _with_cause(report: StageReport, likely: Sequence[_Change]) -> StageReport:
    """Name what restores the accuracy, or that nothing does where training's is known."""
    labels_named = any(finding.stage == "labels" for finding in report.findings)
    if likely:
        cause = likely[0]
        if cause.stage == "labels" and labels_named:
            return report
        correct = {each.change: each.correct for each in report.variations}
        images = report.variations[0].images
        ties = [each.change for each in likely[1:] if correct[each.change] == correct[cause.change]]
        also = f"; as many with: {'; '.join(ties[:_ORDERS_TOLD])}" if ties else ""
        finding = Finding(
            stage=cause.stage,
            message=f"{cause.change}: {correct[cause.change]} of {images} photos get their "
            f"folder's class instead of {correct['as recorded']}{also}",
            hint=cause.hint,
            # Exchanged labels or exchanged folders: that has to be looked at first.
            options=() if cause.order is not None and cause.order.exchanges else cause.options,
            labels=() if cause.order is None else cause.order.names,
        )
    elif report.trained_accuracy is not None and not labels_named:
        best = report.variations[0]
        finding = Finding(
            stage="accuracy",
            message=f"{report.correct} of {report.labelled} photos get their folder's class, and "
            f"training had {report.trained_accuracy:.1%} right; none of the "
            f"{len(report.variations) - 1} usual changes restores that; the best, {best.change}, "
            f"gets {best.correct} right",
            hint="Name training's own transform: --transform file.py:function. Else the photos "
            "differ from those that training was tested on, or the checkpoint is another: --ckpt",
        )
    else:
        return report
    return msgspec.structs.replace(report, findings=(*report.findings, finding))


def _changes(own: Treatment, *, turned: bool) -> Iterator[_Change]:
    """The usual ways to preprocess that differ from the recorded one, for the same input size.

    Args:
        own: What the bundle records.
        turned: Whether there is a photo that is to be turned by EXIF.
    """
    for name, (mean, std) in NORMALISATIONS.items():
        if (mean, std) != (own.mean, own.std):
            options: Options = (("--mean", format_values(mean)), ("--std", format_values(std)))
            change = f"mean {format_values(mean)}, std {format_values(std)} ({name})"
            treatment = msgspec.structs.replace(own, mean=mean, std=std)
            yield _Change("normalise", change, treatment, options, export_again(options))
    yield _Change("colour", "BGR", with_steps(own, channels="BGR"), (), f"{BGR_HINT}.")
    size = own.steps.crop_size or own.steps.resize
    if isinstance(size, tuple):
        for resize, crop_size in list(usual_sizes(size))[:_SIZES_TRIED]:
            if (resize, crop_size) != (own.steps.resize, own.steps.crop_size):
                treatment = with_steps(own, resize=resize, crop_size=crop_size)
                options = size_options(treatment.steps)
                change = treatment.steps.describe_size()
                yield _Change("resize", change, treatment, options, export_again(options))
    if turned:
        treatment = with_steps(own, upright=True)
        yield _Change("decode", "photos turned by EXIF", treatment, (), TURNING_HINT)
    for kind, antialias in _FILTERS:
        if (kind, antialias) != (own.steps.interpolation, own.steps.antialias):
            treatment = with_steps(own, interpolation=kind, antialias=antialias)
            options = filter_options(treatment.steps)
            hint = export_again(options) if options else ANTIALIAS_HINT
            yield _Change("resize", treatment.steps.describe_filter(), treatment, options, hint)


def _answers(
    bundle: Bundle, photos: StagePhotos, changes: Sequence[_Change], progress: Progress
) -> tuple[dict[str, npt.NDArray[np.float32]], set[str]]:
    """(N, K) logits of the canonical graph for each change, and the changes that cannot be made."""
    answers: dict[str, list[Logits]] = {each.change: [] for each in changes}
    skipped: set[str] = set()
    session = open_bundle_graph(bundle, CANONICAL_GRAPH, runtime=CPU, precision="fp32")
    with session:
        # A canonical graph takes normalised images; the deploy graphs do not.
        network = cast("NormalisedSession", session)
        for number, file in enumerate(photos.files):
            progress(Step("trying the usual changes", number, len(photos.files)))
            image = decode_rgb(file.path)
            for each in changes:
                try:
                    inputs = each.treatment(image)
                except OversizeError:
                    skipped.add(each.change)
                    continue
                answers[each.change].append(network.run_normalised(inputs[None]))
    return {
        change: np.concatenate(rows) for change, rows in answers.items() if change not in skipped
    }, skipped
