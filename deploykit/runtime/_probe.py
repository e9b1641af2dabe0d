"""Any ONNX graph on ONNX Runtime's CPU provider, to look into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from deploykit.errors import GraphError
from deploykit.runtime._onnxruntime_open import ORT_ERRORS, open_on_cpu

#: What a run raises; an input that is missing is a ValueError.
_RUN_ERRORS: tuple[type[Exception], ...] = (ValueError, *ORT_ERRORS)


class GraphProbe:
    """An open graph with any inputs and outputs.

    Args:
        graph: The graph's file, or what would be in it: 2 GB at most.
        threads: For computing; None for one a core.

    Raises:
        GraphError: ONNX Runtime cannot read the graph.
    """

    def __init__(self, graph: Path | bytes, threads: int | None) -> None:
        self._name = graph.name if isinstance(graph, Path) else "the graph"
        self._session: Any = open_on_cpu(graph, self._name, threads)
        self._outputs: list[str] = [output.name for output in self._session.get_outputs()]

    def run(self, feeds: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        """Compute all outputs.

        Args:
            feeds: The inputs by name.

        Returns:
            The outputs by name, owned by the caller.

        Raises:
            GraphError: An input is missing, or does not fit, or the graph fails on it.
        """
        if self._session is None:
            raise RuntimeError("the probe is closed")
        try:
            values = self._session.run(None, dict(feeds))
        except _RUN_ERRORS as exc:
            given = ", ".join(f"{name} {array.shape}" for name, array in feeds.items())
            raise GraphError(f"{self._name} failed on {given}: {exc}") from exc
        return dict(zip(self._outputs, values, strict=True))

    def close(self) -> None:
        """Free the graph's memory; closing twice is fine."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
