"""A graph's inputs and outputs."""

from __future__ import annotations

from deploykit.specs.value import Value


class TensorSpec(Value, frozen=True):
    """One input or output of a graph.

    Attributes:
        name: The tensor's name in the graph.
        dtype: NumPy's name of the element type, ``float32``.
        shape: One entry a dimension; a name stands for a dynamic one.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
