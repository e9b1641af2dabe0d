"""Does a module answer at all, and the same every time? Asked before the long work starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.errors import ArchitectureError, ModelError
from deploykit.specs.preprocessing import Size

#: Kernels may add in another order from call to call; a fresh random layer moves far more.
_SAME = 1e-4
#: How far a row of softmax's answers, added up in float32, may be from 1.
_SUM_ERROR = 1e-4


def check_answers(module: nn.Module, input_size: Size, classes: int) -> None:
    """Run a module a few times on two made images: are its answers logits, always the same?

    Args:
        module: In eval mode, from (N, 3, H, W) float32.
        input_size: H and W.
        classes: K.

    Raises:
        ArchitectureError: It does not run on images of this size.
        ModelError: Its answer is no (N, K) floats, has NaN or infinity, is another one each time,
            depends on which other images are in the batch, or is probabilities.
    """
    try:
        images = torch.randn(2, 3, *input_size, generator=torch.Generator().manual_seed(0))
    except (MemoryError, RuntimeError) as exc:
        size = "x".join(map(str, input_size))
        raise ArchitectureError(
            f"Images of {size} do not fit in memory.", hint="Give another --input-size."
        ) from exc
    first = _answer(module, images, classes)
    if not torch.isfinite(first).all():
        count = int((~torch.isfinite(first)).sum())
        raise ModelError(
            f"The network gives NaN or infinity: {count} of {first.numel()} logits of 2 images.",
            hint="The checkpoint may come from a training that diverged; use an earlier epoch's.",
        )
    _check_steady(module, images, first)
    # Softmax adds up to 1 in each row, (N, K) => (N,); a row of zeros and a one is not its.
    sums = first.double().sum(1)
    adds_up = bool((first >= 0).all()) and bool(((sums - 1).abs() <= _SUM_ERROR).all())
    if adds_up and not bool(((first == 0) | (first == 1)).all()):
        raise ModelError(
            "The network answers with probabilities: they are not negative, and an image's add up "
            "to 1. deploykit makes the probabilities itself, from logits, and these would come out "
            "wrong.",
            hint="Take the softmax out of forward(): the weights and the decisions stay the same.",
        )


def count_outputs(module: nn.Module, input_size: Size) -> int:
    """How many logits a module answers an image with.

    Raises:
        ArchitectureError: It does not run on images of this size.
        ModelError: Its answer is no (N, K) floats.
    """
    return _answer(module, torch.zeros(2, 3, *input_size), None).shape[1]


def _check_steady(module: nn.Module, images: Tensor, first: Tensor) -> None:
    classes = first.shape[1]
    tolerated = _SAME * float(first.abs().max())
    if float((_answer(module, images[1:], classes) - first[1:]).abs().max()) <= tolerated:
        return
    if float((_answer(module, images, classes) - first).abs().max()) > tolerated:
        raise ModelError(
            "The network gives another answer each time it sees the same images.",
            hint="Something in its forward is random in eval mode: a layer that is made anew "
            "in forward(), torch.rand, or dropout called without training=self.training.",
        )
    raise ModelError(
        "The network's answer for an image depends on the other images in its batch.",
        hint="Something in its forward mixes the batch: a BatchNorm without running "
        "statistics, or a mean or softmax over dimension 0.",
    )


def _answer(module: nn.Module, images: Tensor, classes: int | None) -> Tensor:
    try:
        with torch.inference_mode():
            answer = module(images)
    except Exception as exc:  # the network may be the user's code, which raises what it likes
        size = "x".join(map(str, images.shape[2:]))
        raise ArchitectureError(
            f"The network fails on images of {size}: {type(exc).__name__}: {exc}",
            hint="Its forward must take one batch of images (N, 3, H, W), alone, and run on the "
            "CPU; if it was trained on another size, give it with --input-size.",
        ) from exc
    if not isinstance(answer, Tensor):
        raise ModelError(
            f"The network answers with a {type(answer).__name__}, not with one tensor of logits.",
            hint="Wrap it in a module whose forward returns the logits alone.",
        )
    expected = (len(images), answer.shape[-1] if classes is None and answer.ndim else classes)
    if answer.shape != expected or not answer.is_floating_point():
        wanted = f"of {classes} classes answers with floats of shape {expected}"
        if classes is None:
            wanted = f"answers with floats of shape ({len(images)}, classes)"
        raise ModelError(
            f"The network answers a batch of {len(images)} with {answer.dtype} of shape "
            f"{tuple(answer.shape)}; a classifier {wanted}.",
            hint="A squeeze() drops the batch's dimension when it is 1: use flatten(1)."
            if len(images) == 1
            else None,
        )
    return answer
