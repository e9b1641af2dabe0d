"""Whether a bundle's labels stand in the order that its answers follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.commands.diagnose.stages.preprocessing import export_again
from deploykit.images.labels import LABELS_FILE, name_labels
from deploykit.parity.diagnosis import Finding, Options
from deploykit.parity.label_order import Reordering, order_name, reorderings
from deploykit.specs.model import Labels
from deploykit.specs.session import Logits

_LABELS_TOLD = 3


def right_answers(
    photos: StagePhotos, logits: Logits, names: tuple[str, ...]
) -> npt.NDArray[np.bool_]:
    """Which of the labelled photos get their folder's class, (n,).

    Args:
        photos: The photos, of which n are labelled.
        logits: (N, K), of all of them.
        names: The K labels.
    """
    rows = labelled_rows(photos)
    truth = np.array([photos.truth[row] for row in rows])
    finite = np.isfinite(logits[rows]).all(axis=1)
    return np.asarray((np.array(names)[logits[rows].argmax(axis=1)] == truth) & finite)


def labelled_rows(photos: StagePhotos) -> npt.NDArray[np.int64]:
    """The places of the photos whose right class is known."""
    return np.array([i for i, name in enumerate(photos.truth) if name is not None], np.int64)


def other_orders(photos: StagePhotos, logits: Logits, labels: Labels) -> list[Reordering]:
    """Other orders of the labels, the best first.

    Args:
        photos: The photos, of which some are labelled.
        logits: (N, K), the network's answers to what training would have given it.
        labels: As the bundle records them.
    """
    rows = labelled_rows(photos)
    truth = [str(photos.truth[row]) for row in rows]
    return reorderings(logits[rows].argmax(axis=1), truth, labels.names, photos.classes)


def order_finding(order: Reordering, photos: StagePhotos, recorded: int, labels: Labels) -> Finding:
    """Name the order that the answers follow, and what to do.

    Which of two is exchanged, the labels or the folders, no answer tells.

    Args:
        order: The order.
        photos: The photos.
        recorded: How many of them are right with the recorded one.
        labels: As the bundle records them.
    """
    if set(labels.names) != set(photos.classes):
        shown = ", ".join(labels.names[:_LABELS_TOLD])
        more = ", ..." if len(labels) > _LABELS_TOLD else ""
        made_up = labels == Labels.numbered(len(labels))
        kind = "made-up names" if made_up else "not the folder's names"
        how = f"the bundle's labels are {kind} ({shown}{more}): with the folder's, {order.change},"
    elif order.exchanges:
        how = f"with {order.change}"
    else:
        own = order_name(labels.names) or "not"
        how = f"training had its labels {order.change}; the bundle's are {own}: with training's"
    message = (
        f"{how} {order.correct} of {len(labelled_rows(photos))} photos get their folder's class "
        f"instead of {recorded}"
    )
    if order.exchanges:
        message += ": either the labels are exchanged, or the photos' folders are"
    return Finding(
        stage="labels",
        message=message,
        hint=order_hint(order, photos),
        options=() if order.exchanges else label_options(order, photos),
        labels=order.names,
    )


def order_hint(order: Reordering, photos: StagePhotos) -> str:
    """What to do where the answers follow another order of the labels."""
    options = label_options(order, photos)
    hint = export_again(options)
    if options == (("--classes", LABELS_FILE),):
        hint += ", a text file with the labels in that order, one a line"
    if not order.exchanges:
        return hint
    return (
        "Look at the photos in these folders. Where they are not what the folder says, move them. "
        f"Where they are, the labels are wrong: {hint}"
    )


def label_options(order: Reordering, photos: StagePhotos) -> Options:
    """How ``export`` is told of an order of the labels."""
    return (("--classes", name_labels(order.names, photos.source)),)
