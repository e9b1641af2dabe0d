"""How many classes a checkpoint was trained for: read off the shapes of its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from deploykit.errors import ArchitectureError, CheckpointError
from deploykit.models.fast_build import SkippingRandomInit
from deploykit.models.mismatch import Shapes
from deploykit.models.registry import Architecture

PROBE_CLASSES = 10
MIN_CLASSES = 2


@dataclass(frozen=True)
class Head:
    """Where in a network's weights the number of classes shows.

    Attributes:
        shapes: The shapes of the network with ``PROBE_CLASSES`` classes.
        growth: By how much each dimension of an entry grows with one more class, for those that
            do; empty for a network that decides the number itself.
        fixed: The number of classes of such a network; None where it is not fixed.
    """

    shapes: Shapes
    growth: Shapes
    fixed: int | None


def find_head(architecture: Architecture, arch_args: Mapping[str, object]) -> Head:
    """Build a network with two numbers of classes, and see which shapes differ.

    Raises:
        UsageError, ArchitectureError: The network cannot be built.
    """
    with SkippingRandomInit():
        module = architecture.build(PROBE_CLASSES, arch_args)
        wider = architecture.build(PROBE_CLASSES + 1, arch_args)
    shapes, more = shapes_of(module, architecture.name), shapes_of(wider, architecture.name)
    growth = {
        name: tuple(b - a for a, b in zip(shape, more[name], strict=True))
        for name, shape in shapes.items()
        if name in more and len(more[name]) == len(shape) and more[name] != shape
    }
    return Head(shapes, growth, fixed=None if growth else _outputs(module, architecture.name))


def count_classes(head: Head, found: Shapes) -> int | None:
    """Read the number of classes off a checkpoint's shapes.

    Args:
        head: Where the number shows.
        found: The checkpoint's shapes, under the network's names.

    Returns:
        The number; None when the checkpoint has none of the entries that show it.

    Raises:
        CheckpointError: The entries disagree, or there are fewer than two classes.
    """
    counts = {} if head.fixed is None else {"its last layer": head.fixed}
    counts |= {
        name: PROBE_CLASSES + (size - before) // step
        for name, steps in head.growth.items()
        if len(found.get(name, ())) == len(steps)
        for size, before, step in zip(found[name], head.shapes[name], steps, strict=True)
        if step
    }
    if len(set(counts.values())) > 1:
        said = ", ".join(f"{name} says {count}" for name, count in counts.items())
        raise CheckpointError(
            f"The weights disagree on the number of classes: {said}.",
            hint="Check that the architecture is the one that was trained.",
        )
    count = next(iter(counts.values()), None)
    if count is not None and count < MIN_CLASSES:
        raise CheckpointError(
            f"There are no classes to choose among: the network's logits an image are {count}.",
            hint="deploykit needs a logit a class: train with two classes and cross-entropy.",
        )
    return count


def shapes_of(module: nn.Module, name: str) -> dict[str, tuple[int, ...]]:
    """The shapes of a network's weights.

    Raises:
        ArchitectureError: It has layers whose shapes only a first batch decides.
    """
    tensors = {k: v for k, v in module.state_dict().items() if isinstance(v, Tensor)}
    lazy = [key for key, tensor in tensors.items() if is_lazy(tensor)]
    if lazy:
        raise ArchitectureError(
            f"{name} has lazy layers, whose shapes are not known before the first batch: "
            f"{', '.join(lazy[:3])}.",
            hint="In the function that makes it, call it once before returning it: "
            "model(torch.zeros(1, 3, HEIGHT, WIDTH)).",
        )
    return {key: tuple(tensor.shape) for key, tensor in tensors.items()}


def _outputs(module: nn.Module, name: str) -> int:
    """The outputs of a network's last linear layer or, where it has none, last convolution."""
    layers = list(module.modules())
    outputs = [layer.out_channels for layer in layers if isinstance(layer, nn.Conv2d)]
    outputs += [layer.out_features for layer in layers if isinstance(layer, nn.Linear)]
    if outputs:
        return outputs[-1]
    raise ArchitectureError(
        f"{name} has no linear or convolution layer that would tell the number of classes.",
        hint="Give its function an argument num_classes.",
    )
