"""Keras' files, as weights of the zoo's ``resnext50_keras`` and ``resnext50_keras_grouped``.

There are three kinds: ``.weights.h5`` of Keras 3, whose layers are numbered anew in the order of
``model.layers``; the older ``.h5``, whose layers have the names that they got when they were made;
and ``.keras``, a zip archive with the first and the model's configuration. Where a file has the
configuration, it tells which layer is which. Code in it is neither run nor read.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from deploykit.errors import CheckpointError
from deploykit.models.file_kinds import HDF5_MAGIC, zip_members
from deploykit.models.keras_config import (
    ARCHITECTURES,
    OtherNetworkError,
    Places,
    Told,
    read_config,
)
from deploykit.models.zoo.resnext_keras import GROUPS, resnext50_keras
from deploykit.system.deps import need

#: Names of a layer's variables to those of torch's layer.
_VARIABLES = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}
_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
#: Where Keras 3 and Keras 2.12 to 2.15 keep the layers in a file with numbered variables.
_NUMBERED = ("layers", "_layer_checkpoint_dependencies")
#: What the older files keep beside the layers.
_NO_LAYERS = ("optimizer_weights", "top_level_model_weights")
_MOST_OBJECTS = 20_000
_MOST_CONFIG_BYTES = 16 << 20
#: The tutorial makes a shortcut's two layers before the block's six others. In ``model.layers``,
#: which follows a sum's first term first, they come behind those.
_BEHIND = 6.5
_TORCH_KINDS = {"Conv2D": nn.Conv2d, "BatchNormalization": nn.BatchNorm2d, "Dense": nn.Linear}
_COUNTER = re.compile(r"(.*?)(?:_(\d+))?")

Variables: TypeAlias = dict[str, Any]
"""A layer's HDF5 datasets by Keras' names."""


@dataclass(frozen=True)
class KerasWeights:
    """What a Keras file holds.

    Attributes:
        state_dict: The weights, by the names of ``resnext50_keras``.
        arch: Which of the zoo's two networks they are of; empty where the file does not tell.
        note: What the user should know; else empty.
    """

    state_dict: dict[str, Tensor]
    arch: str
    note: str


def read_keras(path: Path) -> KerasWeights:
    """Read a Keras file; nothing outside it, and no more than such a network has.

    Raises:
        CheckpointError: It is no such network, or holds what Keras does not write.
        DependencyError: h5py is missing.
        OSError, ValueError, LookupError, RuntimeError, TypeError: The file is damaged.
    """
    try:
        return _read(path)
    except OtherNetworkError as error:
        raise CheckpointError(
            f"{path} does not hold the ResNeXt-50 of the Keras tutorial: {error}.", hint=error.hint
        ) from error


def _read(path: Path) -> KerasWeights:
    h5py = need("h5py")
    config: bytes | str | None = None
    source: Any = path
    if not _is_hdf5(path):
        members = zip_members(path)
        (weights,) = (name for name in members if name.endswith(".weights.h5"))
        with zipfile.ZipFile(path) as archive:
            image = archive.read(weights)
            if not image.startswith(HDF5_MAGIC):
                raise ValueError(f"its {weights!r:.80} is no HDF5 file")
            source = h5py.h5f.open_file_image(image)
            if "config.json" in members:
                _check_config_size(members["config.json"].file_size)
                config = archive.read("config.json")
    with h5py.File(source, "r") as file:
        if config is None:
            config = _text_attribute(file, "model_config")
        layers, numbered = _find_layers(file)
        kinds = _by_kind(layers)
        told = None if config is None else read_config(json.loads(config))
        places = (
            _places_in_order(kinds, numbered=numbered)
            if told is None
            else _places_told(kinds, told, numbered=numbered)
        )
        state, whole = _state_dict(places, layers, path.stat().st_size)
    bound = True if whole else None if told is None else told.is_bound
    if bound is not None:
        return KerasWeights(state, ARCHITECTURES[bound], "")
    return KerasWeights(
        state,
        "",
        "the file does not tell which slice each group convolves: resnext50_keras is for the "
        "tutorial's code, which gives all the last one, resnext50_keras_grouped for code that "
        "binds c",
    )


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(HDF5_MAGIC)) == HDF5_MAGIC


def _check_config_size(size: int) -> None:
    if size > _MOST_CONFIG_BYTES:
        raise ValueError(f"its configuration has {size:,} bytes")


def _text_attribute(file: Any, name: str) -> str | bytes | None:
    """A text among a file's attributes; None where there is none."""
    h5py = need("h5py")
    if name not in file.attrs:
        return None
    attribute = file.attrs.get_id(name)
    if attribute.shape != () or h5py.check_string_dtype(attribute.dtype) is None:
        raise ValueError(f"its attribute {name} is no text")
    _check_config_size(attribute.get_storage_size())
    text = file.attrs[name]
    _check_config_size(len(text))
    return text if isinstance(text, (str, bytes)) else bytes(text)


