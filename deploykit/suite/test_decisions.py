"""Does each candidate decide as the reference does, at every batch size, and twice the same?"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from deploykit.bundle.folder import CANONICAL_GRAPH, GOLDEN, Bundle
from deploykit.bundle.golden import read_golden
from deploykit.bundle.verdicts import PhotoKind, PhotoSet
from deploykit.parity.compare import FIRST_BATCH_SIZES, MAX_BATCH_SIZE, OPT_BATCH_SIZE
from deploykit.parity.measurement import UNDECIDABLE_MARGIN
from deploykit.parity.measures import measure
from deploykit.proof.photos import golden_photos
from deploykit.proof.readable import mostly_unreadable
from deploykit.proof.text import flips_of, flips_text, photos_text, skipped_text, verdicts_text
from deploykit.proof.verdict import Verdict, judge
from deploykit.runtime.opener import CPU
from deploykit.specs.session import Logits, Session
from deploykit.suite._subject import Images, ReferenceAnswers, drawn_images, run_in_batches
from deploykit.suite.plugin import IMAGES, MEASURED, REFERENCE
from deploykit.system.text import counted

_KINDS: dict[PhotoKind, str] = {
    "photos": "photo",
    "golden": "golden image",
    "generated": "made image",
}
RecordProperty = Callable[[str, object], None]

#: None is the largest that the candidate takes.
BATCH_SIZES = (*FIRST_BATCH_SIZES, OPT_BATCH_SIZE, None)


@pytest.mark.parametrize(
    "batch_size", BATCH_SIZES, ids=lambda size: f"batch{size}" if size else "max"
)
def test_decides_alike(
    candidate: Session,
    batch_size: int | None,
    bundle: Bundle,
    images: Images,
    reference: ReferenceAnswers,
    record_property: RecordProperty,
) -> None:
    """The candidate decides as the reference does, in batches of this size."""
    spec = candidate.spec
    if reference.kind == "graph" and (spec.graph, spec.runtime) == (CANONICAL_GRAPH, CPU):
        pytest.skip("it is the reference itself")
    largest = spec.largest_batch or MAX_BATCH_SIZE
    size = batch_size or largest
    if size > largest:
        pytest.skip(f"it takes at most {largest} images at once")
    if size > len(images.names):
        pytest.skip(f"a batch of {size} needs as many images; there are {len(images.names)}")
    verdict = _verdict(candidate, images, reference.logits, size, bundle)
    unreadable = mostly_unreadable(images.unreadable, len(images.names))
    for objection in (reference.objection, unreadable):
        if objection is not None:
            verdict = verdict.refused(objection)
    record_property(REFERENCE, reference.description)
    more = f"; {images.unreadable} more could not be read" if images.unreadable else ""
    record_property(IMAGES, f"{photos_text(images.described)}{more}")
    _judge(verdict, reference.description, images.described, images.unreadable, record_property)


def test_gives_the_recorded_answers(
    candidate: Session, bundle: Bundle, record_property: RecordProperty
) -> None:
    """The candidate answers the golden images as the reference did at export."""
    golden = read_golden(bundle)
    images = drawn_images(golden_photos(golden))
    size = min(OPT_BATCH_SIZE, candidate.spec.largest_batch or OPT_BATCH_SIZE)
    verdict = _verdict(candidate, images, golden.logits, size, bundle)
    recorded = f"answers recorded in {GOLDEN}"
    record_property(REFERENCE, recorded)
    _judge(verdict, recorded, images.described, 0, record_property)


def test_answers_alike_twice(
    candidate: Session, images: Images, record_property: RecordProperty
) -> None:
    """The same batch has the same answers again: to the bit, or within what can decide nothing."""
    size = min(OPT_BATCH_SIZE, candidate.spec.largest_batch or OPT_BATCH_SIZE)
    batch = images.pixels[:size]
    first, second = candidate.run(batch), candidate.run(batch)
    name, images_twice = candidate.spec.title, f"the same {counted(len(batch), 'image')} twice"
    if not np.isfinite(first).all():
        pytest.fail(f"{name}: its answers are not finite.", pytrace=False)
    allowed = UNDECIDABLE_MARGIN[candidate.spec.precision]
    if np.array_equal(first, second):
        record_property(MEASURED, f"{name}, {images_twice}: the same bits")
        return
    difference = np.abs(second.astype(np.float64) - first).max() / np.abs(first).max()
    found = f"{images_twice}: answers differ by {difference:.1e} of the scale"
    record_property(MEASURED, f"{name}, {found}")
    if not difference <= allowed:
        pytest.fail(f"{name}, {found}; at most {allowed:.0e} may.", pytrace=False)


def _verdict(
    candidate: Session, images: Images, expected: Logits, size: int, bundle: Bundle
) -> Verdict:
    """Let a candidate answer in batches of one size, and hold it against what is expected.

    Only of photos are others like them to be expected, for which a bound holds.
    """
    measurement = measure(
        expected,
        run_in_batches(candidate, images.pixels, size),
        precision=candidate.spec.precision,
        paths=images.names,
        labels=bundle.manifest.labels,
        batch_sizes=[size, len(images.names) % size or size],
        bounded=images.described.kind == "photos",
    )
    return judge(candidate.spec, measurement)


def _judge(
    verdict: Verdict,
    reference: str,
    described: PhotoSet,
    unreadable: int,
    record_property: RecordProperty,
) -> None:
    """Keep what was measured, and fail with it in words where it leaves the tolerance."""
    found, spec = verdict.measurement, verdict.candidate
    batches = ", ".join(map(str, found.batch_sizes))
    record_property(
        MEASURED,
        f"{spec.title}, {counted(described.images, _KINDS[described.kind])}"
        f"{skipped_text(described)} in batches of {batches}: flips {flips_of(found)}; "
        f"error {found.max_relative_error:.1e} of the scale; "
        f"|dp| {found.max_probability_change:.1e}",
    )
    if not verdict.passed:
        pytest.fail(_failure(verdict, reference, described, unreadable), pytrace=False)


def _failure(verdict: Verdict, reference: str, described: PhotoSet, unreadable: int) -> str:
    """What was measured, on what, which images flipped, and what speaks against it."""
    more = f"; {unreadable} more could not be read" if unreadable else ""
    return "\n".join(
        (
            verdicts_text([verdict]),
            f"reference  {reference}",
            f"images     {photos_text(described)}{more}",
            *flips_text(verdict),
            *(f"FAILED  {verdict.candidate.title}: {reason}" for reason in verdict.objections),
        )
    )
