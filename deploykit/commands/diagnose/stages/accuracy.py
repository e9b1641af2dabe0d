"""A lost accuracy: the order of the labels, and what each usual change to a photo would gain."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import cast

import msgspec
import numpy as np
import numpy.typing as npt

from deploykit.bundle.folder import CANONICAL_GRAPH, Bundle
from deploykit.commands.diagnose.stages.images import StageImages
from deploykit.commands.diagnose.stages.labels import (
    LabelledAnswers,
    LabelOrder,
    is_clear_gain,
    order_finding,
    other_orders,
)
from deploykit.commands.diagnose.stages.preprocessing import (
    as_typed,
    correction,
    differing_aspects,
)
from deploykit.images.decode import decode_rgb
from deploykit.images.labels import name_labels
from deploykit.images.preprocess import OversizeError
from deploykit.images.scan import ImageFile
from deploykit.images.treatment import Treatment
from deploykit.images.truth import table_order
from deploykit.images.usual import NORMALISATIONS, usual_sizes
from deploykit.inference.candidates import Candidate, open_candidate
from deploykit.parity.diagnosis import Finding, Options, Stage, StageReport, Variation
from deploykit.parity.statistics import upper_bound
from deploykit.runtime.opener import CPU
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing import Interpolation
from deploykit.specs.session import Logits, NormalisedSession
from deploykit.system.progress import Note, Progress, Step

#: Below this an accuracy is lost, where training's is unknown.
_LEAST_ACCURACY = 0.8
#: More than this is expected of no training.
_MOST_ACCURACY = 0.99
_SIZES_TRIED = 3
_FILTERS: tuple[tuple[Interpolation, bool], ...] = (
    ("bilinear", True),
    ("bicubic", True),
    ("bilinear", False),
)
#: Each image takes as many runs of the network as there are changes.
_MOST_IMAGES = 64
#: Findings at these stages may be what lost the accuracy, so that nothing else is tried.
_EXPLAINING: frozenset[Stage] = frozenset(
    {"decode", "resize", "preprocessing", "colour", "normalise", "network"}
)


def check_answers(
    bundle: Bundle,
    images: StageImages,
    report: StageReport,
    trained: Logits,
    deployed: Logits,
    progress: Progress,
    *,
    compared: tuple[int, int] | None = None,
) -> StageReport:
    """Compare the answers with the right classes: the order of the labels, and the accuracy.

    Args:
        bundle: The bundle.
        images: The images.
        report: On the steps. A fault that they showed may be what lost the accuracy.
        trained: (N, K), the answers to training's preprocessing.
        deployed: (N, K), those of the FP32 deploy graph.
        progress: Told of the changes that are tried.
        compared: How many of more images are decided rightly, and of how many: what a few hide, a
            lost accuracy, those show. None where no more were compared.
    """
    labels = bundle.manifest.labels
    given = _labelled(images, deployed, labels)
    right, hits = given.right(labels.names), given.hits(labels.names)
    if len(right) == 0:
        return report
    exactly = "exactly " if labels.head.several else ""
    report = msgspec.structs.replace(
        report,
        correct=int(right.sum()),
        labelled=len(right),
        right=f"{exactly}{images.right_words}",
    )
    answers = _labelled(images, trained, labels)
    recorded = answers.hits(labels.names)
    for order in _orders(answers, images):
        # Where the bundle's answers are right already, its labels are, and what was named as
        # training's transform is not what the network was trained with.
        better = order.hits.sum() > max(recorded.sum(), hits.sum())
        if better and is_clear_gain(recorded, order.hits, answers.true_names):
            options = _label_options(order, images)
            finding = order_finding(order, answers, images, options)
            return msgspec.structs.replace(report, findings=(*report.findings, finding))
    explained = not _EXPLAINING.isdisjoint(finding.stage for finding in report.findings)
    known = max(compared or (0, 0), (report.correct, report.labelled), key=lambda each: each[1])
    if explained or not _is_lost(*known, report.trained_accuracy):
        return report
    return _with_changes_tried(bundle, images, report, known, progress)


def _labelled(images: StageImages, logits: Logits, labels: Labels) -> LabelledAnswers:
    truth = {row: names for row, names in enumerate(images.truth) if names is not None}
    return LabelledAnswers(logits[[*truth]], [*truth.values()], labels)


def _orders(answers: LabelledAnswers, images: StageImages) -> list[LabelOrder]:
    """The other orders of the labels, the best first."""
    if images.table is None:
        return other_orders(answers, images.classes)
    columns = table_order(images.table, answers.labels)
    return other_orders(answers, images.classes, columns=columns, table=images.table.name)


def _label_options(order: LabelOrder, images: StageImages) -> Options:
    return (("--classes", name_labels(order.names, images.source)),)


def _is_lost(correct: int, images: int, trained: float | None) -> bool:
    """Whether fewer answers are right than training's accuracy lets expect.

    Where that is known, the upper 95 % bound of the accuracy on these images is below it.
    """
    if trained is None:
        return correct < _LEAST_ACCURACY * images
    bound = upper_bound(correct, images)
    return bound is not None and bound < min(trained, _MOST_ACCURACY)


def _with_changes_tried(
    bundle: Bundle,
    images: StageImages,
    report: StageReport,
    known: tuple[int, int],
    progress: Progress,
) -> StageReport:
    """Try each usual change on the canonical graph, and name the best if it restores the accuracy.

    Where none does, that is a finding if training's accuracy is known.

    Args:
        bundle: The bundle.
        images: What to try them on.
        report: On the steps.
        known: How many images are decided rightly, and of how many: those here or more.
        progress: Told of each change.
    """
    names, trained = bundle.manifest.labels.names, report.trained_accuracy
    own = Treatment.recorded(bundle.manifest.preprocessing)
    every = -(-len(images.files) // _MOST_IMAGES)
    images = dataclasses.replace(images, files=images.files[::every])
    treatments = [own, *usual_changes(own, rotated=bool(images.rotated))]
    answers = {
        treatment: _labelled(images, logits, bundle.manifest.labels)
        for treatment, logits in answer_treatments(
            bundle, images.files, treatments, progress
        ).items()
    }
    before, truth = answers[own].right(names), answers[own].true_names
    found_before = answers[own].hits(names)
    rows: list[Variation] = []

    def add(
        change: str,
        options: Options,
        right: npt.NDArray[np.bool_],
        hits: npt.NDArray[np.bool_],
    ) -> None:
        rows.append(
            Variation(
                change=change,
                option=as_typed(options),
                correct=int(right.sum()),
                images=len(right),
                gained=int(right.sum()) - int(before.sum()),
                is_clear=is_clear_gain(found_before, hits, truth),
            )
        )

    likely: list[tuple[int, Finding]] = []
    for treatment, found in answers.items():
        after, hits = found.right(names), found.hits(names)
        aspects = differing_aspects(treatment, own)
        correct = int(after.sum())
        options, hint = correction(treatment, aspects)
        change = ", ".join(aspect.words(treatment) for aspect in aspects) or "as recorded"
        add(change, options, after, hits)
        restored = not _is_lost(correct, len(after), trained)
        if restored and is_clear_gain(found_before, hits, truth):
            message = (
                f"{change}: {correct} of {len(after)} photos get {report.right} instead of "
                f"{before.sum()}"
            )
            stage = aspects[0].stage
            finding = Finding(stage=stage, message=message, hint=hint, options=options)
            likely.append((correct, finding))
    for order in _orders(answers[own], images):
        add(f"labels {order.change}", _label_options(order, images), order.right, order.hits)
    rows.sort(key=lambda row: -row.correct)
    report = msgspec.structs.replace(report, variations=tuple(rows))
    if likely:
        _, cause = max(likely, key=lambda each: each[0])
    elif trained is not None:
        cause = _unrestored(report, known, trained)
    else:
        return report
    return msgspec.structs.replace(report, findings=(*report.findings, cause))


def _unrestored(report: StageReport, known: tuple[int, int], trained: float) -> Finding:
    best = report.variations[0]
    return Finding(
        stage="accuracy",
        message=f"{known[0]} of {known[1]} photos get {report.right}, and training had "
        f"{trained:.1%} right; none of the {len(report.variations) - 1} usual changes clearly "
        f"restores that on the {best.images} photos tried; the best, {best.change}, gets "
        f"{best.correct} of them right",
        hint="Try them on more photos (--max-images), or name training's own transform: "
        "--transform file.py:function. Else the photos differ from those that training was "
        "tested on, or the checkpoint is another: --ckpt",
    )


def usual_changes(own: Treatment, *, rotated: bool) -> Iterator[Treatment]:
    """The usual treatments that differ from the recorded one in one thing; not in the input's size.

    Args:
        own: What the bundle records.
        rotated: Whether there is an image that EXIF says to rotate.
    """
    changes: list[dict[str, object]] = [
        {"mean": mean, "std": std} for mean, std in NORMALISATIONS.values()
    ]
    changes.append({"channels": "BGR"})
    size = own.crop_size or own.resize
    if isinstance(size, tuple):
        changes += (
            {"resize": resize, "crop_size": crop_size}
            for resize, crop_size in itertools.islice(usual_sizes(size), _SIZES_TRIED)
        )
    if rotated:
        changes.append({"upright": True})
    changes += ({"interpolation": name, "antialias": antialias} for name, antialias in _FILTERS)
    for change in changes:
        treatment = msgspec.structs.replace(own, **change)
        if treatment != own:
            yield treatment


def answer_treatments(
    bundle: Bundle, files: Sequence[ImageFile], treatments: Sequence[Treatment], progress: Progress
) -> dict[Treatment, Logits]:
    """(N, K) logits of the canonical graph for each treatment that every image can get."""
    answers: dict[Treatment, list[Logits]] = {each: [] for each in treatments}
    session = open_candidate(bundle, Candidate(CANONICAL_GRAPH, CPU, "fp32"))
    with session:
        # A canonical graph takes normalised images; the deploy graphs do not.
        network = cast("NormalisedSession", session)
        for number, file in enumerate(files):
            progress(Step("trying the usual changes", number, len(files)))
            image = decode_rgb(file.path)
            for treatment in [*answers]:
                try:
                    inputs = treatment(image)
                except OversizeError:
                    del answers[treatment]
                    what = treatment.describe_pixels()
                    progress(Note(f"skipped: {what}: {file.name} would get too large"))
                    continue
                answers[treatment].append(network.run_normalised(inputs[None]))
    return {treatment: np.concatenate(rows) for treatment, rows in answers.items()}