def _find_layers(file: Any) -> tuple[dict[str, Variables], bool]:
    """The layers that have variables, and whether these are numbered."""
    entries = list(_datasets(file))
    top = {path[0] for path, _ in entries}
    root = next((name for name in (*_NUMBERED, "model_weights") if name in top), None)
    numbered = root in _NUMBERED
    found: defaultdict[str, Variables] = defaultdict(dict)
    for path, dataset in entries:
        if root is not None and path[0] != root:
            continue
        inner = path if root is None else path[1:]
        if len(inner) < 2 or inner[0] in _NO_LAYERS:
            continue
        if numbered and (len(inner) != 3 or inner[1] != "vars"):
            continue  # such as the state of a Dropout's random numbers
        name = inner[-1].removesuffix(":0")  # which Keras 2 adds
        if name in found[inner[0]]:
            raise ValueError(f"{inner[0]!r:.80} in it has two variables {name!r:.80}")
        found[inner[0]][name] = dataset
    if numbered:
        return {layer: _named(variables) for layer, variables in found.items()}, True
    return dict(found), False


def _datasets(file: Any) -> Iterator[tuple[list[str], Any]]:
    """The datasets in a file with their paths; each once, and no link is followed."""
    kind = need("h5py").Dataset
    found: list[tuple[str, Any]] = []
    count = itertools.count()

    def visit(path: str, item: object) -> None:
        if next(count) > _MOST_OBJECTS:
            raise ValueError(f"it has more than {_MOST_OBJECTS:,} groups and variables")
        if isinstance(item, kind):
            found.append((path, item))

    file.visititems(visit)
    for path, dataset in found:
        # Keras 2.12 on Windows has "layers\\conv2d\\vars" for one name.
        yield path.replace("\\", "/").split("/"), dataset


def _named(variables: Variables) -> Variables:
    """Numbered variables under their names: those of a normalisation are four."""
    names = _NORM if len(variables) == len(_NORM) else ("kernel", "bias")
    return {
        names[int(number)] if number.isdecimal() and int(number) < len(names) else number: dataset
        for number, dataset in variables.items()
    }


def _by_kind(layers: Mapping[str, Variables]) -> dict[str, list[str]]:
    """The layers' names in the file's order, by the class of Keras that has such variables."""
    kinds: defaultdict[str, list[str]] = defaultdict(list)
    for layer, variables in layers.items():
        kernel = variables.get("kernel")
        dimensions = 0 if kernel is None else len(kernel.shape or ())
        if variables.keys() == {*_NORM}:
            kinds["BatchNormalization"].append(layer)
        elif variables.keys() <= {"kernel", "bias"} and dimensions in (2, 4):
            kinds["Dense" if dimensions == 2 else "Conv2D"].append(layer)
        else:
            raise OtherNetworkError(
                f"its layer {layer!r:.80} has the variables {', '.join(variables):.80}"
            )
    return kinds


def _in_order(names: Sequence[str]) -> list[str]:
    """Sort by Keras' counters: ``conv2d``, ``conv2d_1``, ..., wherever they begin.

    Raises:
        OtherNetworkError: The layers have names of their own.
    """
    matches = [match for name in names if (match := _COUNTER.fullmatch(name))]
    if len({match[1] for match in matches}) > 1:
        prefixes = ", ".join(sorted({match[1] for match in matches})[:3])
        raise OtherNetworkError(
            f"its layers have names of their own, {prefixes!r:.80}, and it tells no order",
            "Save the whole model, which tells it: model.save('model.keras').",
        )
    return [match[0] for match in sorted(matches, key=lambda match: int(match[2] or 0))]


def _our_layers() -> list[tuple[str, nn.Module]]:
    """The layers of ``resnext50_keras`` that have weights, in the order of the tutorial's code."""
    with torch.device("meta"):
        network = resnext50_keras()
    kinds: tuple[type[nn.Module], ...] = tuple(_TORCH_KINDS.values())
    return [(name, layer) for name, layer in network.named_modules() if isinstance(layer, kinds)]


