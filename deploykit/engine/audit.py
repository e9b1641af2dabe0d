"""The audit: in which precision an engine's layers compute, as its inspector tells.

What the inspector's JSON looks like is from NVIDIA's documentation ("Engine Inspector") and from
what others published of TensorRT 8 to 10; no engine of TensorRT for RTX has been inspected. What is
not recognised counts as unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import msgspec

from deploykit.engine.flavour import make, quoting
from deploykit.errors import DeviceError
from deploykit.specs.engine import Profile, TensorRT
from deploykit.specs.model import Precision, TensorSpec

UNKNOWN = "unknown"
#: Layers that move or hold values and compute none.
_MOVING_LAYERS = frozenset(
    ("cast", "concatenation", "constant", "identity", "noop", "reformat", "shuffle", "slice")
)
#: How the versions of TensorRT spell a type: ``Half``, ``Half(64,1:8)``, ``Channel major FP16
#: format where channel % 8 == 0``, and ``N/A due to dynamic shapes``. BFloat16 is also a Float.
_SPELLINGS = (
    ("bf16", re.compile("bfloat16|bf16", re.IGNORECASE)),
    ("fp16", re.compile("half|fp16", re.IGNORECASE)),
    ("fp8", re.compile("fp8", re.IGNORECASE)),
    ("fp32", re.compile("float|fp32", re.IGNORECASE)),
    ("int8", re.compile(r"\bint8", re.IGNORECASE)),
    ("integer", re.compile("int|bool", re.IGNORECASE)),
)


@dataclass(frozen=True)
class Audit:
    """How many of an engine's computing layers are in which precision.

    Attributes:
        layers: The number of layers of each precision, ``unknown`` where the inspector does not
            tell.
    """

    layers: Counter[str]

    @property
    def tells(self) -> bool:
        """Whether the inspector tells the precision of any layer."""
        return bool(self.layers.keys() - {UNKNOWN})

    def reason(self, precision: Precision) -> str | None:
        """Say why this is no engine of a precision; None when it is, or the inspector is silent."""
        if precision == "fp32" or self.layers[precision] or not self.tells:
            return None
        found = ", ".join(f"{count} in {name}" for name, count in self.layers.most_common())
        return f"none of the engine's computing layers is in {precision}: {found}"


def layer_precisions(inspector_json: str) -> Counter[str]:
    """Count an engine's computing layers by precision.

    A layer's precision is that of its weights, else that of its first output whose type is told.
    TensorRT does not tell those of a dynamic shape unless the inspector has an execution context.

    Args:
        inspector_json: What ``get_engine_information(LayerInformationFormat.JSON)`` returns.

    Returns:
        Counts under ``fp32``, ``fp16``, ``bf16``, ``fp8``, ``int8``, ``integer`` and ``unknown``;
        empty when the text is not laid out as expected.
    """
    try:
        layers = msgspec.json.decode(inspector_json.encode(), type=_Inspection).layers
    except msgspec.MsgspecError:
        return Counter()
    return Counter(
        _precision(layer)
        for layer in layers
        if not (isinstance(layer, _Layer) and layer.type.lower() in _MOVING_LAYERS)
    )


class _Tensor(msgspec.Struct):
    type: str = msgspec.field(name="Format/Datatype", default="")


class _Layer(msgspec.Struct):
    type: str = msgspec.field(name="LayerType", default="")
    outputs: list[_Tensor] = msgspec.field(name="Outputs", default_factory=list)
    weights: Any = msgspec.field(name="Weights", default=None)


class _Inspection(msgspec.Struct):
    # An engine that was built without detailed profiling verbosity has mere names here.
    layers: list[_Layer | str] = msgspec.field(name="Layers")


def _precision(layer: _Layer | str) -> str:
    if isinstance(layer, str):
        return UNKNOWN
    weights = layer.weights if isinstance(layer.weights, dict) else {}
    for spelled in (str(weights.get("Type", "")), *(tensor.type for tensor in layer.outputs)):
        for precision, spelling in _SPELLINGS:
            if spelling.search(spelled):
                return precision
    return UNKNOWN


def audit_engine(
    tensorrt: TensorRT, plan: bytes, *, inputs: tuple[TensorSpec, ...], profile: Profile
) -> Audit:
    """Ask an engine for its layers, on the GPU that it was built for.

    Args:
        tensorrt: The flavour that built it.
        plan: The serialized engine.
        inputs: Its inputs, batch first.
        profile: Its batch sizes; the layers are those for ``opt_batch``.

    Raises:
        DeviceError: TensorRT does not start, or does not load the engine here.
    """
    trt = tensorrt.trt
    with tensorrt.log.capture() as lines:
        runtime = make(tensorrt, "runtime", lambda: trt.Runtime(tensorrt.log))
        engine = runtime.deserialize_cuda_engine(plan)
        context = None if engine is None else engine.create_execution_context()
        # Without shapes the inspector does not tell types.
        if context is not None and all(
            context.set_input_shape(spec.name, (profile.opt_batch, *spec.shape[1:]))
            for spec in inputs
        ):
            inspector = make(tensorrt, "inspector", engine.create_engine_inspector)
            inspector.execution_context = context
            text = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
            return Audit(layer_precisions(text))
    raise DeviceError(
        quoting("TensorRT does not load the engine", lines),
        hint="Close what else uses the GPU, or build for this very GPU: "
        "deploykit build-trt --target current",
    )
