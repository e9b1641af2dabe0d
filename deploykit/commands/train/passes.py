"""One pass over the photos of a training, or over those that it is tested on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from deploykit.commands.train.state import first_line
from deploykit.errors import ArchitectureError, DeploykitError, DeviceError, ImagesError
from deploykit.parity.accuracy import accuracy_of
from deploykit.specs.model import Labels
from deploykit.system.progress import Progress, Step

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

    from deploykit.specs.heads import Decisions
    from deploykit.specs.session import Logits


class Passed(NamedTuple):
    """The results of a pass.

    Attributes:
        accuracy: The share of the photos that are given exactly their classes, 0..1.
        loss: The mean loss of a photo.
        mean_average_precision: Over the classes that have photos, 0..1; None unless a photo may be
            of several classes.
    """

    accuracy: float
    loss: float
    mean_average_precision: float | None


def run_through(
    loader: DataLoader[Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    labels: Labels,
    stage: str,
    progress: Progress,
) -> Passed:
    """Train on every batch of a loader, or without an optimizer only test.

    The loss is the cross-entropy of a softmax, or the binary cross-entropy of each sigmoid.

    Raises:
        ArchitectureError: The network fails, or does not give the logits of the head.
        DeviceError: The memory of the device does not suffice.
        ImagesError: A photo can no longer be read.
    """
    import torch

    device = next(module.parameters()).device
    module.train(optimizer is not None)
    count, correct, loss_sum = 0, 0, 0.0
    answers: list[tuple[Logits, Decisions]] = []
    for images, decisions in _batches(loader):
        shape = tuple(images.shape)
        try:
            with torch.set_grad_enabled(optimizer is not None):
                logits = module(images.to(device))
                _check_logits(logits, (len(images), labels.logits))
                loss = _loss(labels, logits, decisions.to(device))
                if optimizer is not None:
                    optimizer.zero_grad()
                    torch.autograd.backward(loss)
                    optimizer.step()
        except DeploykitError:
            raise
        except torch.OutOfMemoryError as exc:
            raise DeviceError(
                f"The memory of the device does not suffice for a batch of shape {shape}.",
                hint="Use a smaller --batch-size, or --device cpu.",
            ) from exc
        except Exception as exc:  # the network may be the user's code, which raises what it likes
            raise ArchitectureError(
                f"The network fails on a training batch of shape {shape}: {first_line(exc)}",
                hint="Is it made for another --input-size, or for batches of more than one photo?",
            ) from exc
        count += len(images)
        given, right = logits.detach().float().cpu().numpy(), decisions.numpy()
        correct += int((labels.head.decide(given) == right).all(axis=1).sum())
        if labels.head.several:
            answers.append((given, right))
        loss_sum += loss.item() * len(images)
        progress(Step(stage, count, len(loader.dataset)))  # type: ignore[arg-type]
    precision = _mean_average_precision(labels, answers) if answers else None
    return Passed(correct / count, loss_sum / count, precision)


def _loss(labels: Labels, logits: Tensor, decisions: Tensor) -> Tensor:
    """The mean loss of a batch.

    Args:
        labels: Its head says by which activation classes are decided for.
        logits: (N, L).
        decisions: (N, D) those that are right; with sigmoids one a logit.
    """
    from torch import nn

    loss: Tensor
    if labels.head.activation == "softmax":
        loss = nn.CrossEntropyLoss()(logits, decisions[:, 0])
    else:
        loss = nn.BCEWithLogitsLoss()(logits, decisions.to(logits.dtype))
    return loss


def _mean_average_precision(labels: Labels, answers: list[tuple[Logits, Decisions]]) -> float:
    """As ``verify`` and ``predict`` have it; 0 if no photo is of a class."""
    logits, decisions = (np.concatenate(part) for part in zip(*answers, strict=True))
    names = [str(row) for row in range(len(logits))]
    right = (labels.head.names_of(decision, labels.names) for decision in decisions)
    accuracy = accuracy_of(logits, names, dict(zip(names, right, strict=True)), labels)
    # The photos that have classes may all be in a last batch that is dropped.
    return accuracy.mean_average_precision if accuracy and accuracy.classes else 0.0


def _batches(loader: DataLoader[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of a loader; explains why photos can no longer be read."""
    try:
        yield from loader
    except (OSError, RuntimeError) as exc:
        # An error of another process has its traceback as text; its last line is the message.
        message = str(exc).strip().splitlines()[-1].removeprefix("OSError: ")
        raise ImagesError(
            f"Photos that could be read at first no longer can: {message}",
            hint="Is the folder still complete? Then continue with --resume.",
        ) from exc


def end_workers(loader: DataLoader[Any]) -> None:
    """End a loader's processes at once; the garbage collector waits 5 seconds for each."""
    iterator = getattr(loader, "_iterator", None)  # torch has no public way
    if iterator is not None:
        iterator._shutdown_workers()  # noqa: SLF001


def _check_logits(logits: object, wanted: tuple[int, int]) -> None:
    shape = getattr(logits, "shape", None)
    if shape is None or tuple(shape) != wanted:
        given = type(logits).__name__ if shape is None else f"tensor of shape {tuple(shape)}"
        raise ArchitectureError(
            f"In training the network returns a {given} instead of logits of shape {wanted}.",
            hint="It must return one logit a class for each photo, and nothing else; with --head "
            "binary one logit.",
        )
