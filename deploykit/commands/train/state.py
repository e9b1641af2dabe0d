"""The files of a training: its results, and the state that it can be resumed from."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.errors import CheckpointError, InputError, UsageError
from deploykit.images.label_files import format_names
from deploykit.images.labels import CLASSES_FILE
from deploykit.specs.model import Labels
from deploykit.specs.value import Value
from deploykit.system.files import refusal, replacing

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "best_model.pth"
CURVES = "curves.png"
STATE = "training.pt"


class Epoch(Value, frozen=True, omit_defaults=True):
    """The results of one finished epoch.

    A photo counts as correct where it is given exactly its classes, one or several.

    Attributes:
        number: From 1.
        learning_rate: The rate it was trained with.
        train_accuracy: The share of correct training photos, 0..1, measured while the weights
            change.
        train_loss: The mean cross-entropy over the training photos.
        test_accuracy: The share of correct test photos at the end of the epoch, 0..1.
        test_loss: The mean cross-entropy over the test photos.
        seconds: The wall time of training and testing.
        train_mean_average_precision: Of the training photos, over the classes that have some, 0..1;
            None unless a photo may be of several classes.
        test_mean_average_precision: Of the test photos.
    """

    number: int
    learning_rate: float
    train_accuracy: float
    train_loss: float
    test_accuracy: float
    test_loss: float
    seconds: float
    train_mean_average_precision: float | None = None
    test_mean_average_precision: float | None = None


def best_epoch(history: Sequence[Epoch]) -> Epoch:
    """The epoch with the highest test accuracy; of equals the lowest test loss, then the first.

    Where a photo may be of several classes, mean average precision counts instead of accuracy: it
    depends on no thresholds, and few photos may have all of their classes right.

    Raises:
        ValueError: The history is empty.
    """

    def rank(epoch: Epoch) -> tuple[float, float]:
        precision = epoch.test_mean_average_precision
        return (epoch.test_accuracy if precision is None else precision, -epoch.test_loss)

    return max(history, key=rank)


def score_text(accuracy: float, mean_average_precision: float | None) -> str:
    """``mean average precision 91.2%, exact match 64.0%``; of one class a photo ``64.0%``."""
    if mean_average_precision is None:
        return f"{accuracy:.1%}"
    return f"mean average precision {mean_average_precision:.1%}, exact match {accuracy:.1%}"


@dataclass(frozen=True)
class Training:
    """A training after a finished epoch.

    Attributes:
        options: The options that a resumed training must share, each in words.
        photos: The classes of the photos that can be read, by their names relative to the folder.
        learning_rate: Of the first epochs.
        batch_size: Photos in an optimizer step.
        history: The finished epochs.
        model: The ``state_dict`` of the network after the last of them.
        optimizer: The ``state_dict`` of the optimizer.
    """

    options: dict[str, str]
    photos: dict[str, tuple[str, ...]]
    learning_rate: float
    batch_size: int
    history: tuple[Epoch, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]


def read_training(folder: Path) -> Training:
    """Read the state of the training that wrote a folder.

    Raises:
        CheckpointError: It is missing, damaged, or of another version of deploykit.
        ImportError: torch is not installed.
    """
    import torch

    path = folder / STATE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        history = msgspec.convert(content.pop("history"), tuple[Epoch, ...])
        photos = msgspec.convert(content.pop("photos"), dict[str, tuple[str, ...]])
        return Training(history=history, photos=photos, **content)
    except OSError as exc:
        raise CheckpointError(
            f"{path} cannot be read: {exc.strerror or exc}.",
            hint="Check the path and its permissions.",
        ) from exc
    # TypeError, LookupError, AttributeError: it was read, and is something else.
    except (
        *(EOFError, RuntimeError, pickle.UnpicklingError),
        *(ValueError, TypeError, LookupError, AttributeError),
    ) as exc:
        raise CheckpointError(
            f"{path} is not a training state that can be resumed: it is damaged, or another "
            "version of deploykit wrote it.",
            hint="Start again with --overwrite.",
        ) from exc


def write_training(folder: Path, training: Training) -> None:
    """Write the state as a whole.

    It comes before ``best_model.pth``: if the program ends between them, a resumed training writes
    that one.

    Raises:
        InputError: It cannot be written; the file that was there before is still there.
    """
    import torch

    content = vars(training) | {"history": msgspec.to_builtins(training.history)}
    folder.mkdir(parents=True, exist_ok=True)
    with _replacing(folder / STATE) as path:
        torch.save(content, path)


def write_best(folder: Path, model: dict[str, Tensor], labels: Labels) -> None:
    """Write ``best_model.pth``, the weights on the CPU, and ``classes.txt``.

    The weights are a plain ``state_dict``; of a head that files name they are the entry of that
    name beside the ``head``, which ``export`` reads.

    Raises:
        InputError: A file cannot be written.
    """
    import torch

    with _replacing(folder / CHECKPOINT) as path:
        weights = {name: tensor.cpu() for name, tensor in model.items()}
        named = {"state_dict": weights, "head": labels.head.name}
        torch.save(weights if labels.head.is_assumed else named, path)
        # Names of an earlier training never lie beside these weights, even if the program ends
        # here: without the file, export says that it numbers the classes.
        (folder / CLASSES_FILE).unlink(missing_ok=True)
    with _replacing(folder / CLASSES_FILE) as path:
        path.write_text(format_names(labels.names), encoding="utf-8", newline="\n")


def claim_folder(folder: Path, *, resume: bool, overwrite: bool) -> None:
    """Check that the folder of a training, which may not be there yet, can be written to.

    It is made with the first file: a training that fails at once leaves none behind.

    Raises:
        UsageError: It cannot be written to, has the files of another training, or has none to
            resume.
    """
    if resume and overwrite:
        raise UsageError("--resume continues a training, --overwrite discards it: use one of them.")
    there = [name for name in (CHECKPOINT, CLASSES_FILE, CURVES, STATE) if (folder / name).exists()]
    missing = [name for name in (STATE, CHECKPOINT) if name not in there]
    if resume and missing:
        raise UsageError(
            f"There is no training to resume in {folder}: {' and '.join(missing)} not found.",
            hint="Name the folder of the training with --output, or start without --resume.",
        )
    if there and not (resume or overwrite):
        raise UsageError(
            f"{folder} has the files of an earlier training: {', '.join(there)}.",
            hint="Continue it (--resume), replace it (--overwrite), or choose another --output.",
        )
    try:
        there_is = next(each for each in (folder, *folder.absolute().parents) if each.exists())
        tempfile.TemporaryFile(dir=there_is).close()  # now rather than after an hour of training
    except OSError as exc:
        raise UsageError(
            f"The folder {folder} cannot be written to ({refusal(exc)}).",
            hint="Choose another --output.",
        ) from exc


def first_line(exc: BaseException) -> str:
    """What an error says, without the rest of it."""
    return (str(exc) or type(exc).__name__).splitlines()[0]


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Replace a file as a whole, and explain why that fails."""
    try:
        with replacing(path) as partial:
            yield partial
    except (OSError, RuntimeError) as exc:  # torch's own file writer raises RuntimeError
        why = exc.strerror if isinstance(exc, OSError) and exc.strerror else "torch cannot write it"
        free = shutil.disk_usage(path.parent).free / 2**20
        raise InputError(
            f"{path} cannot be written: {why}; {free:,.0f} MiB are free on its disk.",
            hint="Make room, or close the program that has the file open. Then continue with "
            "--resume.",
        ) from exc
