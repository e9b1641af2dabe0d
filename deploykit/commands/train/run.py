"""Train a classifier with the recipe of the tutorials, so that a newcomer has a checkpoint."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deploykit.commands.python import PathLike, SizeLike, option_text
from deploykit.commands.train.curves import load_matplotlib, write_curves
from deploykit.commands.train.images import read_images
from deploykit.commands.train.passes import end_workers, run_through
from deploykit.commands.train.state import (
    CHECKPOINT,
    CURVES,
    Epoch,
    Training,
    best_epoch,
    claim_folder,
    first_line,
    read_training,
    score_text,
    write_best,
    write_training,
)
from deploykit.errors import (
    ArchitectureError,
    DeviceError,
    ModelError,
    UsageError,
)
from deploykit.specs.heads import Head, HeadName
from deploykit.specs.model import Labels
from deploykit.specs.preprocessing_options import (
    PreprocessingOptions,
    choose_preprocessing,
    parse_size,
)
from deploykit.specs.value import Shown
from deploykit.system.deps import need
from deploykit.system.progress import Note, Progress, silent
from deploykit.system.text import counted
from deploykit.system.threads import usable_cpus

if TYPE_CHECKING:
    import torch
    from torch import nn

    from deploykit.specs.preprocessing import Size

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
        checkpoint: ``best_model.pth``: the weights of the best epoch, a plain ``state_dict``; of a
            multi-label or binary head the entry of that name, beside ``head``.
        classes: The names of the classes, in the order of the logits.
        head: What the logits mean.
        history: Every epoch, with those before a resume.
        train_images: How many photos it was trained on.
        test_images: How many photos it was tested on.
        seconds: The wall time of this call.
    """

    checkpoint: Path
    classes: tuple[str, ...]
    head: HeadName
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
    labels: PathLike | None = None,
    head: HeadName | None = None,
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
    """Train a classifier on a folder of photos with one sub-folder a class, or on a table's photos.

    The defaults are the DPN tutorial's: a random 80/20 split, Adam, cross-entropy, batches of 4,
    40 epochs, and a learning rate of 1e-4 that is multiplied by 0.92 every 4 epochs. Unlike there,
    the weights of the epoch with the best test accuracy are kept, not those of the last. A
    multi-label head learns one sigmoid a class by binary cross-entropy, and the epoch with the best
    mean average precision is kept; a binary head learns one sigmoid for two classes.

    After each epoch ``output`` holds ``best_model.pth``, ``classes.txt``, ``curves.png`` and
    ``training.pt``. After an interruption ``resume`` continues with the next epoch, but not to the
    very weights of an uninterrupted training: the photos come in another order.

    Args:
        folder: The photos; without ``labels`` the classes are its sub-folders, in the order of
            ``ImageFolder``.
        labels: A CSV with a row a photo: its path, relative to the folder or to the CSV's, then its
            classes, or a 0 or 1 for each class below a header. The classes are in the order of the
            header, or sorted; one column of 0 and 1 gives two, ``not NAME`` and ``NAME``.
        head: ``single-label``, ``multi-label`` or ``binary`` (one logit, for the second of two
            classes); None for single-label, or for multi-label where ``labels`` has a photo of
            several classes or of none.
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
            ``overwrite``, or the labels do not fit the head.
        ImagesError: There are too few photos to train and test on.
        ArchitectureError: The network cannot be built or trained.
        ModelError: The loss became NaN or infinite.
        InputError: A file cannot be written: the disk may be full. Or the table cannot be read.
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
    images = read_images(folder, labels, head, steps, test_fraction, seed, progress)
    known = images.labels
    torch.manual_seed(seed)
    module = architecture.build(known.logits, dict(arch_args or {}))
    module = _with_logits(module, known.head, steps.input_size, progress).to(place)
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
        "head": known.head.name,
        "classes": ", ".join(known.names),
    }
    history: tuple[Epoch, ...] = ()
    if resume:
        state = _resume(output, options, images.classes_of, epochs, module, optimizer)
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
            write_best(output, module.state_dict(), known)
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
            f"{len(images.test)} to test on, {len(known)} classes; {steps.describe()}"
        )
    )
    try:
        for number in range(len(history) + 1, epochs + 1):
            began = time.perf_counter()
            rate = learning_rate * RATE_DECAY ** ((number - 1) // EPOCHS_PER_RATE)
            for group in optimizer.param_groups:
                group["lr"] = rate
            stage = f"epoch {number}/{epochs}"
            trained = run_through(train_loader, module, optimizer, known, stage, progress)
            tested = run_through(test_loader, module, None, known, f"{stage}, testing", progress)
            epoch = Epoch(
                *(number, rate, *trained[:2], *tested[:2], time.perf_counter() - began),
                train_mean_average_precision=trained.mean_average_precision,
                test_mean_average_precision=tested.mean_average_precision,
            )
            history = (*history, epoch)
            state = Training(
                *(options, images.classes_of, learning_rate, batch_size, history),
                model=module.state_dict(),
                optimizer=optimizer.state_dict(),
            )
            _keep_epoch(output, state, known, epochs, progress)
    finally:
        for loader in (train_loader, test_loader):
            end_workers(loader)
    return TrainingResult(
        checkpoint=output / CHECKPOINT,
        classes=known.names,
        head=known.head.name,
        history=history,
        train_images=len(images.train),
        test_images=len(images.test),
        seconds=time.perf_counter() - started,
    )


def _keep_epoch(
    output: Path, state: Training, labels: Labels, epochs: int, progress: Progress
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
        write_best(output, state.model, labels)
        best = ", best so far"
    train = score_text(epoch.train_accuracy, epoch.train_mean_average_precision)
    test = score_text(epoch.test_accuracy, epoch.test_mean_average_precision)
    results = (
        f"train {train} (loss {epoch.train_loss:.3f}), test {test} (loss {epoch.test_loss:.3f})"
    )
    progress(
        Note(
            f"Epoch {epoch.number}/{epochs}: {results}, lr {epoch.learning_rate:.2e}, "
            f"{epoch.seconds:.1f} s{best}"
        )
    )
    try:
        write_curves(state.history, output / CURVES, labels.head)
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
        (0 < test_fraction < 1, f"a test fraction above 0 and below 1, not {test_fraction}"),
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


def _with_logits(module: nn.Module, head: Head, size: Size, progress: Progress) -> nn.Module:
    """Let a network to be trained with sigmoids give logits, (N, L), as ``export`` does.

    Raises:
        ArchitectureError: It ends in a softmax.
    """
    from deploykit.models.heads import give_logits

    activation = give_logits(module.eval(), size) if head.activation == "sigmoid" else ""
    if activation == "softmax":
        raise ArchitectureError(
            "The network ends in a softmax, of which a head with sigmoids has no use.",
            hint="Take the softmax out of its forward, or use --head single-label.",
        )
    if activation:
        progress(Note("the network ends in a sigmoid, which is left out: the loss has its own"))
    return module


def _resume(
    folder: Path,
    options: dict[str, str],
    photos: Mapping[str, tuple[str, ...]],
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
    both = photos.keys() & state.photos.keys()
    if moved := sorted(name for name in both if photos[name] != state.photos[name]):
        before, now = (", ".join(each[moved[0]]) or "none" for each in (state.photos, photos))
        changes.append(
            f"{counted(len(moved), 'photo')} of other classes: {moved[0]} (was {before}, and is "
            f"now {now}){', ...' if len(moved) > 1 else ''}"
        )
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
