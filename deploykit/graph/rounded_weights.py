"""Weights rounded to integers by what that does to a layer's answers, not each to its nearest.

What a layer takes is correlated: the error of one weight is made good by the next ones, as OBQ and
GPTQ do it (Frantar and Alistarh, "Optimal Brain Compression", 2022, arXiv:2208.11580; Frantar et
al., "GPTQ", 2022, arXiv:2210.17323). What remains of the error on average goes into the bias
(Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", 2019,
arXiv:1906.04721), so only the covariance of the inputs counts for the rounding; of a layer without
a bias their second moments.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from deploykit.graph.values import constant_of

Array = npt.NDArray[np.float64]

#: Samples for each input of a layer, and at least so many. On EfficientNet-Lite0 4 an input left
#: up to twice the error of 16, on other photos.
_SAMPLES_AN_INPUT, _LEAST_SAMPLES = 16, 2000
#: Of all layers together, and the most inputs of one, whose rounding takes six times its
#: covariance: what would take more is rounded to the nearest.
_MOST_BYTES, _MOST_INPUTS = 2**31, 8192
#: What is added to the diagonal of a covariance, as a part of its mean: GPTQ's own, or more where
#: there are few samples, of which much of the covariance is chance. On EfficientNet-Lite0's layers
#: the error was 0.03 to 0.98 of that of the nearest; with 0.01 alone up to 1.2 times it.
_LEAST_DAMPING = 0.01
#: The smallest scale: below it float32 loses its bits one by one, and some CPUs flush to 0.
SMALLEST = float(np.finfo(np.float32).tiny)
#: How many weights are rounded before what follows is corrected, all at once, which is faster.
_BLOCK = 64


@dataclass
class InputMoments:
    """Mean and covariance of what one output of a layer is a weighted sum of.

    G is the number of the layer's groups, I the number of inputs of a group's outputs: of a Conv
    the channels of a group times the pixels of its kernel.

    Attributes:
        samples: How many places of how many images were looked at.
        origin: (G, I) about the mean, from which sums and products are counted: of large values
            that hardly vary, float32 would not tell their covariance.
        sums: (G, I).
        products: (G, I, I); None of a layer of which only the mean is known.
    """

    samples: int
    origin: npt.NDArray[np.float32]
    sums: Array
    products: npt.NDArray[np.float32] | None

    def add(self, rows: npt.NDArray[np.float32]) -> None:
        """Take note of samples, (G, P, I)."""
        if not self.samples:
            self.origin = rows.mean(axis=1)
        rows = rows - self.origin[:, None, :]
        self.samples += rows.shape[1]
        self.sums += rows.sum(axis=1, dtype=np.float64)
        if self.products is not None:
            with np.errstate(over="ignore", invalid="ignore"):  # see spread
                self.products += rows.transpose(0, 2, 1) @ rows

    @property
    def mean(self) -> Array:
        """(G, I)."""
        return self.origin + self.sums / max(self.samples, 1)

    def spread(self, *, about_mean: bool) -> Array | None:
        """How the inputs vary, damped; None where only the mean is known, or products overflowed.

        Args:
            about_mean: (G, I, I) the covariance; else the second moments, which hold the mean too.
        """
        if self.products is None or not self.samples or not np.isfinite(self.products).all():
            return None
        mean = self.sums / self.samples
        found = self.products / self.samples - mean[:, :, None] * mean[:, None, :]
        if not about_mean:
            found += self.mean[:, :, None] * self.mean[:, None, :]
        diagonal = np.einsum("gii->gi", found)
        damping = max(_LEAST_DAMPING, diagonal.shape[1] / self.samples)
        typical = diagonal.mean(axis=1, keepdims=True)
        diagonal += np.where(typical > 0, damping * typical, 1.0)  # of inputs that never vary
        return found


@dataclass(frozen=True)
class RoundedWeight:
    """A layer's weight as integers.

    Attributes:
        integers: int8, of the weight's shape.
        scales: (O,) float32, one for each output channel.
        bias: (O,) float64, what is to be added to the bias; zeros where :func:`bias_of` finds none.
    """

    integers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    bias: Array


@dataclass(frozen=True)
class Layer:
    """A node with a weight, as the matrix that it multiplies its inputs by.

    Attributes:
        node: A Conv, a Gemm or a MatMul.
        weight: Its weight, in the shape of the graph.
        axis: The dimension of the weight that tells output channels apart, 0 or 1.
    """

    node: ir.Node
    weight: npt.NDArray[np.float32] = field(repr=False)
    axis: int

    @property
    def outputs(self) -> int:
        """O: how many output channels there are."""
        count: int = self.weight.shape[self.axis]
        return count

    @property
    def groups(self) -> int:
        """G: how many parts of the channels are convolved by themselves."""
        return self.node.attributes.get_int("group", 1) if self.node.op_type == "Conv" else 1

    @property
    def inputs(self) -> int:
        """I: how many inputs an output is a sum of."""
        return self.weight.size // max(self.outputs, 1)

    def matrix(self, values: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """A weight of this shape as (G, O / G, I)."""
        rows = values.T if self.axis else values.reshape(len(values), -1)
        return rows.reshape(self.groups, -1, rows.shape[1])

    def weight_of(self, matrix: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
        """The inverse of :meth:`matrix`."""
        rows = matrix.reshape(-1, matrix.shape[2])
        return rows.T if self.axis else rows.reshape(self.weight.shape)

    def sample(
        self, values: npt.NDArray[np.float32], places: int, rng: np.random.Generator
    ) -> npt.NDArray[np.float32] | None:
        """What some of the layer's outputs are sums of.

        Args:
            values: Of the layer's input: (N, C, ...) of a Conv, else (..., I).
            places: How many outputs to look at, of each channel; all, where there are fewer.
            rng: Chooses them.

        Returns:
            (G, P, I); None of a Conv whose padding the graph leaves to the runtime, and of a Gemm
            of a transposed input.
        """
        attributes = self.node.attributes
        if self.node.op_type != "Conv":
            if attributes.get_int("transA", 0):
                return None
            rows = values.reshape(-1, values.shape[-1])
            return rows[_some(len(rows), places, rng)][None]
        if attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return None
        kernel = self.weight.shape[2:]
        ones = [1] * len(kernel)
        pads = attributes.get_ints("pads", [0] * 2 * len(kernel))
        strides = attributes.get_ints("strides", ones)
        dilations = attributes.get_ints("dilations", ones)
        sides = list(zip(pads[: len(kernel)], pads[len(kernel) :], strict=True))
        padded = np.pad(values, [(0, 0), (0, 0), *sides])
        spans = [(size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True)]
        axes = tuple(range(2, values.ndim))
        windows = np.lib.stride_tricks.sliding_window_view(padded, spans, axis=axes)
        steps = [slice(None, None, each) for each in (1, 1, *strides, *dilations)]
        windows = windows[tuple(steps)]
        grid = (len(values), *windows.shape[2 : values.ndim])
        chosen = np.unravel_index(_some(int(np.prod(grid)), places, rng), grid)
        # (N, C, *outputs, *kernel) => (P, C, *kernel) => (G, P, I)
        taken = windows[(chosen[0], slice(None), *chosen[1:])]  # type: ignore[arg-type]
        return taken.reshape(len(taken), self.groups, -1).transpose(1, 0, 2)


def _some(count: int, wanted: int, rng: np.random.Generator) -> npt.NDArray[np.intp]:
    return np.arange(count) if count <= wanted else rng.choice(count, wanted, replace=False)


class MomentsOfInputs:
    """Gathers the moments of what the layers of a graph take, batch by batch.

    Args:
        nodes: The layers.
        images: How many images there will be.
    """

    def __init__(self, nodes: Iterable[ir.Node], images: int) -> None:
        self._images = max(images, 1)
        self._rng = np.random.default_rng(0)
        self._layers: dict[str, Layer] = {}
        self.moments: dict[str, InputMoments] = {}
        room = _MOST_BYTES
        layers = [layer for node in nodes if (layer := layer_of(node)) is not None]
        for layer in sorted(layers, key=lambda each: each.groups * each.inputs**2):
            shape = (layer.groups, layer.inputs)
            size = 4 * layer.groups * layer.inputs**2
            fits = size <= room and layer.inputs <= _MOST_INPUTS
            products = np.zeros((*shape, layer.inputs), np.float32) if fits else None
            room -= size if fits else 0
            name, origin = layer.node.name or "", np.zeros(shape, np.float32)
            self._layers[name] = layer
            self.moments[name] = InputMoments(0, origin, np.zeros(shape), products)

    def add(self, values: Mapping[str, npt.NDArray[np.float32]], images: int) -> None:
        """Take note of a batch.

        Args:
            values: By the name of each tensor that a layer takes its values.
            images: How many images these are of.
        """
        for name, layer in self._layers.items():
            taken = values[layer.node.inputs[0].name or ""]  # type: ignore[union-attr]
            wanted = max(_SAMPLES_AN_INPUT * layer.inputs, _LEAST_SAMPLES)
            places = -(-wanted * images // self._images)
            rows = layer.sample(taken, places, self._rng)
            if rows is not None and np.isfinite(rows).all():
                self.moments[name].add(rows)

    def rounded_weights(self, largest: int) -> Iterator[tuple[str, RoundedWeight]]:
        """The layers' names and weights, see :func:`rounded_weight`."""
        for name, layer in self._layers.items():
            yield name, rounded_weight(layer, self.moments[name], largest)


