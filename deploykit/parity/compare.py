"""Compare open sessions on images, in batches of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeAlias

import numpy as np

from deploykit.parity.measures import measure
from deploykit.proofs import Measurement
from deploykit.session import ImageBatch, Logits, Session
from deploykit.specs import Labels

NamedBatch: TypeAlias = tuple[Sequence[str], ImageBatch]
"""The names of n images, and the images: (n, H, W, 3) uint8 RGB."""

#: A graph whose batch dimension is wired wrongly is right at some sizes only, so every comparison
#: begins with these, and ends with whatever is left over.
FIRST_BATCH_SIZES = (1, 2, 5)
OPT_BATCH_SIZE = 8
MAX_BATCH_SIZE = 32


def batch_sizes(images: int, largest: int = MAX_BATCH_SIZE) -> Iterator[int]:
    """Split a number of images over the batch sizes that a comparison must cover.

    Args:
        images: How many there are.
        largest: The most that every session takes at once.

    Yields:
        1, 2 and 5; the largest where there are that many; 8 while they last; what is left over.
        None is larger than the largest.
    """
    opt = min(OPT_BATCH_SIZE, largest)
    wanted = [min(size, largest) for size in FIRST_BATCH_SIZES]
    if images >= sum(wanted) + largest:
        wanted.append(largest)
    left = images
    for size in wanted:
        if not left:
            return
        yield min(size, left)
        left -= min(size, left)
    if left >= opt:
        yield opt
        left -= opt
    while left > opt:
        yield opt
        left -= opt
    if left == opt > 1:
        yield from (opt - 1, 1)  # a whole batch would leave no ragged tail
    elif left:
        yield left


def regroup(batches: Iterable[NamedBatch], sizes: Iterable[int]) -> Iterator[NamedBatch]:
    """Cut a stream of batches into batches of the given sizes; the last may be smaller.

    Args:
        batches: Any sizes; a batch's buffer may be reused once the next one is asked for.
        sizes: How many images each batch that comes out has.

    Yields:
        Batches owned by the caller. Ends with the images or with the sizes.
    """
    stream = (item for names, images in batches for item in zip(names, images, strict=True))
    for size in sizes:
        # Copied one at a time, before the stream moves on: the buffer behind an image is reused.
        group = [
            (name, image.copy()) for _, (name, image) in zip(range(size), stream, strict=False)
        ]
        if not group:
            return
        yield [name for name, _ in group], np.stack([image for _, image in group])


def compare_sessions(
    reference: Session,
    candidates: Sequence[Session],
    batches: Iterable[NamedBatch],
    labels: Labels,
    on_images: Callable[[int], None],
) -> tuple[Measurement, ...]:
    """Run every session on the same batches and compare each candidate with the reference.

    Args:
        reference: What is right by definition.
        candidates: What is compared with it.
        batches: The images; see :func:`regroup`.
        labels: The classes' names.
        on_images: Called with the number of images done after every batch.

    Returns:
        A measurement for each candidate.
    """
    paths: list[str] = []
    sizes: list[int] = []
    answers: list[list[Logits]] = [[] for _ in (reference, *candidates)]
    for names, images in batches:
        paths.extend(names)
        sizes.append(len(images))
        for session, logits in zip((reference, *candidates), answers, strict=True):
            logits.append(session.run(images))
        on_images(len(paths))
    expected, *found = (_stack(logits, len(labels)) for logits in answers)
    return tuple(
        measure(
            expected,
            logits,
            precision=candidate.spec.precision,
            paths=paths,
            labels=labels,
            batch_sizes=sizes,
        )
        for logits, candidate in zip(found, candidates, strict=True)
    )


def _stack(logits: Sequence[Logits], classes: int) -> Logits:
    return np.concatenate(logits) if logits else np.zeros((0, classes), np.float32)
