"""What a checkpoint holds beside weights that fit: types, sizes, what training wrote down."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from deploykit.bundle.checkpoint_files import checkpoint_files
from deploykit.models.checkpoint import read_checkpoint
from deploykit.models.entries import is_finite, named_tensors
from deploykit.models.file_kinds import Container

#: Containers of values that may be the training's notes, and how deep they are looked for.
_DEPTH = 2
_LONGEST_TEXT = 80


@dataclass(frozen=True)
class Contents:
    """What is in a checkpoint.

    Attributes:
        container: How the file is made.
        bytes: Its size; of an index with its shards.
        entry: The entry with the weights, ``model.state_dict``; empty for the whole file.
        tensors: Their shapes, by the names that the network gave them.
        dtypes: How many tensors of each type.
        non_finite: Names of those with NaN or infinity in them.
        last_layer: The name of the last layer with a weight; empty where there is none.
        classes: Its outputs, which are the classes in nearly every classifier.
        told: Plain values beside the weights: epoch, accuracy.
        notes: What had to be taken off to get at the weights.
        arch: The zoo's network that the file tells; empty where it tells none.
    """

    container: Container
    bytes: int
    entry: str
    tensors: dict[str, tuple[int, ...]]
    dtypes: dict[str, int]
    non_finite: tuple[str, ...]
    last_layer: str
    classes: int | None
    told: dict[str, str | bool | int | float]
    notes: tuple[str, ...]
    arch: str

    @property
    def parameters(self) -> int:
        """How many numbers the tensors are, running statistics included."""
        return sum(math.prod(shape) for shape in self.tensors.values())


def read_contents(path: Path, *, trust_pickle: bool = False) -> Contents:
    """Look into a checkpoint, without running any code from it.

    Args:
        path: The file.
        trust_pickle: Let a file that asks for code run it. Only for files of one's own making.

    Raises:
        CheckpointError, DependencyError: See :func:`deploykit.models.checkpoint.read_checkpoint`.
    """
    checkpoint = read_checkpoint(path, trust_pickle=trust_pickle, arch=None)
    entry = next(each for each in checkpoint.entries if not each.reason)
    tensors, _, notes = named_tensors(entry)
    notes = [*([checkpoint.note] if checkpoint.note else []), *notes]
    for each in checkpoint.entries:
        if each.reason:
            place = f"entry '{each.name}'" if each.name else "file itself"
            notes.append(f"no network can be given the weights of the {place}: {each.reason}")
    others = [each for each in checkpoint.entries if each is not entry and not each.reason]
    if others:
        names = ", ".join(f"'{each.name or path.name}'" for each in others)
        notes.append(f"other weights in the file: {names}")
    last = _last_layer(tensors)
    return Contents(
        container=checkpoint.container,
        bytes=sum(file.stat().st_size for file in checkpoint_files(path)),
        entry=entry.name,
        tensors={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        dtypes=dict(Counter(str(t.dtype).removeprefix("torch.") for t in tensors.values())),
        non_finite=tuple(name for name, tensor in tensors.items() if not is_finite(tensor)),
        last_layer=last or "",
        classes=None if last is None else tensors[f"{last}.weight"].shape[0],
        told=dict(_told(checkpoint.loaded, entry.trail)),
        notes=tuple(notes),
        arch=checkpoint.arch,
    )


def _last_layer(tensors: Mapping[str, Tensor]) -> str | None:
    """The last linear layer, else the last 1x1 convolution: state_dicts keep the network's order.

    A linear layer in the middle of an attention block comes before the classifier.
    """
    weights = [name for name in tensors if name.endswith(".weight")]
    linear = [name for name in weights if tensors[name].ndim == 2]
    pointwise = [
        name for name in weights if tensors[name].ndim == 4 and tensors[name].shape[2:] == (1, 1)
    ]
    for names in (linear, pointwise):
        if names:
            return names[-1].removesuffix(".weight")
    return None


def _told(
    value: object, weights: tuple[str, ...], trail: tuple[str, ...] = ()
) -> Iterator[tuple[str, str | bool | int | float]]:
    """The plain values that a file keeps beside its weights."""
    if trail == weights:
        return
    if isinstance(value, Tensor) and value.ndim == 0:
        value = value.item()
    if isinstance(value, str | bool | int | float):
        text_fits = not isinstance(value, str) or len(value) <= _LONGEST_TEXT
        if trail and text_fits:
            yield ".".join(trail), value
    elif isinstance(value, Mapping) and len(trail) < _DEPTH and not (trail and _is_state(value)):
        for key, child in value.items():
            if isinstance(key, (str, int)) and str(key).isprintable():
                yield from _told(child, weights, (*trail, str(key)))


def _is_state(value: Mapping[object, object]) -> bool:
    """Whether an entry is an optimizer's state, or other weights, such as their moving average."""
    tensors = (child for child in value.values() if isinstance(child, Tensor))
    return "param_groups" in value or any(tensor.ndim > 0 for tensor in tensors)
