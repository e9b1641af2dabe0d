"""The result of a training, for a terminal and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from deploykit.commands.train.run import TrainingResult
from deploykit.commands.train.state import CURVES, score_text
from deploykit.images.labels import CLASSES_FILE
from deploykit.system.text import visible

#: The word before each command that follows, and what it does.
_NEXT = (("next", "export it"), ("then", "compare it with the labels"))


def training_text(result: TrainingResult, commands: Sequence[str] = ()) -> str:
    """The best epoch, the files, and the commands that come next, where they are known."""
    folder = result.checkpoint.parent
    best = result.best
    score = score_text(best.test_accuracy, best.test_mean_average_precision)
    what = "test accuracy" if best.test_mean_average_precision is None else "test"
    return "\n".join(
        (
            f"best epoch  {best.number} of {len(result.history)}: {what} {score} on "
            f"{result.test_images} photos "
            f"({result.train_images} trained on), in {result.seconds:.0f} s",
            "written     "
            + visible(f"{result.checkpoint}, {folder / CLASSES_FILE}, {folder / CURVES}"),
            *(
                f"{word:<12}{what}:\n{line}"
                for (word, what), line in zip(_NEXT, commands, strict=False)
            ),
        )
    )


def training_value(result: TrainingResult) -> dict[str, Any]:
    """The best epoch, every epoch, and where the checkpoint is."""
    return {
        "checkpoint": str(result.checkpoint),
        "classes": result.classes,
        "head": result.head,
        "best": msgspec.to_builtins(result.best),
        "history": msgspec.to_builtins(result.history),
        "train_images": result.train_images,
        "test_images": result.test_images,
        "seconds": round(result.seconds, 3),
    }
