"""A server as the candidate: what of its model is asked, its labels, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from deploykit.parity.compare import OPT_BATCH_SIZE, NamedBatch
from deploykit.parity.latency import Latency
from deploykit.runtime.opener import open_server
from deploykit.specs.session import NamedSession, Session
from deploykit.system.progress import Note, Progress, Step
from deploykit.system.text import visible

if TYPE_CHECKING:
    from deploykit.bundle.folder import Bundle
    from deploykit.commands.verify.request import VerifyRequest
    from deploykit.proof.images import ImageSample
    from deploykit.specs.model import Labels

#: Requests of a size that are timed, and the seconds after which no other is begun.
_REQUESTS, _SECONDS = 100, 10.0


def open_server_candidates(
    bundle: Bundle,
    request: VerifyRequest,
    sample: ImageSample,
    stack: ExitStack,
    progress: Progress,
) -> tuple[list[Session], str]:
    """Connect to the server that a request names.

    Args:
        bundle: The bundle.
        request: Names the server.
        sample: The images: only of files can these be sent.
        stack: Closes the connections.
        progress: Told which inputs are not given anything.

    Returns:
        A session for each of its inputs that is given something, and :func:`mislabelled_text`.

    Raises:
        DeploykitError: See :func:`deploykit.runtime.opener.open_server`.
    """
    manifest = bundle.manifest
    opened = open_server(
        request.server or "",
        request.protocol or "http",
        name=bundle.name,
        precision=request.precision or "fp32",
        preprocessing=manifest.preprocessing,
        labels=manifest.labels,
        read_file=_reader(sample) if sample.kind == "photos" else None,
    )
    for session in opened.sessions:
        stack.enter_context(session)
    for name, reason in opened.skipped.items():
        progress(Note(f"skipped: the server's input {visible(name)}: {reason}"))
    return [*opened.sessions], mislabelled_text(opened.labels, manifest.labels)


def _reader(sample: ImageSample) -> Callable[[str], bytes]:
    from deploykit.images.sources import SourceFile

    def read(name: str) -> bytes:
        file = sample.files[name]
        if isinstance(file, SourceFile):
            return file.read()
        return file.path.read_bytes()

    return read


def mislabelled_text(told: Sequence[str], labels: Labels) -> str:
    """That a server's names of the classes are not the bundle's; "" where they are, or not told."""
    pairs = zip(told, labels.names, strict=False)
    wrong = [(place, *pair) for place, pair in enumerate(pairs) if pair[0] != pair[1]]
    if not wrong:
        return ""
    place, theirs, ours = wrong[0]
    more = f", and {len(wrong) - 1} more otherwise" if len(wrong) > 1 else ""
    return visible(f"the server calls class {place} {theirs!r}, the bundle {ours!r}{more}")


def time_requests(
    session: Session, images: Sequence[NamedBatch], progress: Progress
) -> tuple[Latency, ...]:
    """Time requests of one image, and of several, one after the other.

    Args:
        session: A server's.
        images: At least one image: those that are sent, over and over.
        progress: Called after every request.
    """
    names = [name for batch, _ in images for name in batch]
    pixels = [image for _, batch in images for image in batch]
    several = min(OPT_BATCH_SIZE, session.spec.largest_batch or OPT_BATCH_SIZE, len(names))
    return tuple(
        Latency.of(size, _timed(session, names, pixels, size, progress))
        for size in dict.fromkeys((1, several))
    )


def _timed(
    session: Session,
    names: Sequence[str],
    pixels: Sequence[npt.NDArray[np.uint8 | np.float32]],
    size: int,
    progress: Progress,
) -> list[float]:
    """The seconds of each request; the first, which may wake something up, does not count."""
    seconds: list[float] = []
    end = time.perf_counter() + _SECONDS
    for number in range(_REQUESTS + 1):
        places = [(number * size + i) % len(names) for i in range(size)]
        batch, group = np.stack([pixels[i] for i in places]), [names[i] for i in places]
        start = time.perf_counter()
        if isinstance(session, NamedSession):
            session.run_named(group, batch)
        else:
            session.run(batch)
        seconds.append(time.perf_counter() - start)
        progress(Step("timing", number, _REQUESTS + 1, f"{size} images a request"))
        if time.perf_counter() > end and number:
            break
    return seconds[1:]
