"""Compare open sessions on images, in batches of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

from deploykit.parity.answers import Answers
from deploykit.parity.measurement import Measurement
from deploykit.parity.measures import measure
from deploykit.specs.model import Labels
from deploykit.specs.session import ImageBatch, Logits, NamedSession, Session, SessionSpec

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
    whole, rest = divmod(left, opt)
    if whole > 1 and rest == 0 and opt > 1:
        # A whole batch would leave no ragged tail.
        yield from (*[opt] * (whole - 1), opt - 1, 1)
    else:
        yield from [opt] * whole
        if rest:
            yield rest


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


def ask_sessions(
    reference: Session | Logits,
    candidates: Sequence[Session],
    batches: Iterable[NamedBatch],
    labels: Labels,
    on_batch: Callable[[int, int], None],
) -> Answers:
    """Let every session answer the same batches, one after the other: none has to share a core.

    Args:
        reference: What is right by definition; or what it answered to these images, (N, K).
        candidates: What is compared with it.
        batches: The images; see :func:`regroup`.
        labels: What the logits mean.
        on_batch: Called after every batch with the number of images done, and the number of those
            of which a candidate has changed the decision.

    Raises:
        ValueError: There are more images than answers of the reference.
    """
    paths: list[str] = []
    sizes: list[int] = []
    # Each begins with no answer, so that there may be no image either.
    right = [reference[:0] if isinstance(reference, np.ndarray) else _no_answers(reference)]
    given = [[_no_answers(session)] for session in candidates]
    changed = 0
    for names, images in batches:
        if isinstance(reference, np.ndarray):
            right.append(reference[len(paths) : len(paths) + len(images)])
            if len(right[-1]) < len(images):
                raise ValueError(f"{len(reference)} answers of the reference are too few")
        else:
            right.append(reference.run(images))
        paths.extend(names)
        sizes.append(len(images))
        for i, session in enumerate(candidates):
            given[i].append(
                session.run_named(names, images)
                if isinstance(session, NamedSession)
                else session.run(images)
            )
        decisions = np.stack([labels.head.decide(each[-1]) for each in (right, *given)])
        changed += int((decisions != decisions[0]).any(axis=(0, 2)).sum())
        on_batch(len(paths), changed)
    return Answers(
        paths=tuple(paths),
        batch_sizes=tuple(sizes),
        reference=np.concatenate(right),
        candidates=tuple(map(np.concatenate, given)),
    )


def _no_answers(session: Session) -> Logits:
    return np.zeros((0, session.spec.classes), np.float32)


def measure_answers(
    answers: Answers,
    candidates: Sequence[SessionSpec],
    labels: Labels,
    *,
    bounded: bool = True,
    expected: Mapping[str, Collection[str]] = MappingProxyType({}),
) -> tuple[Measurement, ...]:
    """Compare each candidate's answers with the reference's.

    Args:
        answers: What the sessions answered.
        candidates: Whose answers they are, in the order of ``answers.candidates``.
        labels: What the logits mean.
        bounded: Whether a bound holds for other images; see
            :func:`deploykit.parity.measures.measure`, as for the next.
        expected: The classes that are known.
    """
    return tuple(
        measure(
            answers.reference,
            logits,
            precision=candidate.precision,
            paths=answers.paths,
            labels=labels,
            batch_sizes=answers.batch_sizes,
            bounded=bounded,
            expected=expected,
            gives=candidate.gives,
        )
        for logits, candidate in zip(answers.candidates, candidates, strict=True)
    )
