"""The arithmetic of training: batches of photos in, better weights and scores out."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from deploykit.errors import ArchitectureError, DeploykitError, DeviceError, UsageError
from deploykit.runtime.normalisation import network_input

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import torch
    from torch import Tensor, nn

    from deploykit.commands.train.photos import LabelledBatch
    from deploykit.specs.preprocessing import Preprocessing
    from deploykit.specs.session import ImageBatch


class Score(NamedTuple):
    """How a pass over the photos went.

    Attributes:
        accuracy: The share classified right, 0..1.
        loss: The mean cross-entropy of a photo.
    """

    accuracy: float
    loss: float


@dataclass
class Learner:
    """A network in training, with its optimizer.

    Attributes:
        module: The network, on ``device``.
        optimizer: What changes its weights.
        preprocessing: Gives the mean and std of the normalisation.
        device: Where it computes.
    """

    module: nn.Module
    optimizer: torch.optim.Optimizer
    preprocessing: Preprocessing
    device: torch.device

    @classmethod
    def of(cls, module: nn.Module, preprocessing: Preprocessing, device: torch.device) -> Self:
        """Put a network on its device, and give it the tutorials' optimizer, Adam.

        Raises:
            ArchitectureError: It has nothing to train.
        """
        import torch

        weights = [weight for weight in module.to(device).parameters() if weight.requires_grad]
        if not weights:
            raise ArchitectureError(
                "The network has no weights to train.",
                hint="At least some of its parameters must have requires_grad.",
            )
        return cls(module, torch.optim.Adam(weights), preprocessing, device)

    def train(self, batches: Iterable[LabelledBatch], learning_rate: float) -> Score:
        """Take one optimizer step a batch.

        Raises:
            ArchitectureError: The network cannot take the photos, or its answer is not logits.
            DeviceError: The device's memory does not suffice.
        """
        import torch

        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.module.train()
        tally = _Tally()
        for batch in batches:
            with _network_errors(batch.images):
                loss = self._forward(batch, tally)
                self.optimizer.zero_grad()
                torch.autograd.backward(loss)
                self.optimizer.step()
        return tally.score()

    def test(self, batches: Iterable[LabelledBatch]) -> Score:
        """Score the network as it is; raises what ``train`` raises."""
        import torch

        self.module.eval()
        tally = _Tally()
        with torch.no_grad():
            for batch in batches:
                with _network_errors(batch.images):
                    self._forward(batch, tally)
        return tally.score()

    def restore(self, module_state: Mapping[str, Tensor], optimizer_state: dict[str, Any]) -> None:
        """Go back to where another run was.

        Raises:
            ArchitectureError: The states are another network's.
        """
        try:
            self.module.load_state_dict(module_state)
            self.optimizer.load_state_dict(optimizer_state)
        except (RuntimeError, ValueError, KeyError) as exc:
            raise ArchitectureError(
                "The network is no longer the one whose training was interrupted: "
                f"{_first_line(exc)}",
                hint="Bring its code back to what it was, or start over with --overwrite.",
            ) from exc

    def _forward(self, batch: LabelledBatch, tally: _Tally) -> Tensor:
        """The batch's mean loss, with its graph; the scores go to the tally."""
        import torch

        logits = self.module(network_input(batch.images, self.preprocessing, self.device))
        _check_logits(logits, len(batch.images), batch.classes)
        targets = torch.from_numpy(batch.targets).to(self.device)
        loss = torch.nn.functional.cross_entropy(logits, targets)
        tally.add(logits.detach(), targets, loss.detach())
        return loss


def choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first CUDA GPU where there is one, else the CPU.

    Raises:
        UsageError: torch knows no such device.
        DeviceError: This machine has no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as exc:
        raise UsageError(
            f"{name!r} is no device that torch knows.", hint="Use auto, cpu, cuda or cuda:1."
        ) from exc
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError) as exc:
        raise DeviceError(
            f"torch {torch.__version__} cannot use the device {name!r}: {_first_line(exc)}",
            hint="Use --device cpu, or install a torch that supports it (https://pytorch.org).",
        ) from exc
    return device


@dataclass
class _Tally:
    """Sums of the batches so far, left on the device: reading one waits for the GPU to finish."""

    photos: int = 0
    correct: list[Tensor] = field(default_factory=list)
    losses: list[Tensor] = field(default_factory=list)

    def add(self, logits: Tensor, targets: Tensor, mean_loss: Tensor) -> None:
        self.photos += len(targets)
        self.correct.append((logits.argmax(1) == targets).sum())
        self.losses.append(mean_loss * len(targets))

    def score(self) -> Score:
        import torch

        correct = torch.stack(self.correct).sum().item()
        loss = torch.stack(self.losses).cpu().double().sum().item()
        return Score(accuracy=correct / self.photos, loss=loss / self.photos)


def _check_logits(logits: object, photos: int, classes: int) -> None:
    """Refuse an answer that is not one logit a class for each photo."""
    import torch

    if not isinstance(logits, torch.Tensor):
        raise ArchitectureError(
            f"In training the network returns a {type(logits).__name__} instead of logits.",
            hint="Auxiliary outputs cannot be trained here: return the logits alone.",
        )
    if tuple(logits.shape) != (photos, classes):
        raise ArchitectureError(
            f"For {photos} photos of {classes} classes the network returns a tensor of shape "
            f"{tuple(logits.shape)} instead of {(photos, classes)}.",
            hint="It must return one logit a class for each photo.",
        )


@contextmanager
def _network_errors(images: ImageBatch) -> Iterator[None]:
    """Explain what the network or the device raises on a batch."""
    import torch

    shape = (len(images), 3, *images.shape[1:3])
    try:
        yield
    except DeploykitError:
        raise
    except torch.OutOfMemoryError as exc:
        raise DeviceError(
            f"The device's memory does not suffice for a batch of shape {shape}.",
            hint="Use a smaller --batch-size, or --device cpu.",
        ) from exc
    except Exception as exc:  # the network may be the user's code, which raises what it likes
        raise ArchitectureError(
            f"The network fails on a training batch of shape {shape}: {_first_line(exc)}",
            hint="Is it made for another --input-size, or for batches of more than one photo?",
        ) from exc


def _first_line(exc: BaseException) -> str:
    return (str(exc) or type(exc).__name__).splitlines()[0]
