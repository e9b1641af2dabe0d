"""The pass from an FP32 deploy graph to INT8, and what a search for its FP32 nodes asks.

A tensor is rounded to 8 bits where an operator takes it as integers: a QuantizeLinear and a
DequantizeLinear stand there, and runtimes compute with integers between two such pairs. ONNX
Runtime's own quantizer is not used. It rounds whatever a neighbour asks for, so that a node which
it is told to leave out gets rounded inputs all the same; it takes Relus out, and calls what a Conv
gives by the Relu's name, so that no layer can be compared; and its histograms hold every tensor of
every image in memory at once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.errors import GraphError
from deploykit.graph.passes import Pass
from deploykit.graph.rounded_weights import (
    SMALLEST,
    Bias,
    Layer,
    RoundedWeight,
    bias_of,
    layer_of,
    rounded_weight,
)
from deploykit.graph.values import (
    Switches,
    batch_dimension,
    check_node_names,
    constant_of,
    in_preprocessing,
    insert_behind,
    named_node,
    new_constant,
    working_copy,
)

#: Operators through which integers flow from one weighted operator to the next.
_JOINS = frozenset({"Add", "Concat"})
_CARRIERS = _JOINS | {"MaxPool"}
#: A Conv's groups of fewer channels are slow with integers: with 3 OpenVINO 2026.4 took 7.7 times
#: as long as with 12 on AVX2 alone, where its fast kernels take multiples of 4, and 1.7 to 3.5
#: times on VNNI or AMX. Wider ones are not: groups of 10 to 102, two as one, took 0.8 to 2.2 times
#: as long there. Of more than 8 groups as one nearly all weights would be 0.
_LEAST_GROUP, _GROUP_STEP, _MOST_TOGETHER = 8, 4, 8
#: The most that a bias may count in int32: the other half is for the products it is added to.
_LARGEST_BIAS = 2**30


def convert_to_int8(
    ranges: Mapping[str, tuple[float, float]],
    keep: Collection[str] = frozenset(),
    *,
    symmetric: bool = False,
    joins: bool = True,
    weights: Mapping[str, RoundedWeight] | None = None,
) -> Pass:
    """Make the pass from an FP32 deploy graph to one that computes in INT8.

    Inputs, outputs and the preprocessing stay as they are; every node and every tensor keeps its
    name. Weights are rounded for each output channel by itself, symmetrically. A tensor is rounded
    once; the nodes that are kept in FP32 take it as it was computed, and have their own weights.

    The pass leaves the model that it is given as it is, for other conversions. A graph with a
    QuantizeLinear in it comes back unchanged.

    Args:
        ranges: By the name of each tensor of :func:`quantized_tensors` the lowest and the highest
            value that it is to hold.
        keep: The names of nodes that stay in FP32, weights included.
        symmetric: Whether tensors become int8 around 0 and biases stay FP32, as TensorRT wants it;
            else they become uint8 with a zero point, for which CPUs have instructions, biases
            int32, and a Conv's groups of few channels wider ones.
        joins: Whether Add and Concat take integers too, and whatever else takes a tensor that is
            rounded takes it rounded. ONNX Runtime needs that: its Conv takes integers only where it
            gives nothing but integers. Without, a tensor is rounded for the nodes that take it as
            integers, and a shortcut's Add takes it as it was computed; OpenVINO can do so, for 0.8
            to 1.1 times the speed.
        weights: By the names of nodes their weights, rounded; every other one is rounded to the
            nearest of 8 bits.

    Raises:
        GraphError: By the pass: the graph has no node of such a name, nodes without a name of their
            own, a subgraph, or a value whose type cannot be inferred; or a range is missing.
    """

    def convert(model: ir.Model) -> tuple[ir.Model, bool]:
        if any(node.op_type == "QuantizeLinear" for node in model.graph):
            return model, False
        check_node_names(model, keep, "int8")
        converted = working_copy(model)
        graph = converted.graph
        taken = {node: _activations(node, joins) for node in graph if node.name not in keep}
        tensors = dict.fromkeys(each for inputs in taken.values() for each in inputs)
        exact = _spared(graph, taken, keep, joins)
        roundings = _roundings(graph, tensors, ranges, symmetric=symmetric)
        for tensor, rounding in roundings.items():
            _insert(graph, tensor, rounding, exact)
        for node, inputs in taken.items():
            if inputs and node.op_type not in _CARRIERS:
                rounded = (weights or {}).get(node.name or "")
                _quantize_weight(node, rounded, on_cpu=not symmetric)
        common.RemoveUnusedNodesPass()(converted)
        return converted, True

    return convert


def switchable_int8(
    model: ir.Model,
    ranges: Mapping[str, tuple[float, float]],
    *,
    symmetric: bool = False,
    joins: bool = True,
) -> tuple[ir.Model, tuple[str, ...], bool]:
    """Round the tensors of an FP32 deploy graph as INT8 does, each of them only on demand.

    So what each rounding costs is measured in a few runs of one session. Weights stay FP32.

    Args:
        model: The graph; it stays as it is.
        ranges: As for :func:`convert_to_int8`, as the arguments below.
        symmetric: Around 0.
        joins: Add and Concat too.

    Returns:
        The graph, with the input of :class:`deploykit.graph.values.Switches`; the names of its T
        tensors; and whether the images of a batch may have different switches. Where a tensor's
        first dimension is not the batch's, as a transformer's tokens, they may not: then a batch is
        to have one image.

    Raises:
        GraphError: The type of a value cannot be inferred, or a range is missing.
    """
    copy = working_copy(model)
    taken = {node: _activations(node, joins) for node in copy.graph}
    tensors = list(dict.fromkeys(each for tensors in taken.values() for each in tensors))
    exact = _spared(copy.graph, taken, frozenset(), joins)
    batch = batch_dimension(copy.graph)
    by_image = all(tensor.shape and tensor.shape[0] == batch for tensor in tensors)
    switches = Switches(copy.graph, tensors)
    roundings = _roundings(copy.graph, tensors, ranges, symmetric=symmetric)
    for tensor, rounding in roundings.items():
        _insert(copy.graph, tensor, switches.chosen(tensor, rounding), exact)
    return copy, tuple(tensor.name or "" for tensor in tensors), by_image


def quantized_tensors(model: ir.Model, *, joins: bool = True) -> dict[str, tuple[str, ...]]:
    """The tensors of an FP32 deploy graph that INT8 rounds, and for which nodes.

    Args:
        model: The graph.
        joins: See :func:`convert_to_int8`.

    Returns:
        By the name of each tensor the names of the nodes that take it as integers, in the order of
        the graph. Where all of them stay in FP32, it is not rounded.
    """
    takers: dict[str, list[str]] = {}
    for node in working_copy(model).graph:
        for tensor in dict.fromkeys(_activations(node, joins)):
            takers.setdefault(tensor.name or "", []).append(node.name or "")
    return {tensor: tuple(names) for tensor, names in takers.items()}


def integer_nodes(model: ir.Model, *, joins: bool = True) -> tuple[ir.Node, ...]:
    """The nodes of an FP32 deploy graph that INT8 computes with integers, in its order."""
    return tuple(node for node in working_copy(model).graph if _activations(node, joins))


def has_weight(node: ir.Node) -> bool:
    """Whether one of :func:`integer_nodes` computes, and does not just carry integers on."""
    return node.op_type not in _CARRIERS


def _activations(node: ir.Node, joins: bool) -> tuple[ir.Value, ...]:
    """The tensors that a node takes as integers; none where it is in FP32 at any precision."""
    inputs = [value for value in node.inputs if value is not None]
    if in_preprocessing(node) or any(value.dtype != ir.DataType.FLOAT for value in inputs):
        return ()
    constant = [constant_of(value) is not None for value in inputs]
    if node.op_type in _CARRIERS:
        spared = any(constant) or (node.op_type in _JOINS and not joins)
        return () if spared else tuple(inputs)
    return (inputs[0],) if layer_of(node) is not None and not constant[0] else ()


def _spared(
    graph: ir.Graph,
    taken: Mapping[ir.Node, tuple[ir.Value, ...]],
    keep: Collection[str],
    joins: bool,
) -> frozenset[ir.Node]:
    """The nodes that take every tensor as it was computed, also where others take it rounded."""
    return frozenset(node for node in graph if node.name in keep or not (joins or taken.get(node)))


def _insert(
    graph: ir.Graph, tensor: ir.Value, rounding: Sequence[ir.Node], exact: Collection[ir.Node]
) -> None:
    """Put what rounds a tensor behind it, for all who take it but the nodes that are spared."""
    for node, index in tensor.uses():
        if node not in rounding and node not in exact:
            node.replace_input_with(index, rounding[-1].outputs[0])
    insert_behind(graph, tensor, rounding)


def _quantize_weight(node: ir.Node, rounded: RoundedWeight | None, *, on_cpu: bool) -> None:
    """Give a node, whose input is rounded, its weight in int8.

    For CPUs also its bias in int32, and a Conv's groups of few channels wider ones.

    A weight that several nodes share is rounded for each.
    """
    layer, source = layer_of(node), node.inputs[0]
    if source is None or layer is None:
        return
    rounded = rounded or rounded_weight(layer, None, LARGEST)
    others = tuple(each for each in range(layer.weight.ndim) if each != layer.axis)
    place, step = bias_of(layer), scale_of(source)
    integer_bias = on_cpu and place is not None and place.node is node
    bias = None if place is None else _corrected(place, rounded)
    scales = _weight_scales(rounded.scales, bias if integer_bias else None, step)
    coarser = np.expand_dims(scales > rounded.scales, others)
    nearest = np.rint(layer.weight / np.expand_dims(scales, others)).astype(np.int8)
    integers = np.where(coarser, nearest, rounded.integers)
    if on_cpu and (together := _groups_together(layer)) > 1:
        integers = _in_wider_groups(integers, layer.groups, together)
        node.attributes["group"] = ir.AttrInt64("group", layer.groups // together)
    node.replace_input_with(
        1, constant_pair(node, f"{node.name}/weight", integers, scales, layer.axis)
    )
    if place is None or bias is None or not isinstance(node.graph, ir.Graph):
        return
    name = f"{node.name}/bias"
    if integer_bias:
        steps = step * scales
        counts = np.rint(bias / steps.astype(np.float64)).astype(np.int32)
        value = constant_pair(node, name, counts, steps, 0)
    else:
        value = new_constant(node.graph, name, bias.astype(np.float32))
    if len(place.node.inputs) <= place.index:
        place.node.resize_inputs(place.index + 1)
    place.node.replace_input_with(place.index, value)


def _groups_together(layer: Layer) -> int:
    """How many neighbouring groups of a Conv are to be one; 1 where it is fast, or none fit.

    Depthwise Convs are fast: runtimes have kernels of their own for them.
    """
    groups = layer.groups
    if groups == 1:
        return 1
    inputs, outputs = layer.weight.shape[1], layer.outputs // groups
    if inputs == outputs == 1 or min(inputs, outputs) >= _LEAST_GROUP:
        return 1
    fitting = (
        together
        for together in range(2, _MOST_TOGETHER + 1)
        if groups % together == 0
        and min(inputs, outputs) * together >= _LEAST_GROUP
        and inputs * together % _GROUP_STEP == outputs * together % _GROUP_STEP == 0
    )
    return next(fitting, 1)


def _in_wider_groups(
    integers: npt.NDArray[np.integer], groups: int, together: int
) -> npt.NDArray[np.integer]:
    """A Conv's weight where neighbouring groups are one, with zeros between what was apart.

    Args:
        integers: (O, I, ...) the weight.
        groups: How many groups it has.
        together: How many of them become one.

    Returns:
        (O, ``together * I``, ...).
    """
    outputs, inputs, *kernel = integers.shape
    apart = integers.reshape(groups // together, together, -1, inputs, *kernel)
    own = np.eye(together, dtype=integers.dtype)
    wide: npt.NDArray[np.integer] = np.einsum("gtoi...,tu->gtoui...", apart, own)
    return wide.reshape(outputs, together * inputs, *kernel)


def _corrected(bias: Bias, rounded: RoundedWeight) -> npt.NDArray[np.float64] | None:
    """(O,) a bias with what the weight lost by rounding; None where that is nothing at all."""
    if bias.values is None:
        return rounded.bias if rounded.bias.any() else None
    return bias.values + rounded.bias


def _weight_scales(
    scales: npt.NDArray[np.float32], bias: npt.NDArray[np.float64] | None, step: np.float32
) -> npt.NDArray[np.float32]:
    """The scale of each output channel's weights, with which a bias can be counted.

    A channel whose weights are next to nothing, as BatchNorm leaves a dead one, gets a coarser one
    than they need: its bias is counted in steps of this scale times the input's, and must fit.

    Args:
        scales: (C,) what the weights need.
        bias: (C,) what is counted so; None where it stays in FP32.
        step: The input's scale.
    """
    if bias is not None:
        scales = np.maximum(scales, (np.abs(bias) / step / _LARGEST_BIAS).astype(np.float32))
    # The product with the input's scale is to be a normal number too.
    return np.maximum(scales, np.float32(SMALLEST / min(float(step), 1.0)))


#: Weights and symmetric tensors leave out -128, so that 0 is in the middle.
LARGEST = 127
_LEVELS = 255


def _roundings(
    graph: ir.Graph,
    tensors: Collection[ir.Value],
    ranges: Mapping[str, tuple[float, float]],
    *,
    symmetric: bool,
) -> dict[ir.Value, list[ir.Node]]:
    """The pairs that round a graph's tensors, not in the graph yet.

    Args:
        graph: The graph, which gets their scales and zero points. No pair is in it yet.
        tensors: What is rounded.
        ranges: By the name of each tensor its lowest and its highest value.
        symmetric: Whether tensors become int8 around 0; else uint8 with a zero point.

    Raises:
        GraphError: The range of a tensor is not known.
    """
    pairs = {}
    for tensor in tensors:
        low, high = _range(tensor, ranges)
        step = _step(max(-low, high), LARGEST) if symmetric else _step(high - low, _LEVELS)
        zero = np.array(0, np.int8) if symmetric else np.array(round(-low / step), np.uint8)
        inputs = [
            new_constant(graph, f"{tensor.name}/scale", np.array(step, np.float32)),
            new_constant(graph, f"{tensor.name}/zero_point", zero),
        ]
        quantize = named_node(
            "QuantizeLinear",
            [tensor, *inputs],
            f"{tensor.name}/quantized",
            like=tensor,
            dtype=ir.DataType.from_numpy(zero.dtype),
            of=tensor.producer(),
        )
        integers, name = quantize.outputs[0], f"{tensor.name}/dequantized"
        pairs[tensor] = [quantize, _dequantize([integers, *inputs], name, of=tensor.producer())]
    return pairs


def _range(tensor: ir.Value, ranges: Mapping[str, tuple[float, float]]) -> tuple[float, float]:
    """A tensor's range; what a MaxPool gives has its input's, so that integers pass through."""
    producer = tensor.producer()
    if producer is not None and producer.op_type == "MaxPool":
        source = producer.inputs[0]
        if source is not None and source.name in ranges:
            return _range(source, ranges)
    found = ranges.get(tensor.name or "")
    if found is None:
        raise GraphError(
            f"No range is known for the tensor {tensor.name}.",
            hint="The ranges are another graph's: calibrate this one.",
        )
    return found


def _step(width: float, levels: int) -> float:
    """The scale with which so many levels span a range; of a tensor of zeros any one does."""
    return max(width / levels, SMALLEST) if width > 0 else 1.0


def scale_of(rounded: ir.Value) -> np.float32:
    """The scale of what a DequantizeLinear gives."""
    node = rounded.producer()
    scale = None if node is None else node.inputs[1]
    if scale is None or scale.const_value is None:
        raise GraphError(f"{rounded.name} is not what a DequantizeLinear gives.")
    return np.float32(scale.const_value.numpy())


def constant_pair(
    node: ir.Node,
    name: str,
    integers: npt.NDArray[np.integer],
    scales: npt.NDArray[np.float32],
    axis: int,
) -> ir.Value:
    """Integers as a weight, and the DequantizeLinear through which a node takes them.

    Args:
        node: The node, in its graph.
        name: What the names of the weight and of the DequantizeLinear begin with.
        integers: The weight.
        scales: One for each index of the dimension ``axis``.
        axis: That dimension.
    """
    graph = node.graph
    if not isinstance(graph, ir.Graph):
        raise GraphError(f"{node.name} is in no graph.")
    inputs = [
        new_constant(graph, f"{name}/integers", integers),
        new_constant(graph, f"{name}/scale", scales),
        new_constant(graph, f"{name}/zero_point", np.zeros(scales.shape, integers.dtype)),
    ]
    pair = _dequantize(inputs, f"{name}/dequantized", {"axis": axis}, of=node)
    graph.insert_before(node, pair)
    return pair.outputs[0]


def _dequantize(
    inputs: Sequence[ir.Value],
    name: str,
    attributes: Mapping[str, int] | None = None,
    *,
    of: ir.Node | None,
) -> ir.Node:
    like, fp32 = inputs[0], ir.DataType.FLOAT
    return named_node("DequantizeLinear", inputs, name, attributes, like=like, dtype=fp32, of=of)
