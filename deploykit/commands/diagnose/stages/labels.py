"""Whether a bundle's labels stand in the order that its answers follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploykit.commands.diagnose.stages.differences import export_again
from deploykit.commands.diagnose.stages.photos import StagePhotos
from deploykit.images.labels import LABELS_FILE, name_labels
from deploykit.parity.blame import Finding, Options
from deploykit.parity.label_order import Reordering, doubtful_exchanges, order_name, reorderings
from deploykit.specs.labels import Labels
from deploykit.specs.session import Logits

_LABELS_TOLD = 3


def labelled_rows(photos: StagePhotos) -> npt.NDArray[np.int64]:
    """The places of the photos whose right class is known."""
    known = [place for place, name in enumerate(photos.truth) if name is not None]
    return np.array(known, np.int64)


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


def tried_orders(photos: StagePhotos, logits: Logits, labels: Labels) -> list[Reordering]:
    """Other orders of the labels, the best first; none where the photos are not labelled."""
    rows = labelled_rows(photos)
    if len(rows) == 0:
        return []
    truth = [str(photos.truth[row]) for row in rows]
    return reorderings(logits[rows].argmax(axis=1), truth, labels.names, photos.classes)


def better_order(
    photos: StagePhotos, trained: Logits, deployed: Logits, labels: Labels
) -> Reordering | None:
    """The order that the answers follow, where it is not the recorded one beyond chance.

    Args:
        photos: The photos.
        trained: (N, K), the network's answers to what training would have given it.
        deployed: (N, K), the bundle's answers. Where these are right already, the labels are, and
            what was named as training's transform is not what the network was trained with.
        labels: As the bundle records them.
    """
    least = max(
        int(right_answers(photos, logits, labels.names).sum()) for logits in (trained, deployed)
    )
    orders = tried_orders(photos, trained, labels)
    return next((each for each in orders if each.significant and each.correct > least), None)


def order_fault(order: Reordering, photos: StagePhotos, trained: Logits, labels: Labels) -> Finding:
    """Name the order that the answers follow, and what to do.

    Which of two is exchanged, the labels or the folders, no answer tells.
    """
    recorded = int(right_answers(photos, trained, labels.names).sum())
    message = (
        f"{_how(order, photos, labels)} {order.correct} of {len(labelled_rows(photos))} photos "
        f"get their folder's class instead of {recorded}"
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


def doubtful_orders(photos: StagePhotos, trained: Logits, labels: Labels) -> list[str]:
    """Say which labels look exchanged on photos too few to tell, a sentence each.

    Args:
        photos: The photos.
        trained: (N, K), the network's answers to what training would have given it.
        labels: As the bundle records them.
    """
    rows = labelled_rows(photos)
    truth = [str(photos.truth[row]) for row in rows]
    pairs = doubtful_exchanges(trained[rows].argmax(axis=1), truth, labels.names)
    advice = (
        "more of them would (--max-images)"
        if photos.undrawn
        else f"more would, and {photos.source} has no more"
    )
    return [
        f"{pair} look exchanged, but {len(rows)} labelled photos are too few to tell that from "
        f"chance: {advice}"
        for pair in pairs[:_LABELS_TOLD]
    ]


def _how(best: Reordering, photos: StagePhotos, labels: Labels) -> str:
    if set(labels.names) != set(photos.classes):
        shown = ", ".join(labels.names[:_LABELS_TOLD])
        more = ", ..." if len(labels) > _LABELS_TOLD else ""
        kind = (
            "made-up names" if labels == Labels.numbered(len(labels)) else "not the folder's names"
        )
        return f"the bundle's labels are {kind} ({shown}{more}): with the folder's, {best.change},"
    order = order_name(labels.names)
    if best.exchanges:
        return f"with {best.change}"
    recorded = f"the bundle's are {order}" if order else "the bundle's are not"
    return f"training had its labels {best.change}; {recorded}: with training's"


def label_options(order: Reordering, photos: StagePhotos) -> Options:
    """How ``export`` is told of an order of the labels."""
    return (("--classes", name_labels(order.names, photos.source)),)
