"""What an ONNX graph tells: its inputs, what computes, its weights, what it carries along."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from deploykit.commands.inspect.results import GraphInspection
from deploykit.errors import GraphError, UsageError
from deploykit.specs.model import LABELS_KEY, KeptNode, TensorSpec
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
from deploykit.system.deps import need

if TYPE_CHECKING:
    import onnx_ir as ir

_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"}
_FOREIGN = "Give an ONNX file; a bundle's are model.onnx and those in its folder deploy."


def inspect_graph(path: Path) -> GraphInspection:
    """Look into an ONNX graph.

    Raises:
        GraphError: The file is no ONNX graph.
        DependencyError: onnx is not installed.
    """
    need("onnx_ir")
    from deploykit.graph.files import load_graph

    try:
        model = load_graph(path)
    except GraphError as exc:
        raise GraphError(exc.message, hint=_FOREIGN) from exc
    graph = model.graph
    if not graph.outputs:
        raise GraphError(f"{path} is no ONNX graph: it has no output.", hint=_FOREIGN)
    operators = Counter(node.op_type for node in graph.all_nodes())
    weights = _weights(graph)
    notes: list[str] = []
    return GraphInspection(
        path=str(path),
        bytes=path.stat().st_size,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opsets=dict(model.opset_imports),
        inputs=tuple(_spec(value) for value in graph.inputs),
        outputs=tuple(_spec(value) for value in graph.outputs),
        operators=dict(operators.most_common()),
        weights=dict(weights.most_common()),
        precision=_precision(operators, weights),
        kept=_kept(model) if "float16" in weights else (),
        labels=_labels(model.metadata_props, notes),
        preprocessing=_preprocessing(model.metadata_props, notes),
        notes=tuple(notes),
    )


def _weights(graph: ir.Graph) -> Counter[str]:
    """How many numbers of each type a graph's weights are; their data is not read."""
    counts: Counter[str] = Counter()
    for value in graph.initializers.values():
        if value.const_value is not None:
            counts[value.const_value.dtype.name.lower()] += value.const_value.size
    return Counter({_NUMPY_NAMES.get(name, name): count for name, count in counts.items()})


#: What ONNX calls otherwise than everybody else.
_NUMPY_NAMES = {"float": "float32", "double": "float64"}


def _precision(operators: Counter[str], weights: Counter[str]) -> str:
    if _QUANTIZED & operators.keys():
        return "int8"
    for dtype, precision in (("float16", "fp16"), ("bfloat16", "bf16")):
        if weights[dtype]:
            return precision
    return "fp32"


def _kept(model: ir.Model) -> tuple[KeptNode, ...]:
    from deploykit.graph.fp16 import fp32_nodes
    from deploykit.graph.passes import MODULE_PATH

    return tuple(
        KeptNode(
            node=node.name or "",
            operator=node.op_type,
            module=node.metadata_props.get(MODULE_PATH, ""),
            reason="",
        )
        for node in fp32_nodes(model)
    )


def _spec(value: ir.Value) -> TensorSpec:
    """An input's or output's name, type and shape; ``?`` stands for what a graph leaves open."""
    dtype = "?" if value.dtype is None else value.dtype.numpy().name
    shape: tuple[int | str, ...] = ("?",)
    if value.shape is not None:
        shape = tuple(d if isinstance(d, int) else str(d.value or "?") for d in value.shape)
    return TensorSpec(name=value.name or "", dtype=dtype, shape=shape)


def _labels(carried: dict[str, str], notes: list[str]) -> tuple[str, ...] | None:
    if LABELS_KEY not in carried:
        return None
    try:
        return msgspec.json.decode(carried[LABELS_KEY], type=tuple[str, ...])
    except msgspec.MsgspecError as exc:
        notes.append(f"its labels cannot be read: {exc}")
        return None


def _preprocessing(carried: dict[str, str], notes: list[str]) -> Preprocessing | None:
    if PREPROCESSING_KEY not in carried:
        return None
    try:
        return msgspec.json.decode(carried[PREPROCESSING_KEY], type=Preprocessing)
    except (msgspec.MsgspecError, UsageError) as exc:
        notes.append(f"its preprocessing cannot be read: {exc}")
        return None
