"""What is measured of one candidate, in a process of its own."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import time
from collections.abc import Mapping
from itertools import cycle, islice
from pathlib import Path

import numpy as np

from deploykit.bundle.folder import open_bundle
from deploykit.commands.bench.candidates import open_listed
from deploykit.commands.bench.results import Measured, Timing, name_of
from deploykit.errors import DeploykitError, ImagesError, ModelError
from deploykit.images.batches import allocate_buffers, read_batch
from deploykit.images.scan import ImageFile
from deploykit.inference.candidates import Candidate
from deploykit.inference.pipeline import answer_files, shared_work
from deploykit.parity.accuracy import accuracy_of
from deploykit.runtime.opener import HOST_RUNTIMES
from deploykit.specs.session import ImageBatch, Logits, Session
from deploykit.system.threads import StageClock

#: Fewer rounds cannot tell a difference from noise.
LEAST_ROUNDS = 3
#: The longest that one batch size runs in a turn, unless one run takes longer.
_COMPUTE_SECONDS = 0.25
#: The longest prediction of a turn: long against starting and ending its threads.
_PREDICT_SECONDS = 1.5
_LEAST_IMAGES = 8
#: The longest that a candidate predicts the sample before the rounds.
_SAMPLE_SECONDS = 5.0


class OpenCandidate:
    """A candidate that is open as in a prediction, and has given one image's logits.

    Args:
        folder: The bundle.
        candidate: What to open.
        files: The sample: images that can be read.
        known: The right classes of images, by their names.
        started: When its process was started, as :func:`time.time` tells.

    Raises:
        DeploykitError: It does not open, or its logits are NaN or infinite.
    """

    def __init__(
        self,
        folder: Path,
        candidate: Candidate,
        files: list[ImageFile],
        known: Mapping[str, tuple[str, ...]],
        started: float,
    ) -> None:
        self._bundle = open_bundle(folder)
        self._candidate = candidate
        self._files = files
        self._known = known
        self._session = open_listed(self._bundle, candidate, pipelined=True)
        first = self._read(files[:1])
        start = time.perf_counter()
        self._require_finite(self._session.run(first))
        self._first_run_seconds = time.perf_counter() - start
        self._first_answer_seconds = time.time() - started
        self._workers, self._batch_size = shared_work(
            self._session.spec, threads=None, batch_size=None
        )
        self._runs: dict[int, list[float]] = {}
        self._skipped_batches: dict[int, str] = {}
        self._rates: list[float] = []
        self._images: ImageBatch | None = None
        self._alone_seconds = 0.0
        self._turn_seconds = 0.0
        self._seconds_an_image = 0.0

    def first_run_seconds(self) -> float:
        """How long the first image took, when the session was open."""
        return self._first_run_seconds

    def predict_sample(self) -> float:
        """Predict the sample once: for the memory that it takes, the accuracy, and the speed.

        Of a slow candidate as much of it as there is time for, even over the classes.

        Returns:
            The seconds that the shortest prediction of a turn takes.

        Raises:
            ModelError: Some logits are NaN or infinite.
            ImagesError: An image can no longer be read.
        """
        predicted, logits = [], []
        rest, at_most = self._files, _LEAST_IMAGES
        for _ in range(2):  # the second time by the speed of the first
            part = rest[:: math.ceil(len(rest) / at_most)] if rest and at_most else []
            if not part:
                break
            start = time.perf_counter()
            logits.append(self._answer(part))
            self._sample_rate = len(part) / (time.perf_counter() - start)
            self._require_finite(logits[-1])
            predicted += part
            rest = [file for file in rest if file not in part]
            at_most = int(_SAMPLE_SECONDS * self._sample_rate)
        self._peak_memory_bytes = peak_memory_bytes()
        paths, labels = [file.name for file in predicted], self._bundle.manifest.labels
        self._accuracy = accuracy_of(np.concatenate(logits), paths, self._known, labels)
        return _LEAST_IMAGES / self._sample_rate

    def predict(self, seconds: float) -> None:
        """Predict the sample, again and again.

        Args:
            seconds: About how long it may take.

        Raises:
            ImagesError: An image can no longer be read.
        """
        count = max(_LEAST_IMAGES, round(min(_PREDICT_SECONDS, seconds) * self._sample_rate))
        files = list(islice(cycle(self._files), count))
        start = time.perf_counter()
        self._answer(files)
        self._rates.append(count / (time.perf_counter() - start))

    def compute(self, batch_sizes: tuple[int, ...], seconds: float) -> None:
        """Run the session alone with batches of one size after the other.

        What this candidate has for all of its rounds, less what the predictions take at least, is
        what this and all later turns have together. A size for which that is too little is
        skipped: two runs of a large batch can take a minute. Only the smallest runs in any case.

        Args:
            batch_sizes: Images a run.
            seconds: Each size has a warm-up, and then runs for so long; at least once. The
                candidate has as much for each size and for its prediction, in each round.

        Raises:
            ImagesError: An image can no longer be read.
        """
        prediction = max(min(_PREDICT_SECONDS, seconds), _LEAST_IMAGES / self._sample_rate)
        allowed = LEAST_ROUNDS * (seconds * (len(batch_sizes) + 1) - prediction)
        left = allowed - self._alone_seconds
        if self._runs and self._turn_seconds > left:
            return
        start = time.perf_counter()
        # On the CPU, all threads compute one batch. That session is opened for each turn, because
        # it holds memory for large batches.
        alone: contextlib.AbstractContextManager[Session] = contextlib.nullcontext(self._session)
        if self._candidate.runtime in HOST_RUNTIMES:
            alone = open_listed(self._bundle, self._candidate, pipelined=False)
        with alone as session:
            if self._images is None:
                self._images = self._read(self._files)
                start = time.perf_counter()  # opening and reading for the first time are apart
            for batch in batch_sizes:
                # A warm-up and a run, by what a smaller size took.
                expected = 2 * batch * self._seconds_an_image
                affordable = expected <= left - (time.perf_counter() - start)
                if batch in self._skipped_batches:
                    continue
                if affordable or not self._runs:
                    self._run_size(session, self._images, batch, min(_COMPUTE_SECONDS, seconds))
                elif batch not in self._runs:
                    why = f"two runs take about {expected:.1f} s: give more --seconds"
                    self._skipped_batches[batch] = why
        self._turn_seconds = time.perf_counter() - start
        self._alone_seconds += self._turn_seconds

    def _run_size(self, session: Session, images: ImageBatch, batch: int, seconds: float) -> None:
        """Run a session with one size of batch, or note why that size is skipped."""
        largest = session.spec.largest_batch
        if largest is not None and batch > largest:
            self._skipped_batches[batch] = f"it takes at most {largest}"
            return
        try:
            repeated = images[np.arange(batch) % len(images)]
            session.run(repeated)  # the warm-up
            runs: list[float] = []
            while sum(runs) < seconds:
                start = time.perf_counter()
                session.run(repeated)
                runs.append(time.perf_counter() - start)
        except MemoryError:
            self._skipped_batches[batch] = "memory does not hold so many images at once"
        except DeploykitError as exc:
            self._skipped_batches[batch] = exc.message
        else:
            self._runs.setdefault(batch, []).extend(runs)
            self._seconds_an_image = min(runs) / batch

    def measured(self) -> Measured:
        """All that was found, without a status."""
        return Measured(
            candidate=self._candidate,
            spec=self._session.spec,
            first_answer_seconds=self._first_answer_seconds,
            peak_memory_bytes=self._peak_memory_bytes,
            timings=tuple(
                Timing(batch=batch, seconds=tuple(seconds))
                for batch, seconds in sorted(self._runs.items())
            ),
            skipped_batches=self._skipped_batches,
            batch_size=self._batch_size,
            rates=tuple(self._rates),
            labelled=0 if self._accuracy is None else self._accuracy.images,
            correct=0 if self._accuracy is None else self._accuracy.correct,
        )

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

    def _require_finite(self, logits: Logits) -> None:
        """Refuse NaN and infinity: the largest of them would name a class, too."""
        if not np.isfinite(logits).all():
            raise ModelError(
                f"{name_of(self._candidate)} gives NaN or infinity for images of the sample.",
                hint="Compare its answers with the reference's: deploykit verify",
            )


def _require_all(answered: int, files: list[ImageFile]) -> None:
    """Refuse a sample from which images have vanished: they would count as predicted."""
    if answered < len(files):
        raise ImagesError(
            f"{len(files) - answered} of {len(files)} images of {files[0].root} can no longer be "
            "read.",
            hint="Leave the folder alone while bench measures.",
        )


def peak_memory_bytes() -> int | None:
    """The peak of this process's resident memory; None where the system does not tell."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    elif sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # bytes there
    else:
        # psutil has no peak here, and ru_maxrss begins with the parent's; VmHWM is our own.
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        found = re.search(r"VmHWM:\s*(\d+) kB", status)
        return 1024 * int(found[1]) if found else None
