"""What a tensor loses: errors relative to a reference tensor, added up over images."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from deploykit.parity.ranges import MAX_ROUNDING_LOSS
from deploykit.specs.model import Precision

#: The error that one node may add. In FP32 kernels add up in different orders: torch and ONNX
#: Runtime's CPU provider were 9e-7 apart at most, on seven networks; a GPU's algorithms get more
#: room. In FP16 it was 6e-4 on trained networks, but the range scan keeps a node in FP32 only when
#: its weights or its output lose more than it allows each. INT8 has steps of 1/127 of the largest
#: value, rounding to which costs 0.3 / 127 of it: a tenth of the norm where the largest is 44 times
#: the root mean square. A scale that is too small costs several times that.
_TOLERANCES: dict[Precision, float] = {"fp32": 5e-5, "fp16": 2 * MAX_ROUNDING_LOSS, "int8": 0.1}
#: How much more the whole network may be off than one node: errors add up on their way.
_WHOLE_NETWORK = 10.0
#: What no answer may be off, whatever the nodes may be.
_MOST = 0.2


def layer_tolerance(precision: Precision) -> float:
    """The error that a node of a graph of this precision may add; no graph is in BF16."""
    return _TOLERANCES[precision]


def answer_tolerance(precision: Precision) -> float:
    """The error that the logits of a graph may have where no node adds too much."""
    return min(_WHOLE_NETWORK * layer_tolerance(precision), _MOST)


@dataclass
class TensorError:
    """The error of one tensor, added up over images.

    Attributes:
        non_finite: How many values are NaN or infinite where the reference's are finite.
        reference_non_finite: How many of the reference's values are NaN or infinite themselves.
        compared: How many values are finite in both.
        failure: Why there is no tensor, or none of the reference's shape; empty where there is.
    """

    non_finite: int = 0
    reference_non_finite: int = 0
    compared: int = 0
    failure: str = ""
    _error: float = 0.0
    _reference: float = 0.0
    _found: float = 0.0

    def add(self, found: npt.NDArray[Any], reference: npt.NDArray[Any]) -> None:
        """Take note of a tensor's values; where the reference is not finite, nothing is compared.

        Args:
            found: The tensor.
            reference: What it should be.
        """
        if found.shape != reference.shape:
            self.failure = f"gives shape {found.shape} instead of {reference.shape}"
            return
        ours, theirs = found.ravel(), reference.ravel()
        comparable = np.isfinite(theirs)
        usable = comparable & np.isfinite(ours)
        self.reference_non_finite += theirs.size - int(np.count_nonzero(comparable))
        self.non_finite += int(np.count_nonzero(comparable & ~usable))
        if not usable.all():
            ours, theirs = ours[usable], theirs[usable]
        self.compared += ours.size
        self._error += _squares(ours.astype(np.float64) - theirs)
        self._reference += _squares(theirs)
        self._found += _squares(ours)

    @property
    def nothing_to_compare(self) -> bool:
        """Whether the reference has no finite value; an empty tensor lacks none."""
        return self.reference_non_finite > 0 and not self.compared

    @property
    def relative(self) -> float:
        """The L2 norm of the error relative to the reference's.

        Infinite where a value is not finite, there is no such tensor, or the reference has no
        finite value; where the reference is all zeros, 1 for anything but zeros.
        """
        if self.non_finite or self.failure or self.nothing_to_compare:
            return math.inf
        scale = self._reference or self._found
        return math.sqrt(self._error / scale) if scale else 0.0


def _squares(values: npt.NDArray[Any]) -> float:
    """The sum of the squares, in float64."""
    return float(np.einsum("i,i->", values, values, dtype=np.float64))
