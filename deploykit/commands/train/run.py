"""Train a classifier as the tutorials do, so that a newcomer has a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from deploykit.commands.train.files import (
    CHECKPOINT,
    CURVES,
    Recipe,
    TrainingState,
    check_output,
    check_same_recipe,
    discard_state,
    load_state,
    make_output,
    save_best,
    save_state,
)
from deploykit.commands.train.history import EpochResult, best_epoch
from deploykit.commands.train.loop import Learner, choose_device
from deploykit.commands.train.photos import TrainingPhotos, read_photos, split_photos
from deploykit.errors import ModelError, UsageError
from deploykit.specs.preprocessing import Preprocessing
from deploykit.system.progress import Note, Progress, Step, silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    import numpy.typing as npt
    import torch

    from deploykit.commands.train.photos import LabelledBatch

__all__ = ["CURVES", "TrainingResult", "train_classifier"]

RATE_DECAY = 0.92
EPOCHS_PER_RATE = 4


@dataclass(frozen=True)
class TrainingResult:
    """What a training run made.

    Attributes:
        checkpoint: ``best_model.pth``: the weights of the best epoch, a plain ``state_dict``.
        classes: The classes' names, in the order of the logits.
        best: The epoch that the checkpoint is from.
        history: Every epoch, those before a resume included.
        train_photos: How many photos it was trained on.
        test_photos: How many photos it was tested on.
        seconds: The wall time of this call.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    best: EpochResult
    history: tuple[EpochResult, ...]
    train_photos: int
    test_photos: int
    seconds: float


def train_classifier(
    folder: Path,
    *,
    arch: str = "dpn92",
    arch_args: Mapping[str, object] | None = None,
    output: Path = Path(),
    epochs: int = 40,
    batch_size: int = 4,
    learning_rate: float = 1e-4,
    preprocessing: Preprocessing | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    threads: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = silent,
    on_epoch: Callable[[tuple[EpochResult, ...]], None] | None = None,
) -> TrainingResult:
    """Train a classifier on a folder with one sub-folder of photos a class.

    The defaults are the DPN tutorial's: a random 80/20 split, Adam, cross-entropy, batches of 4,
    40 epochs, and a learning rate of 1e-4 that is multiplied by 0.92 every 4 epochs. Unlike it, the
    weights that are kept are those of the epoch with the best test accuracy, not the last's.

    After each epoch ``output`` holds ``best_model.pth``, ``classes.txt`` and ``training.pt``, each
    replaced as a whole: whatever interrupts the run, ``resume`` goes on after the last finished
    epoch. On the CPU, with the same number of threads, that gives the very weights of a run that
    was not interrupted; CUDA kernels may differ in the last digits from run to run.

    Args:
        folder: The photos; the classes are its sub-folders, in the order of ``ImageFolder``.
        arch: The architecture's name.
        arch_args: More arguments of the architecture.
        output: The folder for the results, made if need be.
        epochs: How many in all; a resumed run may be given more than it began with.
        batch_size: Photos an optimizer step.
        learning_rate: The first epochs'.
        preprocessing: From a photo to the network's input; None for the architecture's own, else
            the tutorials'.
        test_fraction: The share of the photos that is tested on and never trained on, 0..1.
        seed: Of the split, the first weights and the shuffling; 0 or more.
        threads: For decoding, and for computing on the CPU; None for one a core.
        resume: Go on with the run in ``output``.
        overwrite: Replace the run in ``output``, once the new one has finished an epoch.
        device: ``auto`` (the GPU where there is one), ``cpu``, ``cuda``.
        progress: Told of every batch, and with a note of every epoch.
        on_epoch: Given the history after each epoch's files are written.

    Raises:
        UsageError: An option makes no sense, or ``output`` does not fit ``resume`` or
            ``overwrite``.
        ImagesError: There are not the photos to train and test on.
        ArchitectureError: The network cannot be built or trained.
        ModelError: The loss became NaN or infinite.
        CheckpointError: The state to resume is damaged.
        DeviceError: The device is not there, or its memory does not suffice.
        DependencyError: torch, or a package of the architecture's, is not installed.
    """
    from deploykit.models.registry import resolve_architecture

    started = time.perf_counter()
    _check_numbers(epochs, batch_size, learning_rate, test_fraction, seed)
    check_output(output, resume=resume, overwrite=overwrite)
    architecture = resolve_architecture(arch, allow_user_code=True)
    steps = preprocessing or architecture.preprocessing or Preprocessing()
    place = choose_device(device)
    photos = read_photos(folder, steps, threads=threads, progress=progress)
    train_part, test_part = split_photos(len(photos.files), test_fraction, seed)
    recipe = Recipe(
        architecture=architecture.name,
        arch_args=dict(arch_args or {}),
        preprocessing=steps.describe(),
        batch_size=batch_size,
        learning_rate=learning_rate,
        test_fraction=test_fraction,
        seed=seed,
        device=place.type,
        classes=photos.classes,
        photos=photos.digest,
    )
    make_output(output)
    with _torch_threads(threads), _random_numbers_of_its_own(place, seed):
        module = architecture.build(len(photos.classes), recipe.arch_args)
        learner = Learner.of(module, steps, place)
        run = _Run(recipe, photos, train_part, test_part, learner, epochs, output, progress)
        history = run.go_back() if resume else ()
        for line in run.describe():
            progress(Note(line))
        for number in range(len(history) + 1, epochs + 1):
            history = run.go_on(history, number)
            if on_epoch is not None:
                on_epoch(history)
    return TrainingResult(
        checkpoint=output / CHECKPOINT,
        classes=photos.classes,
        best=best_epoch(history),
        history=history,
        train_photos=len(train_part),
        test_photos=len(test_part),
        seconds=time.perf_counter() - started,
    )


