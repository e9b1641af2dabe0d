"""The curves of a training: accuracy, or mean average precision, and loss, epoch by epoch."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING

from deploykit.commands.train.state import best_epoch
from deploykit.system.deps import need
from deploykit.system.files import replacing

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.figure import Figure

    from deploykit.commands.train.state import Epoch
    from deploykit.specs.heads import Head

_SETTINGS = "MPLCONFIGDIR"


def load_matplotlib() -> None:
    """Import matplotlib, without writing its list of fonts into the user's home.

    Raises:
        DependencyError: It is not installed.
    """
    with _settings_of_its_own():
        need("matplotlib.figure")


def write_curves(history: Sequence[Epoch], path: Path, head: Head) -> None:
    """Write the curves as a PNG, 750 x 600 pixels each; an existing one is replaced as a whole.

    Args:
        history: At least one epoch.
        path: The PNG.
        head: Which curves there are.

    Raises:
        DependencyError: matplotlib is not installed.
        OSError: The file cannot be written; the one that was there before is still there.
    """
    picture = io.BytesIO()
    with _settings_of_its_own():
        draw_curves(history, head).savefig(picture, format="png", dpi=150)
    with replacing(path) as partial:
        partial.write_bytes(picture.getvalue())


def draw_curves(history: Sequence[Epoch], head: Head) -> Figure:
    """Draw accuracy (left) and loss (right) of training and test, with the best epoch marked.

    Where a photo may be of several classes, mean average precision comes first, and accuracy is
    called exact match.

    The figure belongs to no window and no global state: it works without a display, and in threads.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    load_matplotlib()
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    best = best_epoch(history)
    epochs = [epoch.number for epoch in history]
    panels = [("accuracy", "Accuracy", "photos classified right (%)")]
    if head.several:
        panels = [
            ("mean_average_precision", "Mean average precision", "mean over the classes (%)"),
            ("accuracy", "Exact match", "photos given exactly their classes (%)"),
        ]
    losses = {"softmax": "cross-entropy", "sigmoid": "binary cross-entropy"}
    panels.append(("loss", "Loss", losses[head.activation]))
    figure = Figure(figsize=(5 * len(panels), 4), layout="constrained")
    for axes, (field, title, unit) in zip(figure.subplots(1, len(panels)), panels, strict=True):
        scale, form = (1, ".3f") if field == "loss" else (100, ".1%")
        train, test = (
            [scale * getattr(epoch, f"{part}_{field}") for epoch in history]
            for part in ("train", "test")
        )
        # A line through a single epoch shows nothing without a marker.
        axes.plot(epochs, train, color="tab:blue", marker=".", label="training")
        axes.plot(epochs, test, color="tab:orange", marker=".", label="test")
        label = f"best: epoch {best.number}, {getattr(best, f'test_{field}'):{form}}"
        best_test = test[history.index(best)]
        star = axes.plot(best.number, best_test, "*", color="tab:orange", ms=14, label=label)[0]
        star.set(clip_on=False, zorder=3)
        axes.set(title=title, xlabel="epoch", ylabel=unit)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    figure.axes[-1].set_ylim(bottom=0)
    return figure


@contextlib.contextmanager
def _settings_of_its_own() -> Iterator[None]:
    """Give matplotlib a temporary folder for its settings, unless the user named one."""
    if _SETTINGS in os.environ:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="deploykit-", ignore_cleanup_errors=True) as folder:
        os.environ[_SETTINGS] = folder
        try:
            yield
        finally:
            os.environ.pop(_SETTINGS, None)  # another thread may have
