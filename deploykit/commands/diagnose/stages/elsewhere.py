"""Why answers from elsewhere differ: which usual change to an image gives them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from deploykit.bundle.folder import Bundle
from deploykit.commands.diagnose.stages.accuracy import answer_treatments, usual_changes
from deploykit.commands.diagnose.stages.images import is_rotated
from deploykit.commands.diagnose.stages.labels import (
    LabelledAnswers,
    is_clear_gain,
    other_orders,
)
from deploykit.commands.diagnose.stages.preprocessing import differing_aspects
from deploykit.images.scan import ImageFile
from deploykit.images.treatment import Treatment
from deploykit.parity.diagnosis import Explanation, TriedChange
from deploykit.parity.tolerance import tolerance_for
from deploykit.specs.session import Logits, SessionSpec
from deploykit.system.progress import Progress

#: Each image takes as many runs of the network as there are changes.
MOST_IMAGES = 48
_AS_RECORDED = "as recorded"
#: A change explains decisions alone where at most so many of them are left otherwise.
_MOST_LEFT = 0.05


def explain_answers(
    bundle: Bundle,
    spec: SessionSpec,
    files: Sequence[ImageFile],
    theirs: Logits,
    progress: Progress,
) -> Explanation:
    """Try each usual change on the canonical graph, and the usual orders of the labels.

    Args:
        bundle: The bundle.
        spec: What answered.
        files: N images; those on which it differs should be among them, and others.
        theirs: (N, L), its answers to them; see ``spec.gives``.
        progress: Told of what is tried.
    """
    labels = bundle.manifest.labels
    head, names = labels.head, labels.names
    own = Treatment.recorded(bundle.manifest.preprocessing)
    changes = usual_changes(own, rotated=any(map(is_rotated, files)))
    answers = answer_treatments(bundle, files, [own, *changes], progress)
    truth = [head.names_of(decision, names) for decision in head.decide(theirs)]
    before = LabelledAnswers(answers[own], truth, labels)
    probabilities = head.probabilities(theirs)
    known = np.ones(probabilities.shape, np.bool_)
    if spec.gives == "headline":
        known = head.chosen(head.decide(theirs), len(labels))
    allowed = tolerance_for(spec.precision, None, "probabilities").max_probability_change or 0.0

    def left(ours: Logits) -> float:
        if spec.gives == "decisions":
            return math.nan
        return float(np.abs(head.probabilities(ours) - probabilities).max(where=known, initial=0))

    def clearly(agreed: int, found: LabelledAnswers) -> bool:
        few = len(truth) - agreed <= _MOST_LEFT * len(truth)
        return few and is_clear_gain(before.hits(names), found.hits(names), before.true_names)

    tried = []
    for treatment, ours in answers.items():
        found = LabelledAnswers(ours, truth, labels)
        aspects = differing_aspects(treatment, own)
        agreed, change = int(found.right(names).sum()), left(ours)
        is_same = change <= allowed if not math.isnan(change) else clearly(agreed, found)
        tried.append(
            TriedChange(
                change=", ".join(each.words(treatment) for each in aspects) or _AS_RECORDED,
                agreed=agreed,
                probability_change=change,
                explains=treatment != own and is_same,
            )
        )
    # Of decisions alone: where probabilities tell the change, an order that looks alike is none.
    is_known = spec.gives != "decisions" and any(each.explains for each in tried)
    for order in other_orders(before, names):
        few = len(truth) - int(order.right.sum()) <= _MOST_LEFT * len(truth)
        tried.append(
            TriedChange(
                change=f"labels {order.change}",
                agreed=int(order.right.sum()),
                probability_change=math.nan,
                explains=not is_known
                and few
                and is_clear_gain(before.hits(names), order.hits, before.true_names),
            )
        )
    tried.sort(key=_rank)
    return Explanation(candidate=spec.title, images=len(files), tried=tuple(tried))


def _rank(tried: TriedChange) -> tuple[bool, float, int]:
    change = tried.probability_change
    return not tried.explains, math.inf if math.isnan(change) else change, -tried.agreed