def _places_in_order(kinds: Mapping[str, list[str]], *, numbered: bool) -> Places:
    """The file's layers for each of ours, by their order alone."""
    ours = list(enumerate(_our_layers()))
    if numbered:
        ours.sort(key=lambda pair: pair[0] + _BEHIND * (".shortcut." in pair[1][0]))
    by_kind = {
        kind: [name for _, (name, layer) in ours if isinstance(layer, torch_kind)]
        for kind, torch_kind in _TORCH_KINDS.items()
    }
    whole = len(kinds.get("Conv2D", ())) == len(by_kind["Conv2D"])
    places: Places = {}
    for kind, names in by_kind.items():
        theirs = iter(_in_order(kinds.get(kind, ())))
        for name in names:
            count = GROUPS if name.endswith(".conv2") and not whole else 1
            places[name] = list(itertools.islice(theirs, count))
        if not all(places[name] for name in names) or next(theirs, None):
            counts = ", ".join(f"{len(names)} {kind}" for kind, names in kinds.items()) or "none"
            raise OtherNetworkError(f"of layers with weights it has {counts}")
    return places


def _places_told(kinds: Mapping[str, list[str]], told: Told, *, numbered: bool) -> Places:
    """The file's layers for each of ours, as its configuration tells."""
    if not numbered:
        return told.places
    keys: dict[str, str] = {}
    for kind, names in kinds.items():
        if len(names) != len(told.layers[kind]):
            raise ValueError(f"it has weights of {len(names)} {kind} layers in another number")
        keys |= dict(zip(told.layers[kind], _in_order(names), strict=True))
    return {ours: [keys[name] for name in theirs] for ours, theirs in told.places.items()}


def _state_dict(
    places: Places, layers: Mapping[str, Variables], file_bytes: int
) -> tuple[dict[str, Tensor], bool]:
    """The weights by our names, and whether the file has each grouped convolution as one."""
    state: dict[str, Tensor] = {}
    whole = False
    for name, layer in _our_layers():
        theirs = [layers.get(place, {}) for place in places[name]]
        whole |= name.endswith(".conv2") and len(theirs) == 1
        for variable in theirs[0]:
            key = f"{name}.{_VARIABLES[variable]}"
            shape = _expected_shape(layer, _VARIABLES[variable], len(theirs))
            parts = [
                _array(each.get(variable), shape, f"{place}/{variable}", file_bytes)
                for place, each in zip(places[name], theirs, strict=True)
            ]
            # A kernel is (H, W, in, out), of a linear layer (in, out); torch has out, in first.
            joined = np.concatenate(parts, axis=-1)
            axes = (3, 2, 0, 1) if joined.ndim == 4 else tuple(reversed(range(joined.ndim)))
            state[key] = torch.from_numpy(np.ascontiguousarray(joined.transpose(axes)))
    return state, whole


def _expected_shape(layer: nn.Module, name: str, parts: int) -> tuple[int | None, ...]:
    """The shape of a variable in the file; None for the number of classes."""
    tensor = getattr(layer, name)
    if tensor is None:
        raise OtherNetworkError("its convolutions have other biases")
    shape: tuple[int | None, ...] = tuple(tensor.shape)
    if isinstance(layer, nn.Linear):
        return (*shape[:0:-1], None)
    if len(shape) != 4:
        return shape
    out, channels_in, *kernel = tensor.shape
    return (*kernel, channels_in, out // parts)


def _array(
    dataset: Any, shape: tuple[int | None, ...], name: str, file_bytes: int
) -> npt.NDArray[np.floating[Any]]:
    """Read a dataset, once it is known to be stored whole in the file, and as large as it must."""
    h5py = need("h5py")
    if dataset is None:
        raise ValueError(f"it lacks {name!r:.80}")
    if dataset.shape is None:
        raise ValueError(f"its {name!r:.80} has no numbers")
    known = dataset.shape
    if len(known) != len(shape) or any(
        want not in (None, size) for size, want in zip(known, shape, strict=True)
    ):
        raise OtherNetworkError(
            f"its {name!r:.80} is {'x'.join(map(str, dataset.shape))}, "
            f"not {'x'.join('CLASSES' if size is None else str(size) for size in shape)}"
        )
    dtype = dataset.dtype
    if dtype.kind != "f" or dtype.itemsize not in (2, 4, 8):
        raise ValueError(f"its {name!r:.80} is of the type {dtype}")
    plist = dataset.id.get_create_plist()
    layout = (h5py.h5d.CONTIGUOUS, h5py.h5d.COMPACT)
    if dataset.is_virtual or plist.get_external_count() or plist.get_layout() not in layout:
        raise ValueError(f"its {name!r:.80} is not stored as Keras does, whole and uncompressed")
    size = math.prod(known) * dtype.itemsize
    if size > file_bytes or dataset.id.get_storage_size() != size:
        raise ValueError(f"its {name!r:.80} has not the {size:,} bytes that it says")
    array: npt.NDArray[np.floating[Any]] = dataset[()]
    return array.astype(dtype.newbyteorder("="), copy=False)
