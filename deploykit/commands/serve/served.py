"""A bundle that is open to be served: it has answered its golden images."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from deploykit.bundle.folder import Bundle, find_bundle
from deploykit.bundle.manifest import MANIFEST_NAME
from deploykit.bundle.packed import packed_manifest
from deploykit.commands.predict.run import TopK, checked_top, rows_of
from deploykit.commands.predict.tables import row_value
from deploykit.commands.serve.batching import Batcher, Observe
from deploykit.errors import BundleError
from deploykit.images.batches import default_threads, read_bytes
from deploykit.images.decode import Failure
from deploykit.images.preprocess import Pixels, make_grey
from deploykit.images.scan import ImageFile, escape_name
from deploykit.inference.pipeline import AnsweredBatch, shared_work
from deploykit.proof.auto import AUTO, open_best
from deploykit.proof.policy import Status
from deploykit.proof.self_test import check_golden
from deploykit.proof.text import status_of_run
from deploykit.specs.model import Precision
from deploykit.specs.session import Closing, ImageBatch, Logits, Session
from deploykit.system.progress import Progress, silent

_GOLDEN_HINT = "Nothing is served. Copy or export the bundle again, or name another --runtime."


@dataclass(frozen=True)
class Chosen:
    """Which bundle is served, and how it is opened; as ``predict`` has it.

    Attributes:
        bundle: A name, a folder, or the file of a packed one; None for the newest.
        artifacts: The folder of all bundles; None for the default.
        runtime: See :func:`deploykit.proof.auto.open_best`.
        precision: None for any.
        tf32: Whether a GPU may compute FP32 in TensorFloat-32.
        threads: For decoding, and for computing on the CPU; None for one a core.
        top_k: How many classes a row ranks; None for min(5, K).
        max_batch: The most images a run of the session; None for what is fast.
        max_delay_ms: How long an image waits for others to fill its batch.
    """

    bundle: str | None = None
    artifacts: Path | None = None
    runtime: str = AUTO
    precision: Precision | None = None
    tf32: bool = False
    threads: int | None = None
    top_k: TopK | None = None
    max_batch: int | None = None
    max_delay_ms: float = 2.0


class ServedModel(Closing):
    """An open bundle with the threads that decode for it and those that compute.

    Args:
        chosen: Which bundle, and how.
        observe: Told of each batch.
        progress: Told what is opened, and why.

    Attributes:
        bundle: The bundle, as it was when it was opened.
        session: What answers.
        digest: SHA-256 of the manifest: another one is another bundle.
        status: Whether what runs is proven.
        top_k: How many classes a row ranks.
        max_batch: The most images a batch.

    Raises:
        ParityError: It does not give the recorded answers to the golden images, or nothing that
            runs here is proven.
        DeploykitError: See :func:`deploykit.proof.auto.open_best`.
    """

    def __init__(self, chosen: Chosen, observe: Observe, progress: Progress = silent) -> None:
        bundle = find_bundle(chosen.bundle, chosen.artifacts, progress, packed=True)
        # Before it is opened: what is published meanwhile is another one.
        self.digest = manifest_digest(bundle)
        self.bundle: Bundle = bundle
        self.top_k = checked_top(chosen.top_k, len(bundle.manifest.labels))
        self.session: Session = open_best(
            bundle,
            runtime=chosen.runtime,
            precision=chosen.precision,
            threads=chosen.threads,
            pipelined=True,
            tf32=chosen.tf32,
            progress=progress,
        )
        spec = self.session.spec
        try:
            check_golden(bundle, self.session, hint=_GOLDEN_HINT)
        except BaseException:
            self.session.close()
            raise
        self.status: Status = status_of_run(bundle, spec)
        slots, self.max_batch = shared_work(
            spec, threads=chosen.threads, batch_size=chosen.max_batch
        )
        self._readers = ThreadPoolExecutor(
            chosen.threads or default_threads(), thread_name_prefix="deploykit-read"
        )
        self._batcher = Batcher(
            self.session,
            slots=slots if spec.concurrent else 1,
            max_batch=self.max_batch,
            max_delay_ms=chosen.max_delay_ms,
            observe=observe,
        )
        self._users = 0
        self._retired = False

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Keep it open during the block; only the event loop's thread may say so."""
        self._users += 1
        try:
            yield
        finally:
            self._users -= 1
            if self._retired and not self._users:
                self._close_soon()

    def retire(self) -> None:
        """Close it once nobody uses it any more; another one answers from now on."""
        self._retired = True
        if not self._users:
            self._close_soon()

    def _close_soon(self) -> None:
        # Not in the event loop's thread: a device may take its time.
        asyncio.get_running_loop().run_in_executor(None, self.close)

    def close(self) -> None:
        """Compute what waits, and close the session; closing twice is fine."""
        self._readers.shutdown()
        self._batcher.close()
        self.session.close()

    @property
    def waiting(self) -> int:
        """How many images wait for the session."""
        return self._batcher.waiting

    async def read(self, images: Sequence[bytes], names: Sequence[str]) -> list[Pixels | Failure]:
        """Decode images, side by side.

        Returns:
            (H, W, 3) of each, or what is wrong with it.
        """
        loop, preprocessing = asyncio.get_running_loop(), self.bundle.manifest.preprocessing
        return await asyncio.gather(
            *(
                loop.run_in_executor(self._readers, read_bytes, data, name, preprocessing)
                for data, name in zip(images, names, strict=True)
            )
        )

    async def logits(self, images: ImageBatch) -> Logits:
        """Compute the logits of images, in batches with those of other requests.

        Args:
            images: (N, H, W, 3) of the model's input size; uint8, or float32 in 0..255 of a model
                whose pixels training did not round.

        Returns:
            (N, K) float32.

        Raises:
            DeploykitError: The runtime failed.
        """
        if len(images) == 0:
            return np.empty((0, self.session.spec.classes), np.float32)
        return await asyncio.wrap_future(self._batcher.submit(images))

    def grey(self, images: ImageBatch) -> ImageBatch:
        """Pixels from elsewhere, made grey if training's images were."""
        return make_grey(images) if self.bundle.manifest.preprocessing.grayscale else images

    async def rows(self, images: Sequence[bytes], names: Sequence[str]) -> list[dict[str, Any]]:
        """Answer for images: a row each, whatever is wrong with it, as ``predict`` writes it.

        Args:
            images: What their files hold.
            names: What the rows call them.
        """
        labels = self.bundle.manifest.labels
        files = tuple(ImageFile(Path(), escape_name(name)) for name in names)
        read = await self.read(images, names)
        failures = tuple(each if isinstance(each, Failure) else None for each in read)
        pixels = [each for each in read if not isinstance(each, Failure)]
        logits = await self.logits(np.stack(pixels) if pixels else np.empty((0,), np.uint8))
        batch = AnsweredBatch(files, failures, logits)
        return [
            row_value(row, self.top_k, labels.head) for row in rows_of(batch, labels, self.top_k)
        ]


def manifest_digest(bundle: Bundle) -> str:
    """SHA-256 of a bundle's manifest as it is now, in its folder or in the file that it came from.

    Returns:
        "" where it cannot be read, as while it is replaced.
    """
    try:
        if bundle.packed is None:
            data = (bundle.folder / MANIFEST_NAME).read_bytes()
        else:
            data = packed_manifest(bundle.packed)
    except (OSError, BundleError):
        return ""
    return hashlib.sha256(data).hexdigest()
