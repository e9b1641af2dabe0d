"""Does a module answer at all, and the same every time? Asked before the long work starts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from deploykit.errors import ArchitectureError, ModelError
from deploykit.specs.preprocessing import Size
from deploykit.system.code_lines import failure_text
from deploykit.system.progress import Note, Progress, silent

#: Kernels may add in another order from call to call; a fresh random layer moves far more.
_SAME = 1e-4
#: How far a row of softmax's answers, added up in float32, may be from 1.
_SUM_ERROR = 1e-4
#: By how much images are brightened to see whether answers stay within 0 and 1.
_FAR = 1000.0


def check_answers(
    module: nn.Module, input_size: Size, classes: int, progress: Progress = silent
) -> bool:
    """Run a module a few times on two made images: are its answers logits, always the same?

    Args:
        module: In eval mode, from (N, 3, H, W) float32.
        input_size: H and W.
        classes: K.
        progress: Told what is odd but no error.

    Returns:
        Whether all answers lie within 0 and 1, those for images far beyond any photo too: they may
        be probabilities, though no operator says so. See :func:`check_range`.

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
    with _Operators(largest=_FEW * 2 * classes) as operators:
        first = _answer(module, images, classes)
    last = operators.last_activation(first)
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
    if last == "softmax" or (adds_up and not bool(((first == 0) | (first == 1)).all())):
        _refuse("they are not negative, and an image's add up to 1", "softmax")
    low, high = float(first.min()), float(first.max())
    if last in _SQUASHING:
        _refuse(f"forward() ends in a {last}, and gave {low:.3g} to {high:.3g} on 2 images", last)
    if last == "tanh":
        progress(
            Note(
                "the network ends in a tanh: its logits lie within -1 and 1, so that no "
                "probability, which is their softmax, comes near 1"
            )
        )
    if low < 0 or high > 1:
        return False
    far = _answer(module, images * _FAR, classes)
    return bool(((far >= 0) & (far <= 1)).all())


def check_range(low: float, high: float, images: int) -> None:
    """Refuse answers that only their range gives away as probabilities.

    Args:
        low: The smallest of all answers.
        high: The largest.
        images: How many images were answered.

    Raises:
        ModelError: They lie within 0 and 1.
    """
    if low >= 0 and high <= 1:
        _refuse(
            f"those for {images} images lie between {low:.3g} and {high:.3g}, as a sigmoid's do",
            "sigmoid",
            " If they are logits that happen to lie there, say so: --head single-label",
        )


def _refuse(why: str, activation: str, otherwise: str = "") -> NoReturn:
    raise ModelError(
        f"The network answers with probabilities: {why}. deploykit makes the probabilities itself, "
        "from logits, and these would come out wrong.",
        hint=f"Take the {activation} out of forward(): the weights and the decisions stay the same."
        + otherwise,
    )


def count_outputs(module: nn.Module, input_size: Size) -> int:
    """How many logits a module answers an image with.

    Raises:
        ArchitectureError: It does not run on images of this size.
        ModelError: Its answer is no (N, K) floats.
    """
    return _answer(module, torch.zeros(2, 3, *input_size), None).shape[1]


def feed_grey(module: nn.Module, input_size: Size) -> bool:
    """Let a network that takes one channel take RGB images; others stay as they are.

    Returns:
        Whether it takes one channel. A hook on it then makes images (N, 3, H, W) grey.
    """
    runs_on_rgb = False
    try:
        _answer(module, torch.zeros(2, 3, *input_size), None)
    except ArchitectureError:
        pass
    except ModelError:
        runs_on_rgb = True  # a view(-1, 784) makes three answers of one image with three channels
    except (MemoryError, RuntimeError):  # of torch.zeros
        return False
    else:
        return False
    try:
        _answer(module, torch.zeros(2, 1, *input_size), None)
    except ArchitectureError:
        return False
    except ModelError:
        if runs_on_rgb:
            return False
    module.register_forward_pre_hook(_grey_input)
    return True


