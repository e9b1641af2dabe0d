"""A Pad becomes the padding of the Conv or the pool behind it, where no number changes.

Networks from TensorFlow pad "same": more behind than in front where the sizes ask for it, which
torch's layers cannot, and ONNX's can. A Pad by itself writes the whole image once more, and INT8
computes it in FP32. ONNX Runtime's own fusion takes a pool's zeros for -infinity, and is off.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from deploykit.graph.values import integers, never_negative, scalar

_LOWEST = float(np.finfo(np.float32).min)


def fold_pads(model: ir.Model) -> tuple[ir.Model, bool]:
    """Fold constant Pads into the Conv, MaxPool or AveragePool that takes them.

    Several Pads in a row fold one by one. A Pad stays for those who also take it and cannot pad; a
    Pad of nothing goes.
    """
    changed = False
    positive = never_negative(model.graph)
    for node in model.graph:
        changed |= _drop_empty_pad(node)
        while (pad := _pad_before(node)) and (pads := _padding_with(node, pad, positive)):
            node.attributes.add(ir.AttrInt64s("pads", pads))
            if node.op_type == "AveragePool":
                node.attributes.add(ir.AttrInt64("count_include_pad", 1))
            node.replace_input_with(0, pad.inputs[0])
            changed = True
    if changed:
        common.RemoveUnusedNodesPass()(model)
    return model, changed


def _drop_empty_pad(pad: ir.Node) -> bool:
    """Let those who take a Pad of nothing take what it takes."""
    if pad.op_type != "Pad" or pad.domain:
        return False
    amounts, source, (padded,) = integers(pad, 1), pad.inputs[0], pad.outputs
    if source is None or not amounts or any(amounts) or padded.is_graph_output():
        return False
    used = bool(padded.uses())
    padded.replace_all_uses_with(source)
    return used


def _pad_before(node: ir.Node) -> ir.Node | None:
    """The Pad that gives the first input of a Conv or a pool."""
    if node.op_type not in ("Conv", "MaxPool", "AveragePool") or node.domain:
        return None
    source = node.inputs[0]
    pad = None if source is None else source.producer()
    return pad if pad and pad.op_type == "Pad" and not pad.domain else None


def _padding_with(
    node: ir.Node, pad: ir.Node, positive: Collection[ir.Value]
) -> tuple[int, ...] | None:
    """The padding of a Conv or a pool that has a Pad's in it; None where numbers would change."""
    source, value = pad.inputs[0], scalar(pad, 2, 0.0)
    added = _spatial_pads(pad)
    if source is None or value is None or not added:
        return None
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return None
    own = tuple(node.attributes.get_ints("pads", [0] * len(added)))
    pads = tuple(first + second for first, second in zip(own, added, strict=True))
    if node.op_type == "Conv":
        return pads if _is_zero(value) else None
    if not _each_window_sees_the_image(node, source, pads):
        return None
    if node.op_type == "MaxPool":
        # A pool's own padding never wins. What was padded must not win either.
        loses = value <= _LOWEST or (value <= 0 and source in positive)
        return pads if loses and len(node.outputs) == 1 else None
    counted = not any(own) or node.attributes.get_int("count_include_pad", 0) == 1
    return pads if _is_zero(value) and counted and _divides_plainly(node, source, pads) else None


def _spatial_pads(pad: ir.Node) -> tuple[int, ...]:
    """A Pad's amounts in front of and behind each spatial dimension, as a Conv has them.

    Returns:
        All in front, then all behind. Nothing where the Pad also pads images or channels, crops,
        repeats pixels, or has amounts that are known only at run time.
    """
    source = pad.inputs[0]
    if source is None or source.shape is None:
        return ()
    rank, amounts = len(source.shape), integers(pad, 1)
    axes = integers(pad, 3, default=tuple(range(rank)))
    plain = pad.attributes.get_string("mode", "constant") == "constant"
    if not plain or not amounts or len(amounts) != 2 * len(axes) or min(amounts) < 0:
        return ()
    front, behind = [0] * rank, [0] * rank
    for index, axis in enumerate(axes):
        front[axis], behind[axis] = amounts[index], amounts[index + len(axes)]
    return () if any(front[:2] + behind[:2]) else (*front[2:], *behind[2:])


def _is_zero(value: float) -> bool:
    """Whether a Conv pads with just this number: -0.0 would turn the sign of other zeros."""
    return value == 0 and math.copysign(1, value) > 0


def _each_window_sees_the_image(node: ir.Node, source: ir.Value, pads: Sequence[int]) -> bool:
    """Whether a pool with this padding has a pixel in each window.

    A window of padding alone would give a number of the runtime's choice. Runtimes refuse padding
    as wide as the window. Where the image's size is not fixed, nobody knows.
    """
    for size, kernel, stride, dilation, front, behind in _axes(node, source, pads):
        if not isinstance(size, int) or max(front, behind) >= kernel:
            return False
        reach = dilation * (kernel - 1) + 1
        count = _windows(size + front + behind - reach, stride, _rounds_up(node))
        for start in range(-front, count * stride - front, stride):
            if not any(0 <= start + tap * dilation < size for tap in range(kernel)):
                return False
    return True


def _divides_plainly(node: ir.Node, source: ir.Value, pads: Sequence[int]) -> bool:
    """Whether an AveragePool divides by its kernel's size everywhere: no window ends behind all."""
    return all(
        isinstance(size, int)
        and dilation == 1
        and ((size + front + behind - kernel) % stride == 0 or not _rounds_up(node))
        for size, kernel, stride, dilation, front, behind in _axes(node, source, pads)
    )


def _axes(
    node: ir.Node, source: ir.Value, pads: Sequence[int]
) -> list[tuple[int | ir.SymbolicDim, int, int, int, int, int]]:
    """For each spatial dimension: size, kernel, stride, dilation, padding in front and behind."""
    sizes = tuple(source.shape or ())[2:]
    ones = [1] * len(sizes)
    return list(
        zip(
            sizes,
            node.attributes.get_ints("kernel_shape", ones),
            node.attributes.get_ints("strides", ones),
            node.attributes.get_ints("dilations", ones),
            pads[: len(sizes)],
            pads[len(sizes) :],
            strict=True,
        )
    )


def _windows(room: int, stride: int, up: bool) -> int:
    """How many windows there are, from the room that the first one leaves."""
    return (-(-room // stride) if up else room // stride) + 1


def _rounds_up(node: ir.Node) -> bool:
    return node.attributes.get_int("ceil_mode", 0) == 1
