"""The result of a training, for a terminal and as JSON."""

from __future__ import annotations

from typing import Any

import msgspec

from deploykit.commands.train.run import TrainingResult
from deploykit.commands.train.state import CURVES
from deploykit.images.labels import CLASSES_FILE
from deploykit.system.text import visible


def training_text(result: TrainingResult, next_command: str | None = None) -> str:
    """The best epoch, the files, and the command that comes next, where that is known."""
    folder = result.checkpoint.parent
    return "\n".join(
        (
            f"best epoch  {result.best.number} of {len(result.history)}: test accuracy "
            f"{result.best.test_accuracy:.1%} on {result.test_images} photos "
            f"({result.train_images} trained on), in {result.seconds:.0f} s",
            "written     "
            + visible(f"{result.checkpoint}, {folder / CLASSES_FILE}, {folder / CURVES}"),
            *([] if next_command is None else ["next        export it:", next_command]),
        )
    )


def training_value(result: TrainingResult) -> dict[str, Any]:
    """The best epoch, every epoch, and where the checkpoint is."""
    return {
        "checkpoint": str(result.checkpoint),
        "classes": result.classes,
        "best": msgspec.to_builtins(result.best),
        "history": msgspec.to_builtins(result.history),
        "train_images": result.train_images,
        "test_images": result.test_images,
        "seconds": round(result.seconds, 3),
    }
