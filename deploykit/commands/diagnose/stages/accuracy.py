"""The walk's answers against the folders' names: the labels' order, and a lost accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deploykit.bundle.folder import Bundle
from deploykit.commands.diagnose.stages.labels import (
    better_order,
    doubtful_orders,
    order_fault,
    right_answers,
)
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.commands.diagnose.stages.search import search_accuracy
from deploykit.parity.diagnosis import Finding, Stage, StageReport, Trial
from deploykit.parity.label_order import Reordering
from deploykit.parity.significance import SIGNIFICANT
from deploykit.parity.statistics import binomial_cdf
from deploykit.specs.session import Logits
from deploykit.system.progress import Note, Progress

#: Below this a model whose accuracy in training nobody knows is worth a search.
_LEAST_ACCURACY = 0.8
#: Of no training can it be told that it errs less often.
_MOST_ACCURACY = 0.99
#: Faults at these stages may be what lost the accuracy, so that no other is looked for.
_EXPLAINING: tuple[Stage, ...] = ("decode", "resize", "colour", "normalise", "network")


def check_answers(
    bundle: Bundle,
    photos: StagePhotos,
    report: StageReport,
    trained: Logits,
    deployed: Logits,
    progress: Progress,
) -> StageReport:
    """Hold the answers against the folders' names: the labels' order, and a lost accuracy.

    Args:
        bundle: The bundle.
        photos: Of which some are labelled.
        report: On the walk. A fault that it found may be what lost the accuracy.
        trained: (N, K), the answers at the walk's beginning.
        deployed: (N, K), those of the FP32 deploy graph.
        progress: Told of the search.
    """
    labels = bundle.manifest.labels
    order = better_order(photos, trained, deployed, labels)
    named = [] if order is None else [order_fault(order, photos, trained, labels)]
    right = right_answers(photos, deployed, labels.names)
    report = msgspec.structs.replace(
        report,
        findings=(*report.findings, *named),
        correct=int(right.sum()),
        labelled=len(right),
    )
    if order is None:
        for doubt in doubtful_orders(photos, trained, labels):
            progress(Note(doubt))
    if _is_explained(report) or not _is_far_below(report.correct, report):
        return report
    if order is not None and not _is_far_below(order.correct, report):
        progress(Note("the labels explain the lost accuracy: no other way is tried"))
        return report
    return _searched(bundle, photos, report, order, progress)


def _searched(
    bundle: Bundle,
    photos: StagePhotos,
    report: StageReport,
    order: Reordering | None,
    progress: Progress,
) -> StageReport:
    """Try the usual ways, and name what restores the accuracy, or that nothing does."""
    trained = (
        f"the {_LEAST_ACCURACY:.0%} that are assumed of training (--trained-accuracy tells)"
        if report.trained_accuracy is None
        else f"training's {report.trained_accuracy:.1%}"
    )
    progress(
        Note(
            f"{report.correct} of {report.labelled} photos are right, far fewer than {trained}: "
            "trying the usual ways to preprocess and to order labels"
        )
    )
    trials, found = search_accuracy(bundle, photos, progress)
    restored = found is not None
    if order is None:
        found = found or _unexplained_loss(report, trials)
    elif found is not None and found.stage == "labels":
        found = None  # named already
    return msgspec.structs.replace(
        report,
        trials=trials,
        restored=restored,
        findings=(*report.findings, *([] if found is None else [found])),
    )


def _is_explained(report: StageReport) -> bool:
    return any(finding.stage in _EXPLAINING for finding in report.findings)


def _unexplained_loss(report: StageReport, trials: Sequence[Trial]) -> Finding | None:
    """Name an accuracy that training had and these photos do not show; None where nobody tells."""
    if report.trained_accuracy is None:
        return None
    best = max(trials, key=lambda trial: trial.correct, default=None)
    nearest = "" if best is None else f"; the best, {best.change}, gets {best.correct} right"
    return Finding(
        stage="accuracy",
        message=f"{report.correct} of {report.labelled} photos get their folder's class, and "
        f"training had {report.trained_accuracy:.1%} right: that is no chance, and none of the "
        f"{len(trials)} usual ways to preprocess and to order labels that were tried explains "
        f"it{nearest}",
        hint="Name training's own transform: --transform file.py:function. Else the photos differ "
        "from those that training was tested on, or the checkpoint is another: --ckpt",
    )


def _is_far_below(correct: int, report: StageReport) -> bool:
    """Whether so many right answers are far fewer than training's accuracy lets expect."""
    images, trained = report.labelled, report.trained_accuracy
    if trained is None:
        return correct < _LEAST_ACCURACY * images
    if trained == 0:
        return False
    return binomial_cdf(correct, images, min(trained, _MOST_ACCURACY)) < SIGNIFICANT
