"""What a server counts, for Prometheus."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

if TYPE_CHECKING:
    from deploykit.commands.serve.admission import Admission
    from deploykit.commands.serve.served import ServedModel

#: Where several processes count together; each reads it when it imports the library.
SHARED_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The counters of a process; those of all workers are added up where one is asked."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._registry = own = CollectorRegistry()
        self.requests = Counter(
            "deploykit_requests", "Requests by route and HTTP status", ["route", "status"],
            registry=own,
        )  # fmt: skip
        self.seconds = Histogram(
            "deploykit_request_seconds", "From a request's headers to its answer", ["route"],
            buckets=_SECONDS, registry=own,
        )  # fmt: skip
        self.images = Counter(
            "deploykit_images", "Images by what became of them: ok, or what is wrong", ["status"],
            registry=own,
        )  # fmt: skip
        self._batch_images = Histogram(
            "deploykit_batch_images", "Images in a batch", buckets=_BATCHES, registry=own
        )
        self._batch_seconds = Histogram(
            "deploykit_batch_seconds", "What the session takes for a batch", buckets=_SECONDS,
            registry=own,
        )  # fmt: skip
        self._in_flight = Gauge(
            "deploykit_images_in_flight", "Images that are let in and not answered",
            multiprocess_mode="livesum", registry=own,
        )  # fmt: skip
        self._bytes = Gauge(
            "deploykit_body_bytes_in_flight", "What the bodies of their requests take",
            multiprocess_mode="livesum", registry=own,
        )  # fmt: skip
        self._waiting = Gauge(
            "deploykit_images_waiting", "Images that wait for the session",
            multiprocess_mode="livesum", registry=own,
        )  # fmt: skip
        self.reloads = Counter(
            "deploykit_reloads", "Reloads by outcome: done, failed", ["outcome"], registry=own
        )
        self._served = Gauge(
            "deploykit_served", "1 for the bundle that answers, 0 for one that did before",
            ["bundle", "manifest_sha256", "graph", "runtime", "precision", "device", "status"],
            multiprocess_mode="livemax", registry=own,
        )  # fmt: skip
        for outcome in ("done", "failed"):
            self.reloads.labels(outcome)
        self._model: ServedModel | None = None

    def batch(self, images: int, seconds: float) -> None:
        """Count a batch."""
        self._batch_images.observe(images)
        self._batch_seconds.observe(seconds)

    def serves(self, model: ServedModel) -> None:
        """Say which bundle answers from now on."""
        if self._model is not None:
            self._of(self._model).set(0)
        self._model = model
        self._of(model).set(1)

    def _of(self, model: ServedModel) -> Gauge:
        spec = model.session.spec
        return self._served.labels(
            *(model.bundle.name, model.digest, spec.graph, spec.runtime, spec.precision),
            *(spec.device, model.status.word),
        )

    def measure(self, load: Admission, waiting: int) -> None:
        """Take down what is under way."""
        self._in_flight.set(load.images)
        self._bytes.set(load.bytes)
        self._waiting.set(waiting)

    def text(self) -> bytes:
        """All of it, in Prometheus' own format."""
        if SHARED_FOLDER not in os.environ:
            return generate_latest(self._registry)
        from prometheus_client.multiprocess import MultiProcessCollector

        everybody = CollectorRegistry()
        MultiProcessCollector(everybody)  # type: ignore[no-untyped-call]
        return generate_latest(everybody)
