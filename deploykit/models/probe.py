"""Does a module answer at all, and the same every time? Asked before the long work starts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from deploykit.errors import ArchitectureError, ModelError
from deploykit.specs import Size

#: Kernels may add in another order from call to call; a fresh random layer moves far more.
_SAME = 1e-4


def check_answers(module: nn.Module, input_size: Size, classes: int) -> None:
    """Run a module a few times on two made images and refuse answers nobody can deploy.

    Args:
        module: In eval mode, from (N, 3, H, W) float32.
        input_size: H and W.
        classes: K.

    Raises:
        ArchitectureError: It does not run on images of this size.
        ModelError: Its answer is no (N, K) floats, has NaN or infinity, is another one each time,
            or depends on which other images are in the batch.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *input_size, generator=generator)
    first = _answer(module, images)
    if first.shape != (2, classes) or not first.is_floating_point():
        raise ModelError(
            f"The network answers 2 images with {first.dtype} of shape {tuple(first.shape)}; "
            f"a classifier of {classes} classes answers with floats of shape (2, {classes})."
        )
    if not torch.isfinite(first).all():
        count = int((~torch.isfinite(first)).sum())
        raise ModelError(
            f"The network gives NaN or infinity: {count} of {first.numel()} logits of 2 images.",
            hint="The checkpoint may come from a training that diverged; use an earlier epoch's.",
        )
    tolerated = _SAME * float(first.abs().max())
    if float((_answer(module, images[1:]) - first[1:]).abs().max()) <= tolerated:
        return
    if float((_answer(module, images) - first).abs().max()) > tolerated:
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


def _answer(module: nn.Module, images: Tensor) -> Tensor:
    try:
        with torch.inference_mode():
            answer = module(images)
    except Exception as exc:  # the network may be the user's code, which raises what it likes
        size = "x".join(map(str, images.shape[2:]))
        raise ArchitectureError(
            f"The network fails on images of {size}: {type(exc).__name__}: {exc}",
            hint="If it was trained on another size, give it with --input-size.",
        ) from exc
    if not isinstance(answer, Tensor):
        raise ModelError(
            f"The network answers with a {type(answer).__name__}, not with one tensor of logits.",
            hint="Wrap it in a module whose forward returns the logits alone.",
        )
    return answer
