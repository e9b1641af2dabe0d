"""Train a classifier with the recipe of the tutorials, so that a newcomer has a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploykit.commands.python import PathLike, SizeLike, option_text
from deploykit.commands.train.curves import load_matplotlib, write_curves
from deploykit.commands.train.images import read_images
from deploykit.commands.train.state import (
    CHECKPOINT,
    CURVES,
    Epoch,
    Training,
    best_epoch,
    claim_folder,
    first_line,
    read_training,
    write_best,
    write_training,
)
from deploykit.errors import (
    ArchitectureError,
    DeploykitError,
    DeviceError,
    ImagesError,
    ModelError,
    UsageError,
)
from deploykit.specs.preprocessing_options import (
    PreprocessingOptions,
    choose_preprocessing,
    parse_size,
)
from deploykit.specs.value import Shown
from deploykit.system.deps import need
from deploykit.system.progress import Note, Progress, Step, silent
from deploykit.system.text import counted
from deploykit.system.threads import usable_cpus

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.utils.data import DataLoader

LEARNING_RATE = 1e-4
BATCH_SIZE = 4
RATE_DECAY = 0.92
EPOCHS_PER_RATE = 4
_MOST_WORKERS = 8
#: A process that reads photos, from a network drive perhaps, may hang.
_MOST_SECONDS_A_BATCH = 600


@dataclass(frozen=True, repr=False)
class TrainingResult(Shown):
    """The outcome of a training.

    Attributes:
        checkpoint: ``best_model.pth``: the weights of the best epoch, a plain ``state_dict``.
        classes: The names of the classes, in the order of the logits.
        history: Every epoch, with those before a resume.
        train_images: How many photos it was trained on.
        test_images: How many photos it was tested on.
        seconds: The wall time of this call.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    history: tuple[Epoch, ...]
    train_images: int
    test_images: int
    seconds: float

    @property
    def best(self) -> Epoch:
        """The epoch that the checkpoint is from."""
        return best_epoch(self.history)


