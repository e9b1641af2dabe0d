"""A module as torch traced it for the export: what each operation gives, by the graph's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from deploykit.errors import GraphError
from deploykit.graph.cut import Step
from deploykit.graph.export import CANONICAL_INPUT, OUTPUT, traced_program
from deploykit.specs.preprocessing import Size


class TracedModule:
    """A module, traced, whose operations torch computes one by one.

    Args:
        module: See :func:`deploykit.graph.export.onnx_from_module`, as the arguments below.
        input_size: H and W.
        opset: The ONNX operator set.

    Attributes:
        steps: By the name of each float tensor how it is computed, in the order of the program.

    Raises:
        GraphError: torch cannot export the module.
    """

    def __init__(self, module: nn.Module, input_size: Size, *, opset: int | None = None) -> None:
        program = traced_program(module, input_size, opset=opset)
        # Without its guards, which refuse a batch of 1: the example had 2 images.
        self._code: fx.GraphModule = program.module(check_guards=False)
        nodes = [node for node in self._code.graph.nodes if node.op == "call_function"]
        (self._answer,) = self._code.graph.output_node().all_input_nodes
        (self._input,) = (node.name for node in self._code.graph.nodes if node.op == "placeholder")
        self.steps: Mapping[str, Step] = {
            self._name_of(node): Step(
                node=node.name,
                operator=getattr(node.target, "__name__", str(node.target)).partition(".")[0],
                module=_module_path(node),
                inputs=tuple(self._name_of(each) for each in node.all_input_nodes),
            )
            for node in nodes
        }

    def run(self, inputs: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[Any]]:
        """Compute every float tensor.

        Args:
            inputs: (N, 3, H, W), normalised.

        Returns:
            The tensors by name, the caller's.

        Raises:
            GraphError: The program fails on this batch.
        """
        recorder = _Recorder(self._code)
        try:
            with torch.inference_mode():
                recorder.run(torch.tensor(inputs))
        except (RuntimeError, AssertionError) as exc:
            raise GraphError(f"The traced module fails on a batch of {len(inputs)}: {exc}") from exc
        return {self._name_of(node): values for node, values in recorder.tensors.items()}

    def _name_of(self, node: fx.Node) -> str:
        """A tensor's name in the canonical graph: the exporter keeps torch's, but for two."""
        if node is self._answer:
            return OUTPUT
        return CANONICAL_INPUT if node.name == self._input else node.name


class _Recorder(fx.Interpreter):
    """Keeps every float tensor that an operation gives."""

    def __init__(self, code: fx.GraphModule) -> None:
        super().__init__(code)
        self.tensors: dict[fx.Node, npt.NDArray[Any]] = {}

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if (
            n.op == "call_function"
            and isinstance(result, torch.Tensor)
            and result.is_floating_point()
        ):
            self.tensors[n] = np.array(result.numpy())  # a later operation may change it in place
        return result


def _module_path(node: fx.Node) -> str:
    """The path of the innermost module that an operation belongs to; empty for the whole."""
    stack = node.meta.get("nn_module_stack") or {}
    return str([*stack.values()][-1][0]) if stack else ""