@dataclass(frozen=True)
class _Run:
    """A run that is under way: what it works on, and where it keeps its results."""

    recipe: Recipe
    photos: TrainingPhotos
    train_part: npt.NDArray[np.int64]
    test_part: npt.NDArray[np.int64]
    learner: Learner
    epochs: int
    output: Path
    progress: Progress

    def go_back(self) -> tuple[EpochResult, ...]:
        """Put the learner where the interrupted run was, and return that run's history."""
        state = load_state(self.output)
        check_same_recipe(state.recipe, self.recipe)
        if len(state.history) > self.epochs:
            raise UsageError(
                f"The run in {self.output} has finished {len(state.history)} epochs already; "
                f"{self.epochs} were asked for.",
                hint="Its best_model.pth is ready to use. To train it further, give more --epochs.",
            )
        self.learner.restore(state.model, state.optimizer)
        return state.history

    def go_on(self, history: tuple[EpochResult, ...], number: int) -> tuple[EpochResult, ...]:
        """Train an epoch, keep its results, and return the history with it."""
        result = self._train_epoch(number)
        history = (*history, result)
        is_best = best_epoch(history) is result
        module_state = self.learner.module.state_dict()
        if number == 1:
            discard_state(self.output)
        if is_best:
            save_best(self.output, module_state, self.photos.classes)
        # Last, so that an epoch counts as finished only once its best_model.pth is there.
        optimizer_state = self.learner.optimizer.state_dict()
        save_state(self.output, TrainingState(self.recipe, history, module_state, optimizer_state))
        best = ", best so far" if is_best else ""
        self.progress(Note(f"Epoch {number}/{self.epochs}: {result.describe()}{best}"))
        return history

    def _train_epoch(self, number: int) -> EpochResult:
        import torch

        started = time.perf_counter()
        # Seeded anew: an epoch's shuffling and dropout don't depend on what ran before it.
        (seed,) = np.random.SeedSequence((self.recipe.seed, number)).generate_state(1)
        torch.manual_seed(int(seed))
        order = self.train_part[torch.randperm(len(self.train_part)).numpy()]
        rate = self.recipe.learning_rate * RATE_DECAY ** ((number - 1) // EPOCHS_PER_RATE)
        size = self.recipe.batch_size
        # BatchNorm cannot learn from a single photo once the maps are down to 1x1.
        batches = self.photos.batches(order, size, drop_single=True)
        train = self.learner.train(self._counted(batches, number, 0), rate)
        batches = self.photos.batches(self.test_part, size)
        test = self.learner.test(self._counted(batches, number, len(order)))
        for part, score in (("training", train), ("test", test)):
            if not math.isfinite(score.loss):
                raise ModelError(
                    f"In epoch {number} the {part} loss became {score.loss}.",
                    hint=f"Start over with a smaller --learning-rate than {rate:g}.",
                )
        return EpochResult(
            epoch=number,
            learning_rate=rate,
            train_accuracy=train.accuracy,
            train_loss=train.loss,
            test_accuracy=test.accuracy,
            test_loss=test.loss,
            seconds=time.perf_counter() - started,
        )

    def _counted(
        self, batches: Iterable[LabelledBatch], number: int, done: int
    ) -> Iterator[LabelledBatch]:
        """Hand batches on, and tell how many of the epoch's photos have been seen."""
        total = len(self.photos.files)
        for batch in batches:
            yield batch
            done += len(batch.images)
            self.progress(Step(f"epoch {number}/{self.epochs}", done, total))

    def describe(self) -> Iterator[str]:
        """What to know before it starts, line by line."""
        yield (
            f"{self.recipe.architecture} on {self.learner.device}: {len(self.train_part)} photos "
            f"to train on, {len(self.test_part)} to test on, {len(self.photos.classes)} classes; "
            f"{self.recipe.preprocessing}"
        )
        present = set(self.photos.targets[self.train_part].tolist())
        missing = [name for i, name in enumerate(self.photos.classes) if i not in present]
        if missing:
            yield (
                f"No photo to train on happens to be of {', '.join(missing)}: this cannot be "
                "learned. Add photos, or try another --seed."
            )


def _check_numbers(
    epochs: int, batch_size: int, learning_rate: float, test_fraction: float, seed: int
) -> None:
    """Refuse numbers that no training can use."""
    if epochs < 1 or batch_size < 1:
        raise UsageError(
            f"Epochs and batch size must be at least 1: epochs {epochs}, batch size {batch_size}."
        )
    if not 0 < learning_rate < math.inf:
        raise UsageError(f"The learning rate must be above 0 and finite, not {learning_rate}.")
    if not 0 < test_fraction < 1:
        raise UsageError(f"The test fraction must be between 0 and 1, not {test_fraction}.")
    if not 0 <= seed < 2**32:
        raise UsageError(f"The seed must be between 0 and {2**32 - 1}, not {seed}.")


@contextmanager
def _torch_threads(count: int | None) -> Iterator[None]:
    """Let torch compute on so many threads of the CPU, and on as many as before afterwards."""
    import torch

    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count is not None:
            torch.set_num_threads(before)


@contextmanager
def _random_numbers_of_its_own(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch, and leave the caller's random numbers as they were afterwards."""
    import torch

    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield
