"""Any ONNX graph on ONNX Runtime, to look into it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy.typing as npt

from deploykit.errors import GraphError
from deploykit.runtime._onnxruntime import open_on_cuda
from deploykit.runtime._onnxruntime_open import ORT_ERRORS, open_on_cpu
from deploykit.specs.precision import Precision
from deploykit.system.closing import Closing

#: What a run raises; an input that is missing is a ValueError.
_RUN_ERRORS: tuple[type[Exception], ...] = (ValueError, *ORT_ERRORS)


class GraphProbe(Closing):
    """An open graph with any inputs and outputs.

    Args:
        graph: The graph's file, or what would be in it: 2 GB at most.
        threads: For computing on the CPU; None for one a core.
        cuda: The precision of the graph's arithmetic on GPU 0; None for the CPU.

    Raises:
        GraphError: ONNX Runtime cannot read the graph.
        DeviceError: There is no GPU, or ONNX Runtime cannot use it.
    """

    def __init__(
        self, graph: Path | bytes, threads: int | None, cuda: Precision | None = None
    ) -> None:
        self._name = graph.name if isinstance(graph, Path) else "the graph"
        self._session: Any
        if cuda is None:
            self._session = open_on_cpu(graph, self._name, threads)
        else:
            _, self._session = open_on_cuda(graph, self._name, cuda, tf32=False, threads=threads)
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