def layer_of(node: ir.Node) -> Layer | None:
    """A node as a layer; None where it has no constant weight, or one without output channels."""
    if node.op_type not in {"Conv", "Gemm", "MatMul"}:
        return None
    weight = constant_of(node.inputs[1])
    if weight is None or (node.op_type == "MatMul" and weight.ndim != 2):
        return None
    is_first = node.op_type == "Conv" or node.attributes.get_int("transB", 0) == 1
    return Layer(node, weight, axis=0 if is_first else 1)


@dataclass(frozen=True)
class Bias:
    """Where one value for each output channel is added to what a layer's weight gives.

    Attributes:
        node: The layer's node; or the Add behind a MatMul.
        index: Which of its inputs the bias is.
        values: (O,) float64; None where there is no such input yet.
    """

    node: ir.Node
    index: int
    values: Array | None


def bias_of(layer: Layer) -> Bias | None:
    """Where a layer's bias is, or can be; None where nothing is added to the plain product."""
    node, index = layer.node, 2
    if any(node.attributes.get_float(name, 1.0) != 1.0 for name in ("alpha", "beta")):
        return None
    if node.op_type == "MatMul":
        uses = [*node.outputs[0].uses()]
        if len(uses) != 1 or node.outputs[0].is_graph_output() or uses[0].node.op_type != "Add":
            return None
        node, index = uses[0].node, 1 - uses[0].idx
    elif len(node.inputs) <= index or node.inputs[index] is None:
        return Bias(node, index, None)
    values = constant_of(node.inputs[index])
    if values is None or values.shape != (layer.outputs,):
        return None
    return Bias(node, index, values.astype(np.float64))


