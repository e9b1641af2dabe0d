"""What a network's answers mean: its last activation, cut off, and what it or its file says."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from deploykit.specs.heads import HEADS, HeadName
from deploykit.specs.preprocessing import Size

Activation: TypeAlias = Literal["", "sigmoid", "softmax"]

#: How near the activation of what comes without it must be to the network's own answer.
_SAME = 1e-5
_CALLS: dict[Any, Activation] = {
    functional.sigmoid: "sigmoid",
    functional.softmax: "softmax",
    torch.sigmoid: "sigmoid",
    torch.sigmoid_: "sigmoid",
    torch.softmax: "softmax",
    torch.special.expit: "sigmoid",
    torch.special.softmax: "softmax",
    Tensor.sigmoid: "sigmoid",
    Tensor.sigmoid_: "sigmoid",
    Tensor.softmax: "softmax",
}
#: Under these names a checkpoint or a network's ``config`` says what the answers mean;
#: ``problem_type`` is Hugging Face's
#: (https://huggingface.co/docs/transformers/main_classes/configuration).
_NAMES = ("head", "problem_type")
#: Where a checkpoint keeps such a name, when not beside the weights.
_SETTINGS = ("config", "hyper_parameters", "args")


class _Activations(TorchFunctionMode):
    """Within it, calls of sigmoid and softmax are counted, and one of them may be left out.

    Args:
        left_out: The number of the call that returns its input as it is; None for none.

    Attributes:
        calls: What was called, in order.
    """

    def __init__(self, left_out: int | None = None) -> None:
        super().__init__()
        self.calls: list[Activation] = []
        self._left_out = left_out

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call a function, or return its input."""
        del types
        named = kwargs or {}
        kind = _CALLS.get(func)
        if kind is not None:
            self.calls.append(kind)
            if len(self.calls) - 1 == self._left_out:
                return args[0] if args else named["input"]
        return func(*args, **named)


def give_logits(module: nn.Module, input_size: Size) -> Activation:
    """Let a module answer with logits, (N, L), where it gives (N,) or ends in an activation.

    The sigmoid or softmax is found by calling: of what is called last, the input must give the
    module's own answer once the activation is applied to it; so squeezing and the like may follow
    it, and nothing else.

    Args:
        module: In eval mode, from (N, 3, H, W) float32. Its forward may be replaced; one that fails
            stays as it is.
        input_size: H and W.

    Returns:
        The activation that was left out; empty if none was.
    """
    counting = _Activations()
    answer = _answer(module, input_size, counting)
    if answer is None:
        return ""
    if answer.ndim == 1:
        _add_dimension(module)
        answer = answer[:, None]
    if not counting.calls or not bool(((answer >= 0) & (answer <= 1)).all()):
        return ""
    kind, place = counting.calls[-1], len(counting.calls) - 1
    logits = _answer(module, input_size, _Activations(place))
    if logits is None or logits.shape != answer.shape or torch.equal(logits, answer):
        return ""
    again = logits.sigmoid() if kind == "sigmoid" else logits.softmax(1)
    if not bool(((again - answer).abs() <= _SAME).all()):
        return ""
    _leave_out(module, place)
    return kind


def _answer(module: nn.Module, input_size: Size, mode: _Activations) -> Tensor | None:
    """What a module answers to two made images within a mode; None unless (2,) or (2, L)."""
    try:
        images = torch.randn(2, 3, *input_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad(), mode:
            answer = module(images)
    except (Exception, SystemExit):  # noqa: BLE001  # why, the checks of the answers say
        return None
    fits = isinstance(answer, Tensor) and answer.is_floating_point()
    if not fits or answer.ndim not in (1, 2) or len(answer) != len(images):
        return None
    found: Tensor = answer
    return found


@contextlib.contextmanager
def with_activation(module: nn.Module) -> Iterator[None]:
    """Within it, a module of :func:`give_logits` answers as it did in training."""
    cut = module.forward
    module.forward = cut.__wrapped__  # type: ignore[attr-defined]
    try:
        yield
    finally:
        module.forward = cut


def _leave_out(module: nn.Module, place: int) -> None:
    forward = module.forward

    @functools.wraps(forward)
    def without_activation(*args: object, **kwargs: object) -> object:
        with _Activations(place):
            return forward(*args, **kwargs)

    module.forward = without_activation


def _add_dimension(module: nn.Module) -> None:
    forward = module.forward

    @functools.wraps(forward)
    def with_dimension(images: Tensor) -> Tensor:
        answer: Tensor = forward(images)
        return answer.reshape(images.shape[0], 1)

    module.forward = with_dimension


def said_head(told: object) -> HeadName | None:
    """What a checkpoint or a network's ``config`` says that its answers mean; None if nothing."""
    if not isinstance(told, Mapping):
        told = vars(told) if hasattr(told, "__dict__") else {}
    for settings in (told, *(told.get(name) for name in _SETTINGS)):
        if isinstance(settings, Mapping):
            for name in _NAMES:
                word = settings.get(name)
                if isinstance(word, str):
                    plain = word.removesuffix("_classification").replace("_", "-")
                    if plain in HEADS:
                        return plain
    return None
