"""From ONNX to a TensorRT network whose inputs and outputs are understood."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from deploykit.engine.flavour import TensorRT, make, quoting
from deploykit.errors import GraphError
from deploykit.specs.engine import Profile
from deploykit.specs.tensors import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Iterable

_BATCH = "N"
#: NumPy's name of each of TensorRT's ``DataType``, where NumPy or ml_dtypes has one.
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
_SHOWN_ERRORS = 5


def network_from_onnx(tensorrt: TensorRT, builder: Any, data: bytes, *, name: str) -> Any:
    """Parse a graph into a strongly typed network: its types are the ONNX graph's.

    Args:
        tensorrt: The flavour.
        builder: Its ``Builder``.
        data: What is in the ONNX file. A path would not do: TensorRT opens only those that the
            system's own code page can write.
        name: What errors call it.

    Returns:
        An ``INetworkDefinition``; it keeps its parser, which owns the weights, alive.

    Raises:
        GraphError: TensorRT cannot read the graph, or does not know one of its operators.
        DeviceError: TensorRT makes no network or parser at all.
    """
    trt = tensorrt.trt
    strongly_typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    with tensorrt.log.capture() as lines:
        network = make(tensorrt, "network", lambda: builder.create_network(strongly_typed))
        parser = make(tensorrt, "parser", lambda: trt.OnnxParser(network, tensorrt.log))
        if parser.parse(data):
            return network
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    reasons = [_describe(error) for error in errors[:_SHOWN_ERRORS]] or list(lines)
    if len(errors) > _SHOWN_ERRORS:
        reasons.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    at_nodes = any(error.node_name() or error.node_operator() for error in errors)
    raise GraphError(
        quoting(f"TensorRT cannot read {name}", reasons),
        hint="Replace that operation in the network's forward by one that TensorRT knows, export "
        "again, or run the graph with --runtime onnxruntime-cuda."
        if at_nodes
        else "Export the bundle again.",
    )


def _describe(error: Any) -> str:
    """One line for a ``ParserError``: the node and what is wrong with it."""
    # What follows the first lines repeats the machine's state: no driver.
    reason = "; ".join(line for line in error.desc().splitlines() if "catchCudaError" not in line)
    if not error.node_operator():
        return reason
    return f"node {error.node_name() or error.node()} ({error.node_operator()}): {reason}"


def inputs_of(network: Any) -> tuple[TensorSpec, ...]:
    """The inputs of a network; see :func:`_spec` for what is refused."""
    return _specs(network.get_input(index) for index in range(network.num_inputs))


def outputs_of(network: Any) -> tuple[TensorSpec, ...]:
    """The outputs of a network; see :func:`_spec` for what is refused."""
    return _specs(network.get_output(index) for index in range(network.num_outputs))


def _specs(tensors: Iterable[Any]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(tensor) for tensor in tensors)


def _spec(tensor: Any) -> TensorSpec:
    """The spec of an input or output.

    Raises:
        GraphError: Its batch is not dynamic, another dimension is, or NumPy lacks its type.
    """
    shape = tuple(tensor.shape)
    if not shape or shape[0] != -1 or min(shape[1:], default=1) < 1:
        raise GraphError(
            f"{tensor.name} has shape {list(shape)} (-1 is dynamic): an engine needs a dynamic "
            "batch, which comes first, and nothing else that is dynamic.",
            hint="Export the bundle again: its graphs are like that.",
        )
    dtype = _DTYPES.get(tensor.dtype.name)
    if dtype is None:
        raise GraphError(
            f"{tensor.name} is {tensor.dtype.name}, which NumPy has no type for.",
            hint="Export the bundle again: its graphs take bytes and give FP32.",
        )
    batch = tensor.get_dimension_name(0) or _BATCH
    return TensorSpec(name=tensor.name, dtype=dtype, shape=(batch, *shape[1:]))


def add_profile(
    tensorrt: TensorRT,
    builder: Any,
    config: Any,
    inputs: tuple[TensorSpec, ...],
    profile: Profile,
) -> None:
    """Give the configuration its one optimization profile: batch sizes for every input.

    The names and shapes are the network's own, and a :class:`~deploykit.specs.engine.Profile` is in
    order by construction: what TensorRT would accept here and fail at later cannot happen.

    Raises:
        GraphError: TensorRT refuses the profile all the same.
        DeviceError: TensorRT makes no profile at all.
    """
    batches = (profile.min_batch, profile.opt_batch, profile.max_batch)
    optimization = make(tensorrt, "profile", builder.create_optimization_profile)
    with tensorrt.log.capture() as lines:
        for spec in inputs:
            optimization.set_shape(spec.name, *((batch, *spec.shape[1:]) for batch in batches))
        if config.add_optimization_profile(optimization) < 0:
            raise GraphError(
                quoting(f"TensorRT refuses the batch sizes {batches}", lines),
                hint="Set others with --min-batch, --opt-batch and --max-batch.",
            )
