"""The walk's answers against the folders' names: the labels' order, and a lost accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from deploykit.bundle import Bundle
from deploykit.jobs._stage_labels import find_label_fault, right_answers
from deploykit.jobs._stage_photos import StagePhotos
from deploykit.jobs._stage_search import search_accuracy
from deploykit.parity.blame import Finding, Stage, StageReport, Trial
from deploykit.parity.significance import SIGNIFICANT
from deploykit.parity.statistics import binomial_cdf
from deploykit.progress import Note, Progress
from deploykit.session import Logits

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
    fault = find_label_fault(photos, trained, deployed, labels)
    findings = [*report.findings, *([] if fault is None else [fault])]
    right = right_answers(photos, deployed, labels.names)
    correct, images = int(right.sum()), len(right)
    trials: tuple[Trial, ...] = ()
    explained = any(finding.stage in _EXPLAINING for finding in report.findings)
    if not explained and _is_far_below(correct, images, report.trained_accuracy):
        progress(
            Note(f"{correct} of {images} photos are right, far fewer than in training: searching")
        )
        trials, found = search_accuracy(bundle, photos, progress)
        if fault is None:
            found = found or _unexplained_loss(correct, images, report.trained_accuracy, trials)
        if found is not None and not (fault is not None and found.stage == "labels"):
            findings.append(found)
    return msgspec.structs.replace(
        report, findings=tuple(findings), trials=trials, correct=correct, labelled=images
    )


def _unexplained_loss(
    correct: int, images: int, trained: float | None, trials: Sequence[Trial]
) -> Finding | None:
    """Name an accuracy that training had and these photos do not show; None where nobody tells."""
    if trained is None:
        return None
    best = max(trials, key=lambda trial: trial.correct, default=None)
    nearest = "" if best is None else f"; the best, {best.change}, gets {best.correct} right"
    return Finding(
        stage="accuracy",
        message=f"{correct} of {images} photos get their folder's class, and training had "
        f"{trained:.1%} right: that is no chance, and none of the {len(trials)} usual ways to "
        f"preprocess and to order labels that were tried explains it{nearest}",
        hint="Name training's own transform: --transform file.py:function. Else the photos differ "
        "from those that training was tested on, or the checkpoint is another: --ckpt",
    )


def _is_far_below(correct: int, images: int, trained: float | None) -> bool:
    if trained is None:
        return correct < _LEAST_ACCURACY * images
    if trained == 0:
        return False
    return binomial_cdf(correct, images, min(trained, _MOST_ACCURACY)) < SIGNIFICANT
