"""What a server holds: the model that answers now, who is let in, and what is counted."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from deploykit.commands.serve.admission import Admission, Limits
from deploykit.commands.serve.served import ServedModel, manifest_digest
from deploykit.errors import DeploykitError
from deploykit.system.progress import Note, Progress

if TYPE_CHECKING:
    from deploykit.commands.serve.keys import ApiKeys
    from deploykit.commands.serve.metrics import Metrics

_R = TypeVar("_R")


class Service:
    """A model behind a door; used in the event loop's thread.

    Args:
        open_model: Opens the bundle that is to be served, once more for each reload.
        metrics: What is counted.
        limits: What is let in.
        keys: Who may ask; None for everybody.
        progress: Told of reloads and failures.

    Attributes:
        model: What answers now.
        admission: Who is let in.
        is_draining: Whether the server is about to end: it is not ready for more.
        answered: How many requests with images were answered.
        unanswered: How many of those that were let in got no answer in time, or failed.

    Raises:
        DeploykitError: The bundle cannot be opened, see :class:`ServedModel`.
    """

    def __init__(
        self,
        open_model: Callable[[], ServedModel],
        metrics: Metrics,
        limits: Limits,
        keys: ApiKeys | None,
        progress: Progress,
    ) -> None:
        self._open_model = open_model
        self.metrics = metrics
        self.admission = Admission(limits)
        self.keys = keys
        self.progress = progress
        self.is_draining = False
        self.answered = self.unanswered = 0
        # One at a time: the values of a JSON text take many times its memory.
        self._parser = ThreadPoolExecutor(1, thread_name_prefix="deploykit-parse")
        self._reloading = asyncio.Lock()
        self.model = open_model()
        self._seen = self.model.digest
        metrics.serves(self.model)

    @property
    def limits(self) -> Limits:
        """What is let in."""
        return self.admission.limits

    @contextlib.contextmanager
    def using(self) -> Iterator[ServedModel]:
        """The model that answers now; it stays open during the block."""
        model = self.model
        with model.used():
            yield model

    async def parse(self, read: Callable[[], _R]) -> _R:
        """Call what parses a large body, beside the event loop and one at a time."""
        return await asyncio.get_running_loop().run_in_executor(self._parser, read)

    async def reload(self) -> None:
        """Open the bundle again, and let it answer from now on; if that fails the old one stays."""
        async with self._reloading:
            old, loop = self.model, asyncio.get_running_loop()
            try:
                model = await loop.run_in_executor(None, self._open_model)
            except Exception as exc:  # noqa: BLE001  # the old one answers whatever the reason is
                reason = exc.message if isinstance(exc, DeploykitError) else repr(exc)
                self.metrics.reloads.labels("failed").inc()
                self.progress(Note(f"not reloaded, {old.bundle.name} answers as before: {reason}"))
                return
            self.model = model
            self._seen = model.digest
            self.metrics.reloads.labels("done").inc()
            self.metrics.serves(model)
            self.progress(Note(f"reloaded: {served_text(model)}"))
            old.retire()

    async def reload_if_changed(self) -> None:
        """Reload when the bundle's manifest is another one than was looked at last."""
        digest = manifest_digest(self.model.bundle)
        if digest not in ("", self._seen):
            self._seen = digest  # one that fails is not tried again
            await self.reload()

    def close(self) -> None:
        """Close what answers; nobody asks any more."""
        self._parser.shutdown()
        self.model.close()


def served_text(model: ServedModel) -> str:
    """``dpn92: deploy/fp32.onnx on onnxruntime-cpu, CPU, proven``."""
    spec = model.session.spec
    return f"{model.bundle.name}: {spec.title}, {spec.device}, {model.status.word}"
