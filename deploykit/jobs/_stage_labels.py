"""Whether a bundle's labels stand in the order that its answers follow."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from deploykit.jobs._stage_differences import export_again
from deploykit.jobs._stage_photos import StagePhotos
from deploykit.parity.blame import Finding
from deploykit.parity.label_order import IMAGE_FOLDER, Reordering, order_name, reorderings
from deploykit.session import Logits
from deploykit.specs import Labels

#: A longer list of labels is no option to type.
_TYPED_LABELS = 20
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


def find_label_fault(
    photos: StagePhotos, trained: Logits, deployed: Logits, labels: Labels
) -> Finding | None:
    """Name the order that the answers follow, where it is not the recorded one beyond chance.

    Args:
        photos: The photos.
        trained: (N, K), the network's answers to what training would have given it.
        deployed: (N, K), the bundle's answers. Where these are right already, the labels are, and
            what was named as training's transform is not what the network was trained with.
        labels: As the bundle records them.
    """
    recorded = int(right_answers(photos, trained, labels.names).sum())
    least = max(recorded, int(right_answers(photos, deployed, labels.names).sum()))
    orders = tried_orders(photos, trained, labels)
    best = next((each for each in orders if each.significant and each.correct > least), None)
    if best is None:
        return None
    return Finding(
        stage="labels",
        message=f"{_how(best, photos, labels)} {best.correct} of {len(labelled_rows(photos))} "
        f"photos get their folder's class instead of {recorded}",
        hint=export_again(labels_option(best, photos)),
    )


def _how(best: Reordering, photos: StagePhotos, labels: Labels) -> str:
    if set(labels.names) != set(photos.classes):
        shown = ", ".join(labels.names[:_LABELS_TOLD])
        more = ", ..." if len(labels) > _LABELS_TOLD else ""
        kind = (
            "made-up names" if labels == Labels.numbered(len(labels)) else "not the folder's names"
        )
        return f"the bundle's labels are {kind} ({shown}{more}): with the folder's, {best.change},"
    order = order_name(labels.names)
    if best.change.endswith("exchanged"):
        return f"with the labels {best.change}"
    recorded = f"the bundle's are {order}" if order else "the bundle's are not"
    return f"training had its labels {best.change}; {recorded}: with training's"


def labels_option(order: Reordering, photos: StagePhotos) -> str:
    """How ``export`` is told of an order of the labels."""
    if order.change == IMAGE_FOLDER and photos.source.is_dir():
        return f"--classes {photos.source}"
    if len(order.names) > _TYPED_LABELS or any("," in name for name in order.names):
        return "--classes FILE, a text file with the labels in that order, one a line"
    return f"--classes {','.join(order.names)}"