def _grey_input(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    """(N, 3, H, W) => (N, 1, H, W), weighted as Pillow does; equal channels give their value."""
    del module
    red, green, blue = torch.split(inputs[0], 1, dim=1)
    return (green + 0.299 * (red - green) + 0.114 * (blue - green),)


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


#: By torch's names: what gives probabilities, or bounded logits, as messages call it.
_ACTIVATIONS = {
    "_softmax": "softmax",
    "hardsigmoid": "hard sigmoid",
    "sigmoid": "sigmoid",
    "tanh": "tanh",
}
_SQUASHING = ("sigmoid", "hard sigmoid", "clamp to 0 and 1")
#: What moves numbers and leaves them as they are.
_MOVES = frozenset(
    {
        "_reshape_alias", "_to_copy", "_unsafe_view", "alias", "cat", "clone", "copy", "detach",
        "expand", "index", "index_select", "permute", "reshape", "select", "slice", "split",
        "squeeze", "stack", "t", "transpose", "unbind", "unsqueeze", "view",
    }
)  # fmt: skip
_CLAMPS = frozenset({"clamp", "clamp_max", "clamp_min", "hardtanh"})
#: Tensors of more than this many times the answers' size are not remembered.
_FEW = 16


class _Made(NamedTuple):
    """What gave a tensor: the operator, its numbers, and what gave its inputs."""

    operator: str
    arguments: tuple[float, ...]
    inputs: tuple[_Made, ...]


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch's is untyped
    """Within it, small tensors are remembered with the operators that gave them.

    Args:
        largest: How many elements a tensor may have to be remembered.
    """

    def __init__(self, largest: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._largest = largest
        self._made: dict[int, tuple[_Made, Tensor]] = {}  # the tensor stays, so that its id does

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operator and remember it."""
        del types
        known = [self._made.get(id(each)) for each in _tensors(args)]
        given = func(*args, **(kwargs or {}))
        made = _Made(
            operator=func.overloadpacket.__name__.rstrip("_"),
            arguments=(*(each for each in args if isinstance(each, float | int)),),
            inputs=tuple(each[0] for each in known if each is not None),
        )
        for tensor in _tensors(given):
            if tensor.numel() <= self._largest:
                self._made[id(tensor)] = made, tensor
        return given

    def last_activation(self, answer: Tensor) -> str | None:
        """The activation that gave an answer, where only moves and clamps came after it."""
        found = self._made.get(id(answer))
        return None if found is None else _activation_of(found[0])


def _tensors(values: object) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for each in values:
            yield from _tensors(each)


def _activation_of(made: _Made) -> str | None:
    if made.operator in _CLAMPS:
        # torch leaves out an argument that is the default: clamp has none, hardtanh -1 and 1.
        low, high = (*made.arguments, *(-1, 1)[len(made.arguments) :])[:2]
        if (made.operator == "hardtanh" or len(made.arguments) == 2) and 0 <= low < high <= 1:
            return _SQUASHING[-1]
    if made.operator in _ACTIVATIONS:
        return _ACTIVATIONS[made.operator]
    if made.operator not in _MOVES | _CLAMPS or not made.inputs:
        return None
    found = {_activation_of(each) for each in made.inputs}
    return found.pop() if len(found) == 1 else None


def _answer(module: nn.Module, images: Tensor, classes: int | None) -> Tensor:
    try:
        with torch.no_grad():  # inference mode would hide what composite operators consist of
            answer = module(images.clone())  # which forward may change in place
    except (Exception, SystemExit) as exc:  # the network may be the user's code: it may do anything
        raise _failure(module, exc, images) from exc
    if not isinstance(answer, Tensor):
        raise ModelError(
            f"The network answers with a {type(answer).__name__}, not with one tensor of logits.",
            hint="Wrap it in a module whose forward returns the logits alone"
            f"{_entry_of(answer, len(images), classes)}",
        )
    expected = (len(images), answer.shape[-1] if classes is None and answer.ndim else classes)
    if answer.shape != expected or not answer.is_floating_point():
        wanted = f"of {classes} classes answers with floats of shape {expected}"
        if classes is None:
            wanted = f"answers with floats of shape ({len(images)}, classes)"
        raise ModelError(
            f"The network answers a batch of {len(images)} with {answer.dtype} of shape "
            f"{tuple(answer.shape)}; a classifier {wanted}.",
            hint=_shape_hint(answer, len(images)),
        )
    if answer.dtype != torch.float32:
        returned = str(answer.dtype).removeprefix("torch.")
        raise ModelError(
            f"The network's forward() returns {returned}; deploykit compares float32.",
            hint="End it with .float(): return logits.float(). The weights stay.",
        )
    return answer


def _failure(module: nn.Module, error: Exception | SystemExit, images: Tensor) -> ArchitectureError:
    """What to say of a forward that fails."""
    reason = failure_text(error)
    asked = _CHANNELS.search(reason)
    if asked and asked[1] not in ("1", "3"):
        return ArchitectureError(
            f"The network takes images of {asked[1]} channels; deploykit feeds RGB, or grey to a "
            "network of one channel.",
            hint="Name a module whose forward makes that input of an RGB image (N, 3, H, W): "
            "--arch FILE.py:Name",
        )
    hint = (
        "Its forward must take one batch of images (N, 3, H, W), alone, and run on the "
        "CPU; if it was trained on another size, give it with --input-size."
    )
    if re.search(r"cuda|nvidia|same device", reason, re.IGNORECASE):
        hint = (
            "Its forward must run on the CPU: take .cuda() and device='cuda' out of it; x.device "
            "is where its input is."
        )
    if isinstance(error, SystemExit):
        hint = "Take that call out: a forward only computes."
    size = "x".join(map(str, images.shape[2:]))
    grey = _grey_failure(module, images)
    if asked and asked[1] == "1" and grey:
        hint = "If it was trained on another size, give it with --input-size."
        message = f"The network takes one channel, and fails on grey images of {size}: {grey}"
    elif grey and grey != reason and not _CHANNELS.search(grey):
        message = f"The network fails on images of {size}, in RGB: {reason}; and in grey: {grey}"
    else:
        message = f"The network fails on images of {size}: {reason}"
    return ArchitectureError(message, hint=hint)


def _grey_failure(module: nn.Module, images: Tensor) -> str:
    """What a network says to one channel; empty where it takes it, or is fed grey already."""
    if images.shape[1] == 1 or _grey_input in module._forward_pre_hooks.values():  # noqa: SLF001
        return ""
    try:
        with torch.no_grad():
            module(images[:, :1].clone())
    except (Exception, SystemExit) as error:  # noqa: BLE001  # see _answer
        return failure_text(error)
    return ""


#: How a convolution says that it was made for other channels.
_CHANNELS = re.compile(
    r"expected input\[\d+, \d+, .*\] to have (\d+) channels, but got [13] channels"
)


def _entry_of(answer: object, images: int, classes: int | None) -> str:
    """The entry of an answer that looks like logits, as code that takes it out."""
    entries: list[tuple[object, object]] = []
    if isinstance(answer, Mapping):  # as Hugging Face's ModelOutput is
        entries = list(answer.items())
    elif isinstance(answer, tuple | list):
        entries = list(enumerate(answer))
    for key, value in entries:
        if (
            isinstance(value, Tensor)
            and value.ndim == 2
            and value.is_floating_point()
            and len(value) == images
            and classes in (None, value.shape[1])
        ):
            return f": return self.network(x)[{key!r}]"
    return "."


def _shape_hint(answer: Tensor, images: int) -> str:
    if len(answer.shape) < 2 and images == 1:
        return "A squeeze() drops the batch's dimension when it is 1: use flatten(1)."
    if not answer.is_floating_point():
        return "Return the logits of all classes, not the decision: take the argmax out."
    if answer.ndim == 4:
        return "It gives a map of features: name the network that ends in the classifier."
    return "Name a module whose forward returns one number a class for each image."