def rounded_weight(layer: Layer, moments: InputMoments | None, largest: int) -> RoundedWeight:
    """Round a layer's weight, each output channel with a scale of its own.

    Args:
        layer: The layer.
        moments: Of its inputs; None to round each weight to the nearest integer.
        largest: The largest integer: 127 of 8 bits, 63 of 7.
    """
    matrix = layer.matrix(layer.weight).astype(np.float64)
    steps = np.maximum(np.abs(matrix).max(axis=2, initial=0.0) / largest, SMALLEST)
    scales = steps.astype(np.float32).astype(np.float64)
    is_corrected = bias_of(layer) is not None
    spread = None if moments is None else moments.spread(about_mean=is_corrected)
    integers = np.rint(matrix / scales[:, :, None])
    if spread is not None:
        with contextlib.suppress(np.linalg.LinAlgError):  # then the nearest must do
            integers = _rounded(matrix, scales, spread, largest)
    missing = matrix - integers * scales[:, :, None]
    mean = moments.mean[:, None, :] if moments is not None and is_corrected else np.zeros(1)
    return RoundedWeight(
        integers=layer.weight_of(integers).astype(np.int8),
        scales=scales.reshape(-1).astype(np.float32),
        bias=(missing * mean).sum(axis=2).reshape(-1),
    )


def _rounded(matrix: Array, scales: Array, spread: Array, largest: int) -> Array:
    """The integers with which the outputs differ least from those of the matrix.

    Args:
        matrix: (G, O, I).
        scales: (G, O).
        spread: (G, I, I), see :meth:`InputMoments.spread`.
        largest: See :func:`rounded_weight`.

    Returns:
        (G, O, I), whole numbers.
    """
    inputs = matrix.shape[2]
    # The inputs that vary most first: what is rounded last is corrected by nothing.
    order = np.argsort(-np.diagonal(spread, axis1=1, axis2=2), axis=1, kind="stable")
    weights = np.take_along_axis(matrix, order[:, None, :], axis=2)
    sorted_rows = np.take_along_axis(spread, order[:, :, None], axis=1)
    ordered = np.take_along_axis(sorted_rows, order[:, None, :], axis=2)
    # The upper Cholesky factor of the inverse: its rows say how the others make an error good.
    factor = np.linalg.cholesky(np.linalg.inv(ordered)).transpose(0, 2, 1)
    integers = np.empty_like(weights)
    for start in range(0, inputs, _BLOCK):
        block = slice(start, min(start + _BLOCK, inputs))
        errors = np.empty_like(weights[:, :, block])
        for each in range(block.start, block.stop):
            column = np.clip(np.rint(weights[:, :, each] / scales), -largest, largest)
            integers[:, :, each] = column
            error = (weights[:, :, each] - column * scales) / factor[:, each, each, None]
            errors[:, :, each - start] = error
            rest = slice(each + 1, block.stop)
            weights[:, :, rest] -= error[:, :, None] * factor[:, None, each, rest]
        behind = slice(block.stop, inputs)
        weights[:, :, behind] -= errors @ factor[:, block, behind]
    unsorted = np.empty_like(integers)
    np.put_along_axis(unsorted, order[:, None, :], integers, axis=2)
    return unsorted
