"""What an ONNX graph tells: its inputs, what computes, its weights, what it carries along."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from deploykit.errors import GraphError, UsageError
from deploykit.specs.heads import Head
from deploykit.specs.model import HEAD_KEY, LABELS_KEY, KeptNode, TensorSpec, check_class_names
from deploykit.specs.preprocessing import PREPROCESSING_KEY, Preprocessing
from deploykit.specs.value import Shown, Value, decode_json
from deploykit.system.deps import need

if TYPE_CHECKING:
    import onnx_ir as ir

_Carried = TypeVar("_Carried")

_QUANTIZED = {"QuantizeLinear", "DequantizeLinear", "QLinearConv", "ConvInteger", "MatMulInteger"}
_FOREIGN = "Give an ONNX file; a bundle's are model.onnx and those in its folder deploy."


class GraphInspection(Shown, Value, frozen=True):
    """An ONNX graph.

    Attributes:
        path: The file.
        bytes: Its size.
        producer: The program that made it.
        opsets: The version of each operator set; the empty name is ONNX's own.
        inputs: Names, types and shapes.
        outputs: Likewise.
        operators: How many nodes each operator has, most first.
        weights: How many numbers of each type the weights are.
        precision: What it computes in, in words.
        kept: Nodes in FP32 in a graph of lower precision; the reasons are the bundle's to tell.
        labels: The classes' names that it carries; None without.
        head: What it says that its logits mean; None without, as of a single-label network.
        preprocessing: What it carries of it; None without.
        notes: What is wrong with what it carries.
    """

    path: str
    bytes: int
    producer: str
    opsets: dict[str, int]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    operators: dict[str, int]
    weights: dict[str, int]
    precision: str
    kept: tuple[KeptNode, ...]
    labels: tuple[str, ...] | None
    head: Head | None
    preprocessing: Preprocessing | None
    notes: tuple[str, ...]

    @property
    def sound(self) -> bool:
        """Whether all that it carries can be read."""
        return not self.notes


def inspect_graph(path: Path) -> GraphInspection:
    """Look into an ONNX graph.

    Raises:
        GraphError: The file is no ONNX graph.
        DependencyError: onnx is not installed.
    """
    need("onnx_ir")
    from deploykit.graph.files import load_graph, tensor_spec
    from deploykit.graph.fp16 import fp32_nodes
    from deploykit.graph.passes import MODULE_PATH

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
    labels = _carried(model, LABELS_KEY, tuple[str, ...], notes)
    try:
        check_class_names(labels or ())
    except UsageError as exc:
        notes.append(exc.message.rstrip("."))
    return GraphInspection(
        path=str(path),
        bytes=path.stat().st_size,
        producer=" ".join(filter(None, (model.producer_name, model.producer_version))),
        opsets=dict(model.opset_imports),
        inputs=tuple(tensor_spec(value) for value in graph.inputs),
        outputs=tuple(tensor_spec(value) for value in graph.outputs),
        operators=dict(operators.most_common()),
        weights=dict(weights.most_common()),
        precision=_precision(operators, weights),
        kept=tuple(
            KeptNode(
                node=node.name or "",
                operator=node.op_type,
                module=node.metadata_props.get(MODULE_PATH, ""),
                reason="",
            )
            for node in (fp32_nodes(model) if "float16" in weights else ())
        ),
        labels=labels,
        head=_carried(model, HEAD_KEY, cast("type[Head]", Head), notes),
        preprocessing=_carried(model, PREPROCESSING_KEY, Preprocessing, notes),
        notes=tuple(notes),
    )


def _weights(graph: ir.Graph) -> Counter[str]:
    """How many numbers of each type a graph's weights are; their data is not read."""
    counts: Counter[str] = Counter()
    for value in graph.initializers.values():
        if value.const_value is not None:
            counts[value.const_value.dtype.numpy().name] += value.const_value.size
    return counts


def _precision(operators: Counter[str], weights: Counter[str]) -> str:
    if _QUANTIZED & operators.keys():
        return "int8"
    for dtype, precision in (("float16", "fp16"), ("bfloat16", "bf16")):
        if weights[dtype]:
            return precision
    return "fp32"


def _carried(model: ir.Model, key: str, kind: type[_Carried], notes: list[str]) -> _Carried | None:
    """What a graph carries under a key; what cannot be read is a note."""
    if key not in model.metadata_props:
        return None
    try:
        return decode_json(model.metadata_props[key], kind)
    except ValueError as exc:
        notes.append(f"its {key.rpartition('.')[2]} cannot be read: {exc}")
        return None
