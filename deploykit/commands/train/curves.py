"""The picture of a training run: accuracy and loss, epoch by epoch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from deploykit.commands.train.history import best_epoch
from deploykit.errors import UsageError
from deploykit.system.deps import need
from deploykit.system.files import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from deploykit.commands.train.history import EpochResult

TRAIN_COLOUR, TEST_COLOUR = "tab:blue", "tab:orange"
MOST_MARKED_POINTS = 50


def write_curves(history: Sequence[EpochResult], path: Path) -> None:
    """Write the curves as a PNG of 1500 x 600 pixels; one that is there is replaced as a whole.

    Args:
        history: At least one epoch.
        path: The PNG.

    Raises:
        DependencyError: matplotlib is not installed.
        UsageError: The file cannot be written; what was there before is still there.
    """
    picture = io.BytesIO()
    draw_curves(history).savefig(picture, format="png", dpi=150)
    try:
        with replacing(path) as partial:
            partial.write_bytes(picture.getvalue())
    except OSError as exc:
        raise UsageError(
            f"The curves cannot be written to {path} ({exc.strerror}).",
            hint="Is the disk full, or the picture open elsewhere? Else choose another --output.",
        ) from exc


def draw_curves(history: Sequence[EpochResult]) -> Figure:
    """Draw accuracy (left) and loss (right) of training and test, with the best epoch marked.

    The figure belongs to no window and no global state: it works without a display, and in threads.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    need("matplotlib")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    accuracy, loss = figure.subplots(1, 2)
    best = best_epoch(history)
    _draw(
        accuracy,
        [result.epoch for result in history],
        train=[100 * result.train_accuracy for result in history],
        test=[100 * result.test_accuracy for result in history],
        best=(best.epoch, 100 * best.test_accuracy),
        best_label=f"best: epoch {best.epoch}, {best.test_accuracy:.1%}",
    )
    accuracy.set(title="Accuracy", ylabel="photos classified right (%)")
    _draw(
        loss,
        [result.epoch for result in history],
        train=[result.train_loss for result in history],
        test=[result.test_loss for result in history],
        best=(best.epoch, best.test_loss),
        best_label=f"best: epoch {best.epoch}, {best.test_loss:.3f}",
    )
    loss.set(title="Loss", ylabel="cross-entropy")
    loss.set_ylim(bottom=0)
    return figure


def _draw(
    axes: Axes,
    epochs: list[int],
    *,
    train: list[float],
    test: list[float],
    best: tuple[int, float],
    best_label: str,
) -> None:
    from matplotlib.ticker import MaxNLocator

    # A line through a single epoch shows nothing without a marker.
    marker = "." if len(epochs) <= MOST_MARKED_POINTS else None
    axes.plot(epochs, train, color=TRAIN_COLOUR, marker=marker, label="training")
    axes.plot(epochs, test, color=TEST_COLOUR, marker=marker, label="test")
    (star,) = axes.plot(*best, color=TEST_COLOUR, marker="*", markersize=14, label=best_label)
    star.set(linestyle="none", clip_on=False, zorder=3)
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.grid(alpha=0.3)
    axes.legend()
