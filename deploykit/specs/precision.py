"""The precisions, and the nodes that stay in FP32 below it."""

from __future__ import annotations

from typing import Literal, TypeAlias, get_args

from deploykit.specs.value import Value

Precision: TypeAlias = Literal["fp32", "fp16", "bf16", "int8"]


PRECISIONS: tuple[Precision, ...] = get_args(Precision)


class KeptNode(Value, frozen=True):
    """A node that stays in FP32 in a graph of lower precision.

    Attributes:
        node: The ONNX node's name.
        operator: ``Conv``.
        module: The path of the ``nn.Module`` that it comes from, ``conv2.0.conv1``; empty where the
            exporter named none.
        reason: Why it stays, in words, with the numbers.
    """

    node: str
    operator: str
    module: str
    reason: str
