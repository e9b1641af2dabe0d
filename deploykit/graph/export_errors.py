"""What torch's exporter could not do, in a line: the operator or the line of ``forward``."""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

from torch import fx, nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from deploykit.errors import GraphError
from deploykit.system.code_lines import described_line, failing_line, failure_text, running_line

_REPORT = "-v shows the exporter's whole report."
_OTHER_OPERATIONS = f"Write that part with other operations; the weights stay. {_REPORT}"
#: As torch says it: the code may say such words itself.
_FIXED = re.compile(
    r"static shape of \d+ for dimension|Constraints violated \(|"
    r"your code specialized it to be a constant"
)
#: What torch logs when code needs a dimension to be a number.
_GUARD = re.compile(r"eval Eq\(s\d+, \d+\) \[guard added\]")
#: A line of a trace that fx keeps with a node, and the code below it.
_TRACED = re.compile(r'File "(.+)", line (\d+), in (\w+)\n\s*(.*)')
_ADAPTIVE = re.compile(r"adaptive_\w+_pool")


def line_that_fixes_a_size(logged: str) -> str | None:
    """The line that runs, while torch logs that it needs a dimension to be a number."""
    return running_line() if _GUARD.match(logged) else None


def export_error(
    error: Exception | SystemExit, module: nn.Module, fixed: Sequence[str]
) -> GraphError:
    """Say what the exporter failed at.

    Args:
        error: What ``torch.onnx.export`` raised.
        module: What was exported.
        fixed: The lines that need a dimension to be a number.
    """
    causes = [*_causes(error)]
    root = causes[-1]
    for each in causes:
        node = _translated_node(each)
        if node is not None:
            return _untranslatable(node, root, module)
    if isinstance(root, SystemExit):
        return GraphError(
            f"torch cannot trace forward(): {failure_text(root)}",
            hint="Take that call out: a forward only computes.",
        )
    line = next(filter(None, map(failing_line, reversed(causes))), "")
    at = f" ({line})" if line else ""
    if any(isinstance(each, GuardOnDataDependentSymNode) for each in causes):
        return GraphError(
            "forward() branches on the values that it computes, which a graph cannot: "
            f"{line or _first_line(root)}",
            hint="Compute both ways and choose with torch.where, or leave the branch out of the "
            f"network that is deployed. {_REPORT}",
        )
    if any(_FIXED.search(str(each)) for each in causes):
        return GraphError(
            "forward() fixes the number of images of a batch to that of the example, 2"
            f"{f' ({fixed[0]})' if fixed else ''}.",
            hint="A loop over the images does so, for i in range(x.shape[0]), a branch on their "
            f"number, or a shape written as numbers: compute on the whole batch at once. {_REPORT}",
        )
    return GraphError(
        f"torch cannot trace forward(): {_first_line(root)}{at}", hint=_OTHER_OPERATIONS
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__


def _translated_node(error: BaseException) -> fx.Node | None:
    """The operation that could not be translated: the exporter's error does not carry it."""
    if "Error when translating node" not in str(error):
        return None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        node = frame.f_locals.get("node")
        if isinstance(node, fx.Node):
            return node
    return None


def _untranslatable(node: fx.Node, root: BaseException, module: nn.Module) -> GraphError:
    operator = re.sub(r"^aten\._?|(?<=\w)\.\w+$", "", str(node.target))
    reason = f": {_first_line(root)}"
    message = f"torch cannot translate {operator} to ONNX"
    if "No ONNX function found" in reason:
        message, reason = f"ONNX has no operator for {operator}", ""
    places = [*_module_of(node, module)]
    taken = [_shape(each) for each in node.all_input_nodes[:1] if "val" in each.meta]
    places += [f"on {shape}" for shape in taken if shape]
    traced = _TRACED.findall(node.meta.get("stack_trace") or "")
    lines = [found for found in traced if "/torch/" not in found[0].replace("\\", "/")]
    places += [described_line(*lines[-1])] if lines else []
    at = f" ({'; '.join(places)})" if places else ""
    hint = _OTHER_OPERATIONS
    if _ADAPTIVE.match(operator):
        hint = (
            "An adaptive pool is exported where its output's size divides its input's: choose "
            f"one that does, or pool slices, x[:, :, a:b, c:d].amax((2, 3)). {_REPORT}"
        )
    return GraphError(f"{message}{at}{reason}", hint=hint)


def _module_of(node: fx.Node, module: nn.Module) -> Iterator[str]:
    """``pool, AdaptiveMaxPool2d(output_size=(3, 5))``."""
    stack = [*(node.meta.get("nn_module_stack") or {}).values()]
    path = str(stack[-1][0]) if stack else ""
    if path:
        found = repr(module.get_submodule(path)).partition("\n")[0].rstrip("(")
        yield f"{path}, {found}" if "(" in found else f"{path}, a {found}"


def _shape(node: fx.Node) -> str:
    """``N x 16 x 8 x 8``."""
    value: Any = node.meta["val"]
    sizes = getattr(value, "shape", ())
    return " x ".join(str(size) if isinstance(size, int) else "N" for size in sizes)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
