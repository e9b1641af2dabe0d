"""How long requests take, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from deploykit.parity.measures import percentile
from deploykit.specs.value import Value


class Latency(Value, frozen=True):
    """The time from an image's pixels or file here to its answer here, over one connection.

    Percentiles are the nearest rank; see :func:`deploykit.parity.measures.percentile`.

    Attributes:
        batch_size: Images a request.
        requests: How many were timed.
        p50_ms: So many milliseconds half of the requests do not exceed.
        p90_ms: The same of 90 %.
        p99_ms: The same of 99 %. Of fewer than 100 requests it is the largest.
    """

    batch_size: int
    requests: int
    p50_ms: float
    p90_ms: float
    p99_ms: float

    @classmethod
    def of(cls, batch_size: int, seconds: Sequence[float]) -> Self:
        """Sum up requests, one at least."""
        found = 1000 * np.array(seconds, np.float64)
        p50, p90, p99 = (percentile(found, each) for each in (50, 90, 99))
        return cls(batch_size=batch_size, requests=len(seconds), p50_ms=p50, p90_ms=p90, p99_ms=p99)
