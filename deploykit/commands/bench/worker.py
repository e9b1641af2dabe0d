"""A process that measures one option for ``bench``: it does what it is asked, line by line.

Each option has a process of its own, so that its memory and its first answer are its own, its
threads are in nobody's way, and its end takes nothing else with it.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from itertools import cycle, islice
from pathlib import Path
from typing import BinaryIO

import msgspec
import numpy as np

from deploykit.bundle.folder import Bundle, open_bundle
from deploykit.commands.bench.memory import peak_memory_bytes
from deploykit.commands.bench.messages import (
    Begin,
    Begun,
    Compute,
    Computed,
    Predict,
    Predicted,
    PredictSample,
    Refused,
    Reply,
    Request,
    SamplePredicted,
)
from deploykit.commands.bench.options import open_option
from deploykit.commands.bench.results import Option
from deploykit.errors import BundleError, DeploykitError, ImagesError, ModelError
from deploykit.images.batches import allocate_buffers, read_batch
from deploykit.images.scan import ImageFile
from deploykit.inference.pipeline import answer_files, shared_work
from deploykit.runtime.opener import HOST_RUNTIMES
from deploykit.specs.session import ImageBatch, Logits, Session
from deploykit.system.stages import StageClock


class OpenOption:
    """An option that is open, and has given its first logits.

    Args:
        begin: What to open, and with which photos.
    """

    def __init__(self, begin: Begin) -> None:
        self._bundle: Bundle = open_bundle(Path(os.fsdecode(begin.bundle)))
        self._option = begin.option
        self._files = begin.sample.files
        self._session = open_option(self._bundle, begin.option, pipelined=True)
        _require_finite(self._session.run(self._read(self._files[:1])), begin.option)
        self._workers, self._batch_size = shared_work(
            self._session.spec, threads=None, batch_size=None
        )

    def begun(self) -> Begun:
        """What it is."""
        return Begun(spec=self._session.spec, batch_size=self._batch_size)

    def predict_sample(self) -> SamplePredicted:
        """Predict the sample, and tell what it took and how good the answers are."""
        start = time.perf_counter()
        logits = self._answer(self._files)
        seconds = time.perf_counter() - start
        peak = peak_memory_bytes()
        _require_finite(logits, self._option)
        labels = self._bundle.manifest.labels.names
        known = [
            (labels[place], file.expected)
            for place, file in zip(logits.argmax(axis=1).tolist(), self._files, strict=True)
            if file.expected is not None
        ]
        return SamplePredicted(
            peak_memory_bytes=peak,
            images_per_second=len(self._files) / seconds,
            labelled=len(known),
            correct=sum(found == expected for found, expected in known),
        )

    def compute(self, request: Compute) -> Computed:
        """Run the session alone; of each size the first run is a warm-up."""
        images = self._read(self._files)
        seconds, refusals = {}, {}
        with self._alone() as session:
            for batch in request.batches:
                try:
                    repeated = _repeated(images, batch)
                    seconds[batch] = _seconds_of_runs(session, repeated, request.seconds)
                except MemoryError:
                    refusals[batch] = "memory does not hold so many images at once"
                except DeploykitError as exc:
                    refusals[batch] = exc.message
        return Computed(seconds=seconds, refusals=refusals)

    def predict(self, request: Predict) -> Predicted:
        """Predict photos, the sample again and again."""
        files = list(islice(cycle(self._files), request.images))
        start = time.perf_counter()
        self._answer(files)
        return Predicted(seconds=time.perf_counter() - start)

    def _alone(self) -> contextlib.AbstractContextManager[Session]:
        """The session that has the machine to itself: on the CPU, all threads compute one batch.

        That one does not stay open: for large batches it needs memory, and so does everyone's.
        """
        if self._option.runtime in HOST_RUNTIMES:
            return open_option(self._bundle, self._option, pipelined=False)
        return contextlib.nullcontext(self._session)

    def _read(self, files: list[ImageFile]) -> ImageBatch:
        preprocessing = self._bundle.manifest.preprocessing
        (buffer,) = allocate_buffers(1, len(files), preprocessing)
        images = read_batch(files, preprocessing, buffer, StageClock()).images
        _require_all(len(images), files)
        return images

    def _answer(self, files: list[ImageFile]) -> Logits:
        batches = answer_files(
            files,
            self._bundle.manifest.preprocessing,
            self._session,
            batch_size=self._batch_size,
            workers=self._workers,
            clock=StageClock(),
        )
        logits = np.concatenate([batch.logits for batch in batches])
        _require_all(len(logits), files)
        return logits


def _require_all(answered: int, files: list[ImageFile]) -> None:
    """Refuse to count photos that were there when the measurement began, and are not any more."""
    if answered < len(files):
        raise ImagesError(
            f"{len(files) - answered} of {len(files)} photos of {files[0].root} can no longer be "
            "read.",
            hint="Leave the folder alone while bench measures.",
        )


def _require_finite(logits: Logits, option: Option) -> None:
    """Refuse what is no answer: the largest of logits that are not numbers is a class, too."""
    if not np.isfinite(logits).all():
        raise ModelError(
            f"{option.name} gives NaN or infinity for photos of the sample.",
            hint="deploykit verify tells where its answers leave the reference's.",
        )


def _repeated(images: ImageBatch, count: int) -> ImageBatch:
    """So many images, the same ones again and again."""
    return images[np.arange(count) % len(images)]


def _seconds_of_runs(session: Session, images: ImageBatch, enough: float) -> tuple[float, ...]:
    """How long each run takes, until they have taken long enough together."""
    session.run(images)
    seconds: list[float] = []
    while sum(seconds) < enough:
        start = time.perf_counter()
        session.run(images)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


def answer_requests(requests: BinaryIO, replies: BinaryIO) -> None:
    """Answer every line until there is none."""
    decoder = msgspec.json.Decoder(Request)
    opened: OpenOption | None = None
    for line in requests:
        request = decoder.decode(line)
        reply: Reply
        try:
            if isinstance(request, Begin):
                opened = OpenOption(request)
                reply = opened.begun()
            elif opened is None:
                raise ValueError(f"nothing has begun: {request}")
            elif isinstance(request, PredictSample):
                reply = opened.predict_sample()
            elif isinstance(request, Compute):
                reply = opened.compute(request)
            else:
                reply = opened.predict(request)
        except DeploykitError as exc:
            reply = Refused(
                message=exc.message,
                hint=exc.hint,
                exit_code=exc.exit_code,
                damaged=isinstance(exc, BundleError),
            )
        replies.write(msgspec.json.encode(reply) + b"\n")
        replies.flush()


def main(replies: int) -> None:
    """Answer what comes on stdin.

    Args:
        replies: The file descriptor to answer on, which nothing else writes to.
    """
    with os.fdopen(replies, "wb") as stream:
        answer_requests(sys.stdin.buffer, stream)
