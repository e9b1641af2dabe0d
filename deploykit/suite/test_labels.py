"""Do the labels stand in the order that the network's answers follow?"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from deploykit.bundle.folder import Bundle
from deploykit.parity.label_order import order_name, reorderings
from deploykit.suite._subject import Images, ReferenceAnswers
from deploykit.suite.plugin import MEASURED

_TOLD = 3


def test_labels_are_in_order(
    bundle: Bundle,
    images: Images,
    reference: ReferenceAnswers,
    record_property: Callable[[str, object], None],
) -> None:
    """No other order of the labels makes clearly more photos right than the recorded one."""
    names = bundle.manifest.labels.names
    known = (i for i, name in enumerate(images.names) if name in images.expected)
    labelled = [*known]
    if not labelled:
        pytest.skip(f"no image lies in a folder named after a label: {', '.join(names[:6])}")
    truth = [images.expected[images.names[i]] for i in labelled]
    answers = reference.logits[labelled].argmax(axis=1)
    correct = sum(names[answer] == name for answer, name in zip(answers, truth, strict=True))
    recorded = order_name(names) or f"as {bundle.manifest.labels.source} has them"
    found = f"labels {recorded}: {correct} of {len(truth)} photos are right"
    others = reorderings(answers, truth, names, names)
    for other in others:
        if other.likely and other.correct > correct:
            either = ""
            if other.exchanges:
                either = ", or move the photos, if it is their folders that are exchanged"
            pytest.fail(
                f"{found}; {other.change}, {other.correct} would be.\n"
                "Export again, and name the labels in the order of the training: --classes FILE"
                f"{either}.",
                pytrace=False,
            )
    unsure = [other.change for other in others if other.exchanges and not other.likely][:_TOLD]
    few = f"; perhaps {', '.join(unsure)}, but the photos are too few to tell"
    record_property(MEASURED, f"{found}{few if unsure else ''}")
