"""What a training run went through, epoch by epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING

from deploykit.specs.value import Value

if TYPE_CHECKING:
    from collections.abc import Sequence


class EpochResult(Value, frozen=True):
    """One finished epoch.

    Attributes:
        epoch: Its number, from 1.
        learning_rate: The rate it was trained with.
        train_accuracy: The share of the training photos classified right, 0..1, measured while the
            weights change, as training loops do.
        train_loss: The mean cross-entropy over the same photos.
        test_accuracy: The share of the test photos classified right, 0..1, at the epoch's end.
        test_loss: The mean cross-entropy over the test photos.
        seconds: Its wall time, training and testing together.
    """

    epoch: int
    learning_rate: float
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    seconds: float

    def describe(self) -> str:
        """One line for people: ``train 67.5% (loss 0.818), test 69.9% (loss 0.917), ...``."""
        return (
            f"train {self.train_accuracy:.1%} (loss {self.train_loss:.3f}), "
            f"test {self.test_accuracy:.1%} (loss {self.test_loss:.3f}), "
            f"lr {self.learning_rate:.2e}, {self.seconds:.1f} s"
        )


def best_epoch(history: Sequence[EpochResult]) -> EpochResult:
    """The epoch of the highest test accuracy.

    Few test photos make ties common: among equals the lowest test loss wins, then the earliest.

    Raises:
        ValueError: The history is empty.
    """
    return max(history, key=lambda result: (result.test_accuracy, -result.test_loss))