def train(
    folder: PathLike,
    *,
    arch: str = "dpn92",
    arch_args: Mapping[str, object] | None = None,
    output: PathLike = ".",
    epochs: int = 40,
    batch_size: int | None = None,
    learning_rate: float | None = None,
    input_size: SizeLike | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    device: str = "auto",
    workers: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> TrainingResult:
    """Train a classifier on a folder with one sub-folder of photos a class.

    The defaults are the DPN tutorial's: a random 80/20 split, Adam, cross-entropy, batches of 4,
    40 epochs, and a learning rate of 1e-4 that is multiplied by 0.92 every 4 epochs. Unlike there,
    the weights of the epoch with the best test accuracy are kept, not those of the last.

    After each epoch ``output`` holds ``best_model.pth``, ``classes.txt``, ``curves.png`` and
    ``training.pt``. After an interruption ``resume`` continues with the next epoch, but not to the
    very weights of an uninterrupted training: the photos come in another order.

    Args:
        folder: The photos; the classes are its sub-folders, in the order of ``ImageFolder``.
        arch: The name of the architecture.
        arch_args: More arguments of the architecture.
        output: The folder for the results; made if it does not exist.
        epochs: The number of epochs in all. A resumed training may be given more.
        batch_size: Photos in an optimizer step; None for 4, or that of the training to resume.
        learning_rate: The rate of the first epochs; None for 1e-4, or that of the training to
            resume.
        input_size: The size to stretch images to, in pixels; None for the architecture's, or
            224x224.
        test_fraction: The share of the photos to test on, which are never trained on, 0..1.
        seed: The seed of the split, the first weights and the shuffling.
        device: ``auto`` (the GPU if there is one), ``cpu`` or ``cuda``.
        workers: Processes that read photos; 0 reads them in this one. None for 0 on a CPU, which
            computes longer than it reads, and up to 8 for a GPU.
        resume: Continue the training in ``output``.
        overwrite: Replace the training in ``output``, after the first epoch of the new one.
        progress: Told of every batch, and of every epoch with a note.

    Raises:
        UsageError: An option makes no sense, or ``output`` does not fit ``resume`` or
            ``overwrite``.
        ImagesError: There are too few photos to train and test on.
        ArchitectureError: The network cannot be built or trained.
        ModelError: The loss became NaN or infinite.
        InputError: A file cannot be written: the disk may be full.
        CheckpointError: The state to resume from is damaged.
        DeviceError: The device is not there, or its memory does not suffice.
        DependencyError: torch, torchvision or matplotlib is not installed.
    """
    started = time.perf_counter()
    _check_numbers(epochs, batch_size, learning_rate, test_fraction, seed)
    torch = need("torch")
    load_matplotlib()  # a missing one is told now rather than after an epoch of hours
    from deploykit.models.registry import resolve_architecture, timm_preprocessing

    folder, output = Path(folder), Path(output)
    architecture = resolve_architecture(arch, allow_user_code=True)
    size = option_text(input_size, "x")
    steps = choose_preprocessing(
        PreprocessingOptions(input_size=parse_size(size, "--input-size") if size else None),
        default=architecture.preprocessing,
        timm=lambda: timm_preprocessing(architecture),
    )
    place = _choose_device(device)
    claim_folder(output, resume=resume, overwrite=overwrite)
    images = read_images(folder, steps, test_fraction, seed, progress)
    torch.manual_seed(seed)
    module = architecture.build(len(images.classes), dict(arch_args or {})).to(place)
    weights = [weight for weight in module.parameters() if weight.requires_grad]
    if not weights:
        raise ArchitectureError(
            "The network has no weights to train.",
            hint="At least some of its parameters must have requires_grad.",
        )
    optimizer = torch.optim.Adam(weights)
    # What may not change at a resume: another split would train on photos that were tested on.
    options = {
        "architecture": architecture.name,
        "arch args": repr(dict(arch_args or {})),
        "preprocessing": steps.describe(),
        "test fraction": f"{test_fraction:g}",
        "seed": str(seed),
    }
    history: tuple[Epoch, ...] = ()
    if resume:
        state = _resume(output, options, images.names, epochs, module, optimizer)
        history = state.history
        for name, now, before in (
            ("learning rate", learning_rate, state.learning_rate),
            ("batch size", batch_size, state.batch_size),
        ):
            if now not in (None, before):
                progress(Note(f"the {name} was {before:g}, and is {now:g} from now on"))
        learning_rate, batch_size = (
            learning_rate or state.learning_rate,
            batch_size or state.batch_size,
        )
        if best_epoch(history) is history[-1]:
            # The program may have ended between writing the state and writing the checkpoint.
            write_best(output, module.state_dict(), images.classes)
    learning_rate, batch_size = learning_rate or LEARNING_RATE, batch_size or BATCH_SIZE
    if workers is None:
        workers = 0 if place.type == "cpu" else min(usable_cpus(), _MOST_WORKERS)
    train_loader, test_loader = (
        torch.utils.data.DataLoader(
            part,
            batch_size=batch_size,
            shuffle=part is images.train,
            # BatchNorm cannot learn from a last batch of one photo once the maps are down to 1x1.
            drop_last=part is images.train and len(part) % batch_size == 1,
            num_workers=workers,
            timeout=_MOST_SECONDS_A_BATCH if workers else 0,
            persistent_workers=workers > 0,
            pin_memory=place.type == "cuda",
        )
        for part in (images.train, images.test)
    )
    progress(
        Note(
            f"{architecture.name} on {place}: {len(images.train)} photos to train on, "
            f"{len(images.test)} to test on, {len(images.classes)} classes; {steps.describe()}"
        )
    )
    try:
        for number in range(len(history) + 1, epochs + 1):
            began = time.perf_counter()
            rate = learning_rate * RATE_DECAY ** ((number - 1) // EPOCHS_PER_RATE)
            for group in optimizer.param_groups:
                group["lr"] = rate
            stage, classes = f"epoch {number}/{epochs}", len(images.classes)
            trained = _run_through(train_loader, module, optimizer, classes, stage, progress)
            stage += ", testing"
            tested = _run_through(test_loader, module, None, classes, stage, progress)
            seconds = time.perf_counter() - began
            history = (*history, Epoch(number, rate, *trained, *tested, seconds))
            state = Training(
                *(options, images.names, learning_rate, batch_size, history),
                model=module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            _keep_epoch(output, state, images.classes, epochs, progress)
    finally:
        for loader in (train_loader, test_loader):
            _end_workers(loader)
    return TrainingResult(
        checkpoint=output / CHECKPOINT,
        classes=images.classes,
        history=history,
        train_images=len(images.train),
        test_images=len(images.test),
        seconds=time.perf_counter() - started,
    )


def _keep_epoch(
    output: Path, state: Training, classes: Sequence[str], epochs: int, progress: Progress
) -> None:
    """Write the state after an epoch, the checkpoint if it is the best, and the curves.

    Raises:
        ModelError: The loss is no finite number; nothing is written.
    """
    epoch = state.history[-1]
    if not math.isfinite(epoch.train_loss + epoch.test_loss):
        raise ModelError(
            f"In epoch {epoch.number} the training loss became {epoch.train_loss} and the test "
            f"loss {epoch.test_loss}.",
            hint=f"Start again with a smaller --learning-rate than {epoch.learning_rate:g}.",
        )
    write_training(output, state)
    best = ""
    if best_epoch(state.history) is epoch:
        write_best(output, state.model, classes)
        best = ", best so far"
    results = (
        f"train {epoch.train_accuracy:.1%} (loss {epoch.train_loss:.3f}), "
        f"test {epoch.test_accuracy:.1%} (loss {epoch.test_loss:.3f})"
    )
    progress(
        Note(
            f"Epoch {epoch.number}/{epochs}: {results}, lr {epoch.learning_rate:.2e}, "
            f"{epoch.seconds:.1f} s{best}"
        )
    )
    try:
        write_curves(state.history, output / CURVES)
    except OSError as exc:  # a picture is not worth ending a training for
        progress(Note(f"{CURVES} was not written, the training continues: {exc}"))


def _check_numbers(
    epochs: int,
    batch_size: int | None,
    learning_rate: float | None,
    test_fraction: float,
    seed: int,
) -> None:
    for valid, wanted in (
        (epochs >= 1, f"at least 1 epoch, not {epochs}"),
        (batch_size is None or batch_size >= 1, f"batches of at least 1 photo, not {batch_size}"),
        (
            learning_rate is None or 0 < learning_rate < math.inf,
            f"a finite learning rate above 0, not {learning_rate}",
        ),
        (0 < test_fraction < 1, f"a test fraction between 0 and 1, not {test_fraction}"),
        (0 <= seed < 2**32, f"a seed between 0 and {2**32 - 1}, not {seed}"),
    ):
        if not valid:
            raise UsageError(f"Training needs {wanted}.")


def _choose_device(name: str) -> torch.device:
    """The device of that name; ``auto`` is the first CUDA GPU if there is one, else the CPU."""
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as exc:
        raise DeviceError(
            f"torch {torch.__version__} cannot use the device {name!r}: {first_line(exc)}",
            hint="Use --device cpu, or install a torch that supports it (https://pytorch.org).",
        ) from exc
    return device


def _resume(
    folder: Path,
    options: dict[str, str],
    photos: Sequence[str],
    epochs: int,
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> Training:
    """Give a network and its optimizer the state of an interrupted training, and return it."""
    state = read_training(folder)
    changes = [
        f"the {name} was {before}, and is now {options.get(name)}"
        for name, before in state.options.items()
        if options.get(name) != before
    ]
    for names, what in (
        ({*photos} - {*state.photos}, "new"),
        ({*state.photos} - {*photos}, "gone, or cannot be read any more"),
    ):
        if names:
            more = ", ..." if len(names) > 1 else ""
            changes.append(f"{counted(len(names), 'photo')} {what}: {min(names)}{more}")
    if changes:
        raise UsageError(
            f"This training cannot be resumed: {'; '.join(changes)}.",
            hint="Resume with the options it was started with, or start again with --overwrite.",
        )
    if len(state.history) > epochs:
        raise UsageError(
            f"The training in {folder} has finished {len(state.history)} epochs already; "
            f"{epochs} were asked for.",
            hint=f"Its {CHECKPOINT} is ready to use. To train it further, give more --epochs.",
        )
    try:
        module.load_state_dict(state.model)
        optimizer.load_state_dict(state.optimizer)
    except (RuntimeError, ValueError, KeyError) as exc:
        raise ArchitectureError(
            f"The code of the network has changed since this training began: {first_line(exc)}",
            hint="Restore the code, or start again with --overwrite.",
        ) from exc
    return state


def _run_through(
    loader: DataLoader[Any],
    module: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    classes: int,
    stage: str,
    progress: Progress,
) -> tuple[float, float]:
    """Train on every batch of a loader, or without an optimizer only test.

    Returns:
        The share of correct photos, 0..1, and their mean cross-entropy.
    """
    import torch

    device = next(module.parameters()).device
    module.train(optimizer is not None)
    count, correct, loss_sum = 0, 0, 0.0
    for images, targets in _batches(loader):
        shape = tuple(images.shape)
        try:
            with torch.set_grad_enabled(optimizer is not None):
                logits = module(images.to(device))
                _check_logits(logits, (len(images), classes))
                loss = torch.nn.functional.cross_entropy(logits, targets.to(device))
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
        correct += int((logits.argmax(1).cpu() == targets).sum())
        loss_sum += loss.item() * len(images)
        progress(Step(stage, count, len(loader.dataset)))  # type: ignore[arg-type]
    return correct / count, loss_sum / count


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


def _end_workers(loader: DataLoader[Any]) -> None:
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
            hint="It must return one logit a class for each photo, and nothing else.",
        )
