"""The files of a training run: what it leaves behind, and what it needs to go on."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from deploykit.commands.train.history import EpochResult
from deploykit.errors import CheckpointError, UsageError
from deploykit.images.labels import CLASSES_FILE
from deploykit.specs.value import Value
from deploykit.system.files import replacing

if TYPE_CHECKING:
    from torch import Tensor

CHECKPOINT = "best_model.pth"
CURVES = "curves.png"
STATE = "training.pt"
STATE_SCHEMA = 1


class Recipe(Value, frozen=True):
    """Everything that decides the weights, but for the number of epochs.

    Attributes:
        architecture: Its canonical name.
        arch_args: What ``--arch-arg`` gave.
        preprocessing: In words, as ``Preprocessing.describe`` has them.
        batch_size: Photos an optimizer step.
        learning_rate: The first epoch's.
        test_fraction: The share of the photos that is kept for testing.
        seed: Of the split, the first weights and the shuffling.
        device: ``cpu`` or ``cuda``: their results differ in the last digits.
        classes: The classes' names, in the order of the logits.
        photos: The digest of the photos.
    """

    architecture: str
    arch_args: dict[str, Any]
    preprocessing: str
    batch_size: int
    learning_rate: float
    test_fraction: float
    seed: int
    device: str
    classes: tuple[str, ...]
    photos: str


@dataclass(frozen=True)
class TrainingState:
    """A run after a finished epoch.

    Attributes:
        recipe: What the run was asked for.
        history: The finished epochs.
        model: The network's ``state_dict`` after the last of them.
        optimizer: The optimizer's.
    """

    recipe: Recipe
    history: tuple[EpochResult, ...]
    model: dict[str, Tensor]
    optimizer: dict[str, Any]


def check_output(output: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse to run over another run's files, and to resume what is not there.

    Raises:
        UsageError: Files are in the way, or the run to resume is not there or not whole.
    """
    if resume and overwrite:
        raise UsageError("--resume goes on with a run, --overwrite discards it: use one of them.")
    if resume:
        missing = [name for name in (STATE, CHECKPOINT) if not (output / name).is_file()]
        if missing:
            raise UsageError(
                f"There is no run to resume in {output}: {' and '.join(missing)} not found.",
                hint="Say with --output where the run is, or start one without --resume.",
            )
        return
    there = [name for name in (CHECKPOINT, CLASSES_FILE, CURVES, STATE) if (output / name).exists()]
    if there and not overwrite:
        raise UsageError(
            f"{output} has the files of an earlier run: {', '.join(there)}.",
            hint="Go on with it (--resume), replace it (--overwrite), or choose another --output.",
        )


def make_output(output: Path) -> None:
    """Make the folder for the results, now rather than after an hour of training.

    Raises:
        UsageError: It cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output):
            pass
    except OSError as exc:
        raise UsageError(
            f"The folder {output} cannot be written to ({exc.strerror}).",
            hint="Choose another --output.",
        ) from exc


def discard_state(output: Path) -> None:
    """Remove ``training.pt``: without it nobody resumes an old run beside a new checkpoint."""
    (output / STATE).unlink(missing_ok=True)


def save_best(output: Path, module_state: dict[str, Tensor], classes: tuple[str, ...]) -> None:
    """Write ``best_model.pth``, a plain ``state_dict`` on the CPU, and ``classes.txt``.

    Neither ever lies beside the other of an earlier run, whatever ends the program meanwhile: both
    are whole before the first is renamed, and other names go before other weights come.
    """
    import torch

    names = "".join(f"{name}\n" for name in classes).encode()
    with _replacing(output / CLASSES_FILE) as path:
        path.write_bytes(names)
        with _replacing(output / CHECKPOINT) as weights_path:
            torch.save({key: value.cpu() for key, value in module_state.items()}, weights_path)
            _discard_other_names(output / CLASSES_FILE, names)


def _discard_other_names(path: Path, names: bytes) -> None:
    """Remove a ``classes.txt`` with other content: without it ``export`` says what it assumes."""
    if path.is_file() and path.read_bytes() != names:
        path.unlink()


def save_state(output: Path, state: TrainingState) -> None:
    """Write ``training.pt``, which ``torch.load(weights_only=True)`` reads."""
    import torch

    content = {
        "schema": STATE_SCHEMA,
        "recipe": _to_json(state.recipe),
        "history": _to_json(state.history),
        "model": state.model,
        "optimizer": state.optimizer,
    }
    with _replacing(output / STATE) as path:
        torch.save(content, path)


def load_state(output: Path) -> TrainingState:
    """Read ``training.pt``.

    Raises:
        CheckpointError: It is damaged, or not a training state of this version.
    """
    import torch

    path = output / STATE
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if isinstance(content, dict) and content.get("schema") == STATE_SCHEMA:
            return TrainingState(
                recipe=msgspec.json.decode(content["recipe"], type=Recipe),
                history=msgspec.json.decode(content["history"], type=tuple[EpochResult, ...]),
                model=content["model"],
                optimizer=content["optimizer"],
            )
    except (OSError, EOFError, RuntimeError, ValueError, TypeError, LookupError) as exc:
        raise _unusable_state(path, exc) from exc
    except pickle.UnpicklingError as exc:
        raise _unusable_state(path, exc) from exc
    raise _unusable_state(path, f"it does not have the contents of version {STATE_SCHEMA}.")


def check_same_recipe(stored: Recipe, wanted: Recipe) -> None:
    """Refuse to go on with a run under other conditions.

    Raises:
        UsageError: Something differs; says what.
    """
    # Through JSON, where a tuple is a list: the stored one has been through it.
    then, now = (msgspec.json.decode(_to_json(recipe)) for recipe in (stored, wanted))
    changes = [
        "the photos are others, or give other pixels"
        if name == "photos"
        else f"{name.replace('_', ' ')} was {then[name]}, now {now[name]}"
        for name in now
        if then[name] != now[name]
    ]
    if changes:
        raise UsageError(
            f"This run cannot be resumed: {'; '.join(changes)}.",
            hint="Resume with the options it was started with, or start over with --overwrite.",
        )


def _to_json(value: object) -> str:
    """As JSON; an argument that has no JSON form, a class perhaps, as its ``repr``."""
    return msgspec.json.encode(value, enc_hook=repr).decode()


def _unusable_state(path: Path, reason: object) -> CheckpointError:
    first_line = (str(reason) or type(reason).__name__).splitlines()[0]
    return CheckpointError(
        f"{path} is not a training state that can be resumed: {first_line}",
        hint="Start over with --overwrite.",
    )


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """Replace a file as a whole.

    Raises:
        UsageError: The file cannot be written; what was there before is still there.
    """
    try:
        with replacing(path) as partial:
            yield partial
    except (OSError, RuntimeError) as exc:  # torch's own file writer raises RuntimeError
        raise UsageError(
            f"{path} cannot be written: {exc}",
            hint="Is the disk full, or the file open elsewhere? Go on with --resume after that.",
        ) from exc
