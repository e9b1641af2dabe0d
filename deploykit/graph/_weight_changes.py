"""How a weight differs from what it should be."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deploykit.graph.values import fp16_weight

_SHOWN_VALUES = 8
#: Relative to a value: folding a BatchNorm on another CPU may round otherwise, in FP32 and in FP16.
_ROUNDING = {np.dtype(np.float32): 1e-6, np.dtype(np.float16): 2.0**-10}
#: Relative to the largest value of the tensor: a folded bias is a difference, and where it nearly
#: cancels, what rounding leaves was 1e-4 of the value and 2e-6 of the largest.
_CANCELLED = 1e-5
#: FP16 counts in such steps near zero.
_SMALLEST = {np.dtype(np.float32): 0.0, np.dtype(np.float16): 2.0**-24}


def weight_change(found: ir.Value | None, expected: ir.Value | None) -> str | None:
    """Say how a constant differs from another by more than the rounding to its own type.

    Args:
        found: What a node takes.
        expected: What it should take.

    Returns:
        ``takes head.weight with 1 of 24 values changed, ...``; None where nothing differs, or one
        of the two is no constant, or was quantised.
    """
    if found is None or expected is None:
        return None
    if found.const_value is None or expected.const_value is None:
        return None
    values, wanted = found.const_value.numpy(), expected.const_value.numpy()
    name = expected.name
    if values.shape != wanted.shape:
        return f"takes {name} of shape {values.shape} instead of {wanted.shape}"
    if values.dtype == np.float16 and wanted.dtype == np.float32:
        wanted = fp16_weight(wanted)
    if values.dtype != wanted.dtype:
        return None
    if np.array_equal(values, wanted):
        return None  # the usual case: the rest takes a second for a large network
    changed = _changed(values, wanted)
    if not changed.any():
        return None
    if values.size <= _SHOWN_VALUES:
        return f"takes {name} {values.tolist()} instead of {wanted.tolist()}"
    return f"takes {name} with {_extent(values, wanted, changed)}"


def is_rescaled(values: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> bool:
    """Whether a weight is another up to rounding and a factor for each output channel.

    That is what folding a BatchNorm makes of it.

    Args:
        values: (O, ...), the weight.
        wanted: The other, of the same shape; vectors must be equal.
    """
    if values.ndim > 1:
        rows, others = values.reshape(len(values), -1), wanted.reshape(len(wanted), -1)
        products = np.einsum("ij,ij->i", rows, others, dtype=np.float64)
        squares = np.einsum("ij,ij->i", others, others, dtype=np.float64)
        factors = np.divide(products, squares, out=np.ones_like(squares), where=squares > 0)
        values, wanted = rows, others * factors[:, None].astype(np.float32)
    return not _changed(values, wanted).any()


def _changed(values: npt.NDArray[Any], wanted: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    if values.dtype not in _ROUNDING:
        return np.asarray(values != wanted)
    # In the wider type, because a difference of two FP16 numbers may be none.
    ours, theirs = values.astype(np.float64), wanted.astype(np.float64)
    largest = float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0))
    absolute = max(_SMALLEST[values.dtype], _CANCELLED * largest)
    return ~np.isclose(ours, theirs, _ROUNDING[values.dtype], absolute, equal_nan=True)


def _extent(
    values: npt.NDArray[Any], wanted: npt.NDArray[Any], changed: npt.NDArray[np.bool_]
) -> str:
    """How many values changed, by how much, and the first of them."""
    where = tuple(int(i) for i in np.argwhere(changed)[0])
    ours, theirs = values.astype(np.float64), wanted.astype(np.float64)
    norm = float(np.linalg.norm(theirs))
    loss = f", by {np.linalg.norm(ours - theirs) / norm:.1e} of its norm" if norm else ""
    return (
        f"{np.count_nonzero(changed):,} of {values.size:,} values changed{loss}: "
        f"{list(where)} is {values[where]:.6g} instead of {wanted[where]:.6g}"
    )
